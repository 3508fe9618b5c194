"""The database server of the compose stack: what `stack/postgres.py` does there, done in the container.

There is one server, so one instance at a time. Its certificate, its pg_hba.conf and its DBA's first password lie in the
state folder as those of the embedded stack do; `dbod reload` in the container takes them over.
"""

from __future__ import annotations

import shutil

from stack import certificates
from stack.compose import engine
from stack.errors import StackError
from stack.state import State

HBA = """# Who may connect, from where, how: as in DBoD's file editor. Nobody comes in without TLS.
# TYPE  DATABASE  USER      ADDRESS         METHOD
local   all       postgres                  peer
# This machine comes from the address that it has in the container's network, and so do the pods behind HAProxy.
hostssl all       all       127.0.0.1/32    scram-sha-256
hostssl all       all       samenet         scram-sha-256
"""

CLEAN = """
SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'
\\gexec
SELECT format('DROP OWNED BY %I CASCADE', rolname) FROM pg_roles WHERE rolname <> 'postgres' AND rolname NOT LIKE 'pg\\_%'
\\gexec
SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname <> 'postgres' AND rolname NOT LIKE 'pg\\_%'
  ORDER BY rolname = 'admin'
\\gexec
"""


def write_files(state: State, host: str = "localhost") -> None:
    """Write what the container takes over: certificate for a host name, key, CA, pg_hba.conf of the instance or the first."""
    certificate, key = certificates.issue(state, "compose-postgres", [host, "127.0.0.1"])
    state.write("compose/postgres/server.crt", certificate.read_text())
    state.write("compose/postgres/server.key", key.read_text())
    state.write("compose/postgres/ca.crt", state.ca.read_text())
    kept = next(iter(state.databases.glob("*/pg_hba.conf")), None)
    state.write("compose/postgres/pg_hba.conf", kept.read_text() if kept else HBA)


def initialise(state: State, name: str, host: str, port: int) -> None:
    """Make the server the instance `name`; raises StackError when it is another already."""
    others = [each.parent.name for each in state.databases.glob("*/server.json") if each.parent.name != name]
    if others:
        raise StackError(f"the compose stack has one database server, and it is {others[0]}; delete that instance first, or use "
                         "the embedded stack, which has several")
    folder = state.databases / name
    shutil.rmtree(folder, ignore_errors=True)
    ports = state.ports.databases
    if port and port not in ports:
        raise StackError(f"no database instance can have the port {port}; there are {', '.join(map(str, ports))}")
    where = folder.relative_to(state.root)
    state.write(f"{where}/pg_hba.conf", HBA)
    state.write(f"{where}/first-password", state.path("compose", "admin-password").read_text())
    write_files(state, host)
    here = engine.find(state)
    here.execute("postgres", "dbod", "reload", user="root")
    verifier = state.path("compose", "postgres-admin").read_text().strip()
    # It is there after the first start; gone after the instance was deleted.
    make = (f"SELECT 'CREATE ROLE admin LOGIN CREATEDB CREATEROLE PASSWORD ' || quote_literal('{verifier}') "
            "WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'admin')\n\\gexec\n")
    _sql(here, f"SET log_statement = 'none';\n{make}")
    slot = ports.index(port) if port else 0
    state.write_json(f"{where}/server.json", {"name": name, "slot": slot, "port": ports[slot]})


def reload(state: State) -> None:
    """Let the server read its pg_hba.conf again."""
    write_files(state, _host_of(state))
    engine.find(state).execute("postgres", "dbod", "reload", user="root")


def clean(state: State) -> None:
    """Remove every database and role, as a deleted instance leaves nothing."""
    _sql(engine.find(state), CLEAN)


def _host_of(state: State) -> str:
    name = next((each.parent.name for each in state.databases.glob("*/server.json")), "")
    return f"dbod-{name.replace('_', '-')}.localhost" if name else "localhost"


def _sql(here: engine.Engine, script: str) -> None:
    """Run a script as the server's superuser, by its socket; it travels by standard input, never as an argument."""
    here.execute("postgres", "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--set=ON_ERROR_STOP=1", "--dbname=postgres",
                 user="postgres", text=script)
