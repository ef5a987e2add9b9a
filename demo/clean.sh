#!/bin/sh
# End what demo/run.sh left running, and remove what it made: its keys in Redis and demo/.state.
#   REDIS_URL, WORKER_TYPE, DEMO_STATE   as they were given to demo/run.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
state=${DEMO_STATE:+$DEMO_STATE/demo-state}
state=${state:-$here/.state}
if [ -n "${REDIS_URL:-}" ] || [ -e "$state/kept.json" ]; then
    "$here/setup.sh" demo
    "${VENV:-$here/../.venv}/bin/python" "$here/demo.py" clean
fi
rm -rf "$state"
echo "clean" >&2
