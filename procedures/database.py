"""Setting up the database: a PostgreSQL instance of the Database on Demand service, a role and a database for the app."""

import base64
from collections.abc import Callable
from functools import partial
from typing import Annotated

from procedures import project
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import (
    Admitted,
    Answers,
    Apply,
    Ask,
    Condition,
    Confirm,
    Credential,
    Dump,
    Execute,
    Former,
    LogIn,
    Look,
    Manifest,
    Object,
    Plan,
    Require,
    Restore,
    WaitFor,
    rolled_out,
    secret,
)
from runbook.step import step

PORTAL = "https://dbod.web.cern.ch/"


def administrator(instance: Instance) -> Credential:
    """The password of the role that DBoD gives; it lives in your password file and never in the cluster."""
    db = instance.database
    return Credential("database-administrator", f"password of {db.administrator} at {db.host}:{db.port}", generated=True)


def app_password(instance: Instance) -> Credential:
    """The password with which the app logs in; made once, kept in the project."""
    return Credential("database", f"password of the database role {instance.database.role}",
                      secret=f"{instance.app}-database", key="DJANGO_DATABASE_PASSWORD", generated=True,
                      former=Former("DJANGO_DATABASE_PASSWORD", beside=("DJANGO_DATABASE_USER", instance.database.role)))


def log_ins(instance: Instance) -> tuple[str, str]:
    """Return the two roles that the app logs in as in turns: the owner of its database, and a member that acts as the owner.

    A role has one password, and pods that serve need theirs until fresh pods are there: the other role gets the new one.
    """
    return instance.database.role, f"{instance.database.role}_b"


def log_in(instance: Instance, observed: Observed, *, other: bool = False) -> str:
    """Return the role that the project's Secret names, or the other of the two."""
    live = observed.object("Secret", app_password(instance).secret) or {}
    named = base64.b64decode((live.get("data") or {}).get("DJANGO_DATABASE_USER", "")).decode()
    owner, member = log_ins(instance)
    return member if (named == member) is not other else owner


def served_with(instance: Instance, observed: Observed) -> Condition:
    """Return the state of the Deployment in which every pod has the log-in that the Secret holds now."""
    name = app_password(instance).secret
    live = observed.object("Secret", name) or {}
    mark = f"{name}={live.get('metadata', {}).get('resourceVersion', '')}"
    return Condition("rolled out", partial(_unlike, mark, rolled_out.test), rolled_out.flag,
                     partial(_unlike, mark, rolled_out.failed))


def _unlike(mark: str, otherwise: Callable[[Manifest | None], str], found: Manifest | None) -> str:
    spec = (found or {}).get("spec", {})
    if not spec.get("replicas"):
        return ""
    marks = spec["template"]["metadata"].get("annotations", {}).values()
    return otherwise(found) if any(mark in one.split(",") for one in marks) else "its pods have the former log-in to the database"


@step(
    person=True,
    see="A PostgreSQL server answers with TLS at the host and port of the instance file.",
    otherwise=(
        ("`dbod-… does not answer`, `could not translate host name`, or `connection to server at … failed: Connection …`",
         "Compare host and port with the instance's DBoD page: every instance has a port of its own. From outside CERN the "
         "servers can be reached through a tunnel only."),
        ("`answers without TLS` or `is no PostgreSQL server`",
         "Something else answers at this host and port, or `ssl = on` is missing in the instance's postgresql.conf."),
        ("`server does not support SSL, but SSL was required`", "`ssl = on` is missing in the instance's postgresql.conf."),
        ("The request is refused.", "You must be a member of the e-group `dbondemand-users` first."),
    ),
)
def request(instance: Instance, _observed: Observed) -> Plan:
    """Request a PostgreSQL instance from Database on Demand."""
    db = instance.database
    values: dict[str, str | int] = {"name": db.instance, "type": "PostgreSQL", "owner": instance.site.owner}
    if instance.at == "local":
        values["port"] = db.port  # At CERN the service chooses it, and you copy it into the instance file.
    yield Ask(
        deed=f"Request the PostgreSQL instance {db.instance} with these values; the password of {db.administrator} comes by mail. "
             f"The instance's page shows host {db.host} and port {db.port}; if not, write its own into the instance file.",
        where=PORTAL,
        form="databases",
        values=values,
        until=Answers(db.host, db.port),
        instead="Delete the instance on its DBoD page; its backups go with it.",
    )


