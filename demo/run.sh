#!/bin/sh
# Run the demo worker from a URL, confined, and show what it may and may not do.
#   REDIS_URL       a Redis to use instead of an embedded one
#   WORKER_URL, WORKER_VERSION   a worker to fetch instead of serving demo/worker.py on loopback
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"$here/setup.sh" embedded
exec "${VENV:-$here/../.venv}/bin/python" "$here/demo.py" run
