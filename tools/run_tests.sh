#!/usr/bin/env bash
# Run the tests, on a fresh machine too. Arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/env.sh" test
python -m pytest "$@"