@step(
    needs=(project.request, request),
    person=True,
    see="A pod of your project is let in by the server, with TLS.",
    otherwise=(
        ("`no pg_hba.conf entry for host …, no encryption`",
         "You came without TLS and the server wants it: set `PGSSLMODE=require`. The list of addresses may be right."),
        ("`no pg_hba.conf entry for host …, SSL encryption`",
         "The address, the role or the database is not listed: add the line that this step prints."),
        ("`no pg_hba.conf entry for host`, and the end of the message is not known",
         "The server lets in only what its pg_hba.conf lists. The whole message ends with `no encryption` when you came without "
         "TLS, with `SSL encryption` when the address is not listed; this step tells which."),
        ("`cannot be reached from a pod`", "A firewall or a wrong host or port lies between the pods and the server: compare "
                                           "with the instance's DBoD page."),
    ),
    unconfirmed="Which addresses the pods of PaaS come from: the failing line in the server's log "
                "(DBoD page, *Logs*) names the address that must be let in.",
)
def access(instance: Instance, observed: Observed) -> Plan:
    """Let the pods of the project reach the database server, with TLS only."""
    db = instance.database
    yield Ask(
        deed=f"Add `hostssl all all {db.network} scram-sha-256` to pg_hba.conf in the file editor of {db.instance}, "
             "save it, and reload the configuration.",
        where=f"{PORTAL}pages/instance/{db.instance}",
        form="database-access",
        values={"name": db.instance, "network": db.network},
        until=Admitted(db.host, db.port, log_in(instance, observed), db.name, instance.source.builder, instance.app),
        instead="Remove the line again in the same file editor.",
    )


@step(
    needs=(request,),
    see="You can log in with the new password, which is in your password file.",
    otherwise=(
        ("`password authentication failed for user \"admin\"` or `no password of … in …`",
         "Put the password that DBoD mailed into your password file (`PGPASSFILE`), one line "
         "`host:port:*:admin:password`, mode 0600; or set a new one on the DBoD page."),
    ),
)
def password(instance: Instance, observed: Observed) -> Plan:
    """Replace the administrator's password that came by mail."""
    db = instance.database
    mark = "guide: password changed"
    done = f"SELECT 1 FROM pg_roles WHERE rolname = '{db.administrator}' AND 'application_name={mark}' = ANY (rolconfig)"
    marks = f"ALTER ROLE \"{db.administrator}\" SET application_name = '{mark}'"
    if "DJANGO_DATABASE_USER" in observed.former(instance.app):
        # Set up by hand: a person changed the password then, and pods that serve now may log in with it.
        yield Execute(marks, unless=done, instead="The mark stays; it says that the password is not the one from the mail.")
        return
    # The role carries a mark that everybody can read, so that no file has to remember it; both in one transaction.
    yield Execute(
        f"ALTER ROLE \"{db.administrator}\" PASSWORD '{{verifier}}'; {marks}",
        unless=done,
        credential=administrator(instance),
        keep="administrator",
        instead="The former password is not known any more; `--rotate` makes another.",
    )


