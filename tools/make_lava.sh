#!/bin/sh
# Make Lava's own environment: tools/make_lava.sh FOLDER [PYTHON]
# Lava runs on Python 3.10 only. Looks at PYTHON, then at PATH, pyenv and uv; each candidate is run before
# it is trusted, as a pyenv shim may exist and fail.
set -eu
folder=$1
asked=${2:-}
ready='import sys, h5py, lava.magma.core.process.process; sys.exit(sys.version_info[:2] != (3, 10))'
check='import sys, venv; sys.exit(sys.version_info[:2] != (3, 10))'

if [ -x "$folder/bin/python" ] && "$folder/bin/python" -c "$ready" >/dev/null 2>&1; then
    exit 0
fi
uv=$(command -v uv >/dev/null 2>&1 && uv python find 3.10 2>/dev/null || true)
for python in "$asked" python3.10 "$HOME"/.pyenv/versions/3.10*/bin/python "$uv"; do
    if [ -n "$python" ] && "$python" -c "$check" >/dev/null 2>&1; then
        echo "== making $folder with $python"
        "$python" -m venv --clear "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints-lava.txt lava-nc h5py
        # lava-dl asks for an old torch that netx does not need to run a network.
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            --constraint constraints-lava.txt lava-dl
        exit 0
    fi
done
echo "no Python 3.10 found for Lava: install one (pyenv install 3.10, or uv python install 3.10), or say" \
    "which: make lava LAVA_PYTHON=/path/to/python3.10" >&2
exit 2
