#!/bin/sh
# All tests: style, types, then the suite; as root, the suite runs once more as an ordinary user.
set -eu
CDPATH= cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
if [ -z "${SANDBOXRUN_TESTS_FOLDER:-}" ]; then
    demo/setup.sh test
    "$bin/ruff" check --quiet .
    "$bin/ruff" format --check --quiet .
    "$bin/mypy" --no-error-summary
    # In a temporary folder of this run's own: pytest would tidy up after earlier ones, and stumble over what a killed run
    # left. Whatever the caller's environment says stays outside, but for what pip needs.
    exec "$bin/python" -I tests/tools/contained.py --keep VENV --keep CHAOS_REQUESTS --keep http_proxy --keep https_proxy \
        --keep PIP_INDEX_URL --keep PIP_CONFIG_FILE tests/run.sh "$@"
fi

# Four at once on two cores: most tests wait for a process, a time-out or a fault, and not for a processor. They steal
# work, because a file of slow tests would keep one of them for minutes after the others have finished.
# What takes the whole machine for a moment, such as a fork bomb, runs alone at the end.
home=$SANDBOXRUN_TESTS_FOLDER
mkdir "$home/tmp"
chmod 711 "$home" # PostgreSQL does not run as root, and has to enter it
once=""
together=""
[ $# -gt 0 ] || together="-m not(alone)"
if [ "$(id -u)" = 0 ] && [ $# = 0 ]; then
    # What root pastes, sends, reads or is shown is no other than what the ordinary user does below: root's part has the
    # boundary, the installer, and what reads or leaves files, processes and users of Redis.
    once="--ignore=tests/specs --ignore=tests/suite/test_distributions.py --ignore=tests/packages/test_popular.py \
        --ignore=tests/redis/messages --ignore=tests/unit/test_layer_checker.py \
        --deselect=tests/faults/test_fault_matrix.py::test_nothing_is_lost_nor_answered_twice_and_no_worker_ends"
    for name in 'client*' 'dev*' documented 'first_minutes*' 'look_*' 'loop*' walk picture behaviours promise fairness \
        'postgres*' 'sync*' values payloads refs responses transport unsendable mistakes completion redish by_hand \
        example_workers calls \
        call_traces 'effects*' 'services*' otel_export stream_repair agent_mistakes reconnect; do
        once="$once --ignore-glob=tests/redis/test_$name.py"
    done
fi
set -f # a pattern is pytest's to expand
# shellcheck disable=SC2086 # several words
TMPDIR="$home/tmp" "$bin/python" -m pytest -q -n 4 --dist worksteal --durations=12 $together $once "$@"
# shellcheck disable=SC2086
[ $# -gt 0 ] || TMPDIR="$home/tmp" "$bin/python" -m pytest -q -m alone $once
set +f

if [ "$(id -u)" = 0 ]; then
    # What passes as root alone proves nothing for those who have no root. The ordinary user gets a copy of its own, and
    # the system's Python: root's may lie where only root can enter.
    user=65534
    mkdir "$home/user" "$home/user/tmp"
    tar -c --exclude=./.venv --exclude=./.git --exclude=./demo/.state --exclude=__pycache__ . | tar -x -C "$home/user"
    chown -R "$user:$user" "$home/user"
    echo "once more as user $user"
    unset VENV
    PATH=/usr/local/bin:/usr/bin:/bin HOME="$home/user" TMPDIR="$home/user/tmp" \
        setpriv --reuid "$user" --regid "$user" --clear-groups sh -euc '
            cd "$HOME" && demo/setup.sh test
            [ $# = 0 ] || exec .venv/bin/python -m pytest -q -n 4 --dist worksteal "$@"
            .venv/bin/python -m pytest -q -n 4 --dist worksteal --durations=12 -m "not alone"
            .venv/bin/python -m pytest -q -m alone' sh "$@"
fi
