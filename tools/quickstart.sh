#!/usr/bin/env bash
# From a fresh machine to trained models and a table: makes MovingShapes and a
# small CLIP, evaluates it zero-shot, trains VoP, VoP^C and VoP^F+P on it, and
# prints how they compare. --all trains every member of the family.
set -euo pipefail
. "$(dirname "$0")/env.sh" ''
python tools/quickstart.py "$@"
