# Sourced by quickstart.sh and run_tests.sh: go to the checkout, and see to a
# Python environment with this project in it. An active one is used (but for
# conda's base); else .venv is made. Argument: extras to install, or ''.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
    if [ ! -x .venv/bin/python ]; then
        echo 'Making a Python environment in .venv ...'
        "${PYTHON:-python3}" -m venv .venv || { rm -rf .venv; exit 1; }
    fi
    . .venv/bin/activate
fi
extras=$1
# A full mmcv that is there already is kept.
python -c 'from importlib.util import find_spec; exit(find_spec("mmcv") is None)' \
    || extras="mmcv-lite${extras:+,$extras}"
echo 'Installing what setup.py names, where it is missing ...'
# uv is faster, where it is there; like pip, it is to compile what it installs.
{ command -v uv > /dev/null && uv pip install --quiet --compile-bytecode -e ".${extras:+[$extras]}"; } \
    || python -m pip install --quiet --disable-pip-version-check \
        -e ".${extras:+[$extras]}"
