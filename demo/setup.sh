#!/bin/sh
# Make .venv and install the project with an extra (demo, test), unless that was done since pyproject.toml changed.
# VENV names another folder.
set -eu
CDPATH= cd "$(dirname "$0")/.."
extra=$1
venv=${VENV:-.venv}
stamp=$venv/.installed-$extra

if [ -e "$venv" ] && ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "error: $venv does not run for this user: remove it, or name another folder with VENV=FOLDER" >&2
    exit 1
fi
for done in "$stamp" "$venv/.installed-test"; do # the test extra has all others
    if [ -e "$done" ] && [ ! pyproject.toml -nt "$done" ]; then
        exit 0
    fi
done
echo "installing sandboxrun into $venv (once, about ten seconds) ..." >&2
if [ ! -e "$venv" ]; then
    python=
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.11 or newer with venv: on Debian, apt-get install python3 python3-venv" >&2
        exit 1
    fi
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" 2>"$venv/install.log" || {
    tail -n 5 "$venv/install.log" >&2
    echo "error: pip could not install sandboxrun; the whole log is in $venv/install.log" >&2
    exit 1
}
touch "$stamp"
