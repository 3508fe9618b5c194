#!/bin/sh
# What the PostgreSQL image's own entry point does: as root it becomes postgres (`gosu`), then makes the databases once, runs
# the scripts given to it, and starts the server.
set -eu
if [ "$(id -u)" = 0 ]; then
    exec $STAND_IN_GOSU "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # shellcheck disable=SC2086
    initdb -D "$PGDATA" -U postgres --no-sync --no-instructions $POSTGRES_INITDB_ARGS
    : > "$PGDATA/postgresql.conf"
    server=$1; shift
    "$server" -D "$PGDATA" "$@" --listen_addresses='' &
    until pg_isready --quiet; do sleep 0.1; done
    sh "$DBOD_INIT"
    kill -INT "$(head -n 1 "$PGDATA/postmaster.pid")"; wait
    set -- "$server" "$@"
fi
server=$1; shift
exec "$server" -D "$PGDATA" "$@" --listen_addresses=127.0.0.1
