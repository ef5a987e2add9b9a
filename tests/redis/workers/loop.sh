#!/bin/sh
# What agents replace: it takes an id of type $1, runs the worker, and pushes the id again once the worker has ended.
cli() { redis-cli -p "$REDIS_PORT" "$@"; } # with REDISCLI_AUTH
while id=$(cli BLMOVE "$1:start:q" "$1:started:q" RIGHT LEFT 5); do
    [ -n "$id" ] || continue
    "$SANDBOXRUN" "$1" "$id" </dev/null
    cli HDEL "$1:$id:h" pid >/dev/null
    cli LREM "$1:started:q" 1 "$id" >/dev/null
    cli LPUSH "$1:start:q" "$id" >/dev/null
done
