#!/bin/sh
# All tests: style, types, then the suite; as root, the suite runs once more as an ordinary user.
set -eu
cd "$(dirname "$0")/.."
demo/setup.sh test
bin=${VENV:-.venv}/bin
"$bin/ruff" check --quiet .
"$bin/ruff" format --check --quiet .
"$bin/mypy" --no-error-summary

# A temporary folder of this run's own: pytest would tidy up after earlier ones, and stumble over what a killed run left.
home=$(mktemp -d)
trap 'chmod -R u+rwx "$home"; rm -rf "$home"' EXIT
mkdir "$home/tmp"
TMPDIR="$home/tmp" "$bin/python" -m pytest -q -n 2 "$@"

if [ "$(id -u)" = 0 ]; then
    # What passes as root alone proves nothing for those who have no root. The ordinary user gets a copy of its own, and
    # the system's Python: root's may lie where only root can enter.
    user=65534
    chmod 711 "$home"
    mkdir "$home/user" "$home/user/tmp"
    tar -c --exclude=./.venv --exclude=./.git --exclude=./demo/.state --exclude=__pycache__ . | tar -x -C "$home/user"
    chown -R "$user:$user" "$home/user"
    echo "once more as user $user"
    env -i PATH=/usr/local/bin:/usr/bin:/bin HOME="$home/user" LANG=C.UTF-8 TMPDIR="$home/user/tmp" ${CI:+CI="$CI"} \
        setpriv --reuid "$user" --regid "$user" --clear-groups sh -c '
            cd "$HOME" && demo/setup.sh test && .venv/bin/python -m pytest -q -n 2 "$@"' sh "$@"
fi
