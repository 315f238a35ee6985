#!/bin/sh
# Make the environment of marsnn: tools/make_venv.sh FOLDER PYTHON
# Takes the first Python >= 3.11 that runs: the one asked for, then python3.13 to python3.11 on PATH.
set -eu
folder=$1
asked=$2
check='import sys, venv; sys.exit(sys.version_info < (3, 11))'

for python in "$asked" python3.11 python3.12 python3.13 "$HOME"/.pyenv/versions/3.1[123]*/bin/python; do
    if "$python" -c "$check" >/dev/null 2>&1; then
        [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt --editable '.[dev]'
        exit 0
    fi
done
echo "error: no Python >= 3.11 found; install one, or say which: make PYTHON=/path/to/python3.11" >&2
exit 2
