#!/bin/sh
# All tests: style, types, then the suite; as root, the suite runs once more as an ordinary user.
set -eu
cd "$(dirname "$0")/.."
demo/setup.sh test
bin=${VENV:-.venv}/bin
"$bin/ruff" check --quiet .
"$bin/ruff" format --check --quiet .
"$bin/mypy" --no-error-summary
"$bin/python" -m pytest -q -n 2 "$@"

if [ "$(id -u)" = 0 ]; then
    # What passes as root alone proves nothing for those who have no root. The ordinary user gets a copy of its own, and
    # the system's Python: root's may lie where only root can enter.
    user=65534
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
    tar -c --exclude=./.venv --exclude=./.git --exclude=./demo/.state --exclude=__pycache__ . | tar -x -C "$home"
    chown -R "$user:$user" "$home"
    echo "once more as user $user"
    env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$home" LANG=C.UTF-8 TMPDIR="$home" ${CI:+CI="$CI"} \
        setpriv --reuid "$user" --regid "$user" --clear-groups sh -c '
            cd "$HOME" && mkdir tmp && export TMPDIR="$HOME/tmp" && demo/setup.sh test && .venv/bin/python -m pytest -q -n 2 "$@"' sh "$@"
fi
