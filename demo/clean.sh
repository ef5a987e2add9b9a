#!/bin/sh
# End the demo's worker, if one runs, and remove what the demo made: its keys in REDIS_URL and demo/.state.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -n "${REDIS_URL:-}" ]; then
    "$here/setup.sh" embedded
    "${VENV:-$here/../.venv}/bin/python" "$here/demo.py" clean
fi
rm -rf "$here/.state"
echo "clean" >&2
