#!/bin/sh
# Run the demo worker from a URL, confined, and show what it may and may not do.
#   --keep          leave Redis and the worker running, and print what to type; demo/clean.sh ends them
#   REDIS_URL       a Redis to use instead of an embedded one
#   WORKER_TYPE, WORKER_URL, WORKER_VERSION, WORKER_DENO_OPTIONS
#                   these fields of the hash; without WORKER_URL, demo/worker.py is served on loopback
#   DEMO_STATE      a folder for the demo's own policy, cache and pins, instead of demo/.state
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"$here/setup.sh" demo
exec "${VENV:-$here/../.venv}/bin/python" "$here/demo.py" run "$@"
