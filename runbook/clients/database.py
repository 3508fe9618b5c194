"""The database server: the only module that imports `psycopg2`.

One connection a role and database, opened when first used. The administrator's password comes from the reader's own
password file (`PGPASSFILE`), never from the cluster, and no password is ever sent: log-in and change both use SCRAM.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runbook.errors import GuideError, Unknown, Unreachable


class PasswordFile:
    """The reader's password file in libpq's format: `host:port:database:user:password`, mode 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def default() -> Path:
        """Return libpq's own place: `PGPASSFILE`, else `~/.pgpass`."""
        return Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")

    def get(self, host: str, port: int, user: str) -> str | None:
        """Return the password for a role at a server, None when there is no line for it."""
        return self._find(self.path, host, port, user)

    def put(self, host: str, port: int, user: str, password: str) -> None:
        """Write the password for a role, in place of the former one, at once or not at all."""
        lines = self._lines(self.path)
        kept = [line for line in lines if not self._matches(line, host, port, user)]
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        self._write(self.path, [f"{host}:{port}:*:{user}:{escaped}", *kept])

    def prepare(self, host: str, port: int, user: str, password: str) -> None:
        """Keep a password beside the file before the server learns of it, so that an interrupt loses nothing."""
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        self._write(self._beside, [f"{host}:{port}:*:{user}:{escaped}"])

    def prepared(self, host: str, port: int, user: str) -> str | None:
        """Return a password that an interrupted change left behind."""
        return self._find(self._beside, host, port, user)

    def settled(self) -> None:
        """Forget the prepared password: it is in the file now."""
        self._beside.unlink(missing_ok=True)

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    @staticmethod
    def _lines(path: Path) -> list[str]:
        try:
            return path.read_text().splitlines()
        except FileNotFoundError:
            return []

    @staticmethod
    def _write(path: Path, lines: list[str]) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write("\n".join(lines) + "\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def _find(cls, path: Path, host: str, port: int, user: str) -> str | None:
        for line in cls._lines(path):
            if cls._matches(line, host, port, user):
                return re.sub(r"\\(.)", r"\1", cls._fields(line)[4])
        return None

    @staticmethod
    def _fields(line: str) -> list[str]:
        return re.split(r"(?<!\\):", line, maxsplit=4)

    @classmethod
    def _matches(cls, line: str, host: str, port: int, user: str) -> bool:
        fields = cls._fields(line)
        return (len(fields) == 5 and not line.startswith("#") and fields[0] in (host, "*")
                and fields[1] in (str(port), "*") and fields[3] in (user, "*"))


class Server:
    """One PostgreSQL server, spoken to with TLS only."""

    def __init__(self, host: str, port: int, addresses: Mapping[str, str], ca: Path | None,
                 before_write: Callable[[], None] = lambda: None) -> None:
        self.host, self.port = host, port
        self.before_write = before_write
        """Called before every statement that changes something."""
        self._ca = ca
        self._address = addresses.get(host) or ("127.0.0.1" if host.endswith(".localhost") else "")
        self._open: dict[tuple[str, str, str], Any] = {}
        self.counted: Counter[str] = Counter()

    def answers(self) -> str:
        """Return "" when PostgreSQL answers here and offers TLS, else what is seen instead."""
        try:
            with socket.create_connection((self._address or self.host, self.port), timeout=5) as connection:
                connection.sendall(struct.pack("!ii", 8, 80877103))  # SSLRequest of the PostgreSQL protocol
                connection.settimeout(5)
                answer = connection.recv(1)
        except OSError as error:
            return f"{self.host}:{self.port} does not answer: {error.strerror or error}"
        words = {b"S": "", b"N": f"{self.host}:{self.port} answers without TLS"}
        return words.get(answer, f"{self.host}:{self.port} is no PostgreSQL server")

    def log_in(self, user: str, password: str, database: str = "postgres") -> Any:
        """Return a connection in autocommit mode (CREATE DATABASE works outside transactions only).

        Raises Unreachable when nothing answers, Unknown with the server's words when it refuses.
        """
        import psycopg2

        key = (user, password, database)
        if key in self._open and not self._open[key].closed:
            return self._open[key]
        address = {"hostaddr": self._address} if self._address else {}
        trust = {"sslmode": "verify-full", "sslrootcert": str(self._ca)} if self._ca else {"sslmode": "require"}
        try:
            asked: dict[str, Any] = {
                "host": self.host, "port": self.port, "user": user, "password": password, "dbname": database,
                "connect_timeout": 10, "application_name": "certhelper-guide", **address, **trust}
            connection = psycopg2.connect(**asked)
        except psycopg2.OperationalError as error:
            text = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
            if "FATAL" in str(error):
                raise Refusal(text.partition("FATAL:")[2].strip() or text) from error
            raise Unreachable(f"{self.host}:{self.port}: {text}", "compare host and port with the instance's DBoD page") from error
        connection.autocommit = True
        self._open[key] = connection
        return connection

    def environment(self, user: str, password: str, database: str) -> dict[str, str]:
        """Return the variables with which a program of PostgreSQL logs in just as `log_in` does."""
        address = {"PGHOSTADDR": self._address} if self._address else {}
        trust = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(self._ca)} if self._ca else {"PGSSLMODE": "require"}
        return {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": user, "PGPASSWORD": password, "PGDATABASE": database,
                "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "certhelper-guide", **address, **trust}

    def query(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        self.counted["query"] += 1
        with self._words(), connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def execute(self, connection: Any, sql: str) -> None:
        """Execute a statement. Raises GuideError with the server's words; a secret is never among them."""
        self.before_write()
        self.counted["statement"] += 1
        with self._words(), connection.cursor() as cursor:
            cursor.execute(sql)

    @contextmanager
    def _words(self) -> Iterator[None]:
        """Turn a refusal into the server's own words; the statement, which may hold a verifier, is not among them."""
        import psycopg2

        try:
            yield
        except psycopg2.Error as error:
            primary = error.diag.message_primary or "the connection broke off"
            raise GuideError(f"{self.host}:{self.port}: {primary}", error.diag.message_hint or "") from None

    def verifier(self, connection: Any, user: str, password: str) -> str:
        """Return the SCRAM verifier of a password, made on this side: the server never sees the password."""
        from psycopg2.extensions import encrypt_password

        return str(encrypt_password(password, user, scope=connection, algorithm="scram-sha-256"))

    def close(self) -> None:
        """Close what is open."""
        for connection in self._open.values():
            connection.close()
        self._open.clear()


class Refusal(Unknown):
    """The server refused the log-in: wrong password, no line in pg_hba.conf, no such database."""

    def __init__(self, text: str) -> None:
        cures = {
            "no encryption": "you came without TLS and only hostssl lines match: set PGSSLMODE=require",
            "SSL encryption": "the address, role or database is not listed in pg_hba.conf: "
                              "`invoke database.access` says what to add",
            "password authentication failed": "put the right password into your password file (PGPASSFILE), "
                                              "one line host:port:*:role:password, mode 0600",
        }
        super().__init__(text, next((cure for sign, cure in cures.items() if sign in text), ""))


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the local CA when there is one, else the system's."""
    return ssl.create_default_context(cafile=str(ca) if ca else None)
