#!/bin/sh
# Makes the DBA role as DBoD gives it: may make databases and roles, is no superuser. The image runs it once, as postgres, by socket.
# The secret is a SCRAM verifier: neither the server nor its log ever sees the password.
set -eu
verifier=$(cat "${DBOD_PRIVATE:-/var/lib/postgresql/dbod}/postgres-admin")
psql --no-psqlrc --set=ON_ERROR_STOP=1 --quiet --dbname=postgres --username=postgres <<SQL
SET log_statement = 'none';
CREATE ROLE admin LOGIN CREATEDB CREATEROLE PASSWORD '$verifier';
SQL