@step(
    needs=(project.request, password),
    see="The role exists and can log in with the password that the project's Secret holds.",
    otherwise=(
        ("`permission denied to create role`",
         "Your role is not the one that DBoD gave: see `administrator` in the instance file."),
        ("`password authentication failed`, `cannot log in to …` or `the database role … is not known`",
         "The server has another password than the project's Secret: this step sets the Secret's, and `environment.set` gives it "
         "to the pods."),
        ("`is not permitted to log in`",
         "A rotation took this log-in away, and a pod still has it: `environment.set` starts pods with the present one."),
        ("`no pod has the log-in that gets another password`",
         "A rotation is half done: `environment.set` gives its password to the pods. Then rotate again."),
    ),
)
def role(instance: Instance, observed: Observed) -> Plan:
    """Create the role that owns the app's database, so that the app is not the administrator."""
    db = instance.database
    credential = app_password(instance)
    renewed = observed.rotating() and observed.object("Secret", credential.secret) is not None
    owner, member = log_ins(instance)
    name = log_in(instance, observed, other=renewed)
    if renewed:
        now = served_with(instance, observed).test(observed.object("Deployment", instance.app))
        yield Require("no pod has the log-in that gets another password", now and f"Deployment {instance.app}: {now}",
                      f"`invoke environment.set --build={instance.name}` first: those pods would be shut out")
    there = " OR ".join(f"rolname = '{one}'" for one in (owner, member))
    yield Execute(f'CREATE ROLE "{owner}" LOGIN', unless=f"SELECT 1 FROM pg_roles WHERE rolname = '{owner}'",
                  undo=f'DROP ROLE IF EXISTS "{member}", "{owner}"', data=True,
                  undo_unless=f"SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE {there})")
    if name == member:
        # What it makes belongs to the owner, because it acts as the owner from its log-in on.
        yield Execute(f'CREATE ROLE "{member}" LOGIN; ALTER ROLE "{member}" SET role = "{owner}"',
                      unless=f"SELECT 1 FROM pg_roles WHERE rolname = '{member}'",
                      instead=f"The role {member} goes with the role {owner}.")
    # Since PostgreSQL 16 a role that is not a superuser must be a member of the owner whom it names.
    for one in [db.administrator, *([member] if name == member else [])]:
        yield Execute(f'GRANT "{owner}" TO "{one}"',
                      unless="SELECT 1 FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid "
                             "JOIN pg_roles a ON a.oid = m.member "
                             f"WHERE r.rolname = '{owner}' AND a.rolname = '{one}' "
                             "AND coalesce((to_jsonb(m) ->> 'set_option')::bool, true)",
                      instead=f"The membership of {one} goes with the role {owner}.")
    # The Secret comes before the password: killed in between, the next run finds the password and sets the same one.
    yield Apply(secret(credential.secret, {
        "DJANGO_DATABASE_ENGINE": "django.db.backends.postgresql", "DJANGO_DATABASE_NAME": db.name,
        "DJANGO_DATABASE_HOST": db.host, "DJANGO_DATABASE_PORT": str(db.port),
        "DJANGO_DATABASE_USER": name, credential.key: credential}))
    yield Execute(f"ALTER ROLE \"{name}\" LOGIN PASSWORD '{{verifier}}'", unless=LogIn(name, credential), credential=credential)


def retired(instance: Instance, observed: Observed) -> Execute:
    """Return the order to take the former log-in away, once no pod has it any more."""
    former = log_in(instance, observed, other=True)
    return Execute(f'ALTER ROLE "{former}" NOLOGIN',
                   unless=f"SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{former}' AND rolcanlogin)",
                   after=WaitFor(Object("Deployment", instance.app), served_with(instance, observed), alone=True),
                   instead="`invoke database.role --rotate` gives the role a password again.")


