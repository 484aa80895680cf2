#!/usr/bin/env bash
# Run the tests, on a fresh machine too. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/env.sh" test
# Three at a time, as tests wait, too; each file by one process, as its tests share what they
# prepare; in the order of tests/shared_fixtures.py.
python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