@step(
    needs=(role,),
    see="The database exists and belongs to the app's role.",
    otherwise=(
        ("`database \"admin\" does not exist`", "`psql` without `-d` goes to a database named like the role: add `-d postgres`."),
        ("`FATAL:  database … does not exist`", "Nobody made the database yet: this step does."),
        ("`permission denied for schema public` or `must be owner of`",
         "The tables or the database belong to another role: this step hands them over to the app's."),
        ("`relation … does not exist`", "Django has not made its tables yet: the app's start script migrates. The pod's log says "
                                        "why it did not."),
    ),
)
def create(instance: Instance, _observed: Observed) -> Plan:
    """Create the app's database; Django makes the tables in it."""
    db = instance.database
    there = f"SELECT 1 FROM pg_database WHERE datname = '{db.name}'"
    yield Execute(f'CREATE DATABASE "{db.name}" OWNER "{db.role}"', unless=there,
                  undo=f'DROP DATABASE IF EXISTS "{db.name}" WITH (FORCE)', data=True,
                  undo_unless=f"SELECT 1 WHERE NOT EXISTS ({there})")
    yield Execute(f'ALTER DATABASE "{db.name}" OWNER TO "{db.role}"',
                  unless=f"{there} AND pg_get_userbyid(datdba) = '{db.role}'")
    # Where somebody dropped the role, its tables went to the administrator: the app's role gets them back. Table by table,
    # because REASSIGN OWNED would also hand over the administrator's other databases on the server.
    theirs = ("SELECT relname FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S') "
              f"AND pg_get_userbyid(relowner) = '{db.administrator}' "
              # A sequence of a column goes with its table.
              "AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype IN ('a', 'i'))")
    yield Execute(f"DO $$ DECLARE name text; BEGIN FOR name IN {theirs} LOOP "
                  f"EXECUTE format('ALTER TABLE public.%I OWNER TO %I', name, '{db.role}'); END LOOP; END $$", database=db.name,
                  unless=f"SELECT 1 WHERE NOT EXISTS ({theirs})",
                  instead="The tables stay with the role that owns the database.")


def dumped(instance: Instance, observed: Observed, because: str) -> Dump:
    """Return the order to dump the app's database, as the app's role."""
    return Dump(instance.database.name, log_in(instance, observed), app_password(instance), because)


@step(
    operation=True,
    needs=(create,),
    see="The path of the dump and its size.",
    otherwise=(
        ("`there is no pg_dump` or `there is no pg_restore`",
         "The program is not on this machine: `dnf install postgresql` or `apt install postgresql-client`, at least of the "
         "server's version. On a machine that is not yours, name a folder that has it: `RUNBOOK_POSTGRESQL_PROGRAMS`."),
        ("`is of version …, and the server of …`",
         "A dump is made by a `pg_dump` that is as new as the server, or newer. Install that one, and name its folder: "
         "`RUNBOOK_POSTGRESQL_PROGRAMS`."),
        ("`database.backup: … No space left on device`",
         "The disk is full and no half file was left. Name another folder as `backups` below [database]."),
        ("`no dump was made`", "The database was only read, and no half file is left; the message has the server's words."),
    ),
)
def backup(instance: Instance, observed: Observed) -> Plan:
    """Write a dump of the app's database to a file on your machine."""
    yield dumped(instance, observed, "asked for")


@step(
    operation=True,
    needs=(create,),
    see="The database is as it was when the dump was made, and the app runs again.",
    otherwise=(
        ("`cannot be restored, nothing was changed` or `a dump can be read: …`",
         "The file is broken or no dump: take another one."),
        ("`is as it was, the restore was taken back whole`",
         "The server refused a statement, and the message says why: with `lock timeout` another session holds a table; with "
         "`must be owner` something in the database belongs to another role."),
    ),
)
def restore(instance: Instance, observed: Observed, *,
            file: Annotated[str, "The dump, a file that `database.backup` wrote."] = "") -> Plan:
    """Put a dump in the place of what is in the app's database, all or nothing."""
    db = instance.database
    yield Require("a dump can be read", "" if observed.empty else observed.dump(file),
                  f"name one: `invoke database.restore --build={instance.name} --file=FILE`", given=True)
    yield Confirm(f"Everything in the database {db.name} of {instance.name} is replaced by what is in {file or 'FILE'}, "
                  "and the site is away meanwhile.", typed=True)
    yield Restore(db.name, log_in(instance, observed), app_password(instance), file or "FILE", instance.app)
    if observed.empty or (observed.object("Deployment", instance.app) or {}).get("spec", {}).get("replicas"):
        yield Look(instance.url, "/", what="the home page")
