"""An instance: the settings of one deployment, read from `instances/<build>.toml` and checked key by key.

The dataclasses below are the one description of the file: names, types, defaults and meaning. A file describes the
real thing at CERN; its `[local]` table overrides keys for the local stack, with `{https_port}` and the like filled in.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from runbook.errors import WrongUse

_hints = functools.cache(get_type_hints)
"""Of a class; every command reads each instance file, table by table."""


def about(meaning: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field whose meaning the reference page shows."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"about": meaning})
    return field(default=default, metadata={"about": meaning})


@dataclass(frozen=True, kw_only=True)
class Site:
    """The web site request: what the form at the Web Services portal asks for."""

    owner: str = about("Account that owns the site; a service account outlives people.")
    type: str = about("Site type in the form.", default="PaaS Web Application")
    category: Literal["Official", "Personal", "Test"] = about("Test sites cannot be exposed.", default="Official")
    description: str = about("One sentence for the form.", default="Certification helper of the CMS tracker group")
    administrators: str = about("E-group whose members administer the site.", default="")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where the app's source is and how it is built."""

    repository: str = about("Address of the Git repository.")
    branch: str = about("Branch that this instance runs.", default="master")
    folder: str = about("Folder of the app inside the repository.", default="")
    private: bool = about("Whether cloning needs a user and token.", default=False)
    builder: str = about("Builder image: name:tag of an image stream in the namespace openshift.",
                         default="python:3.12-ubi9")
    private_packages: str = about("Host whose private Git packages pip installs, empty for none.", default="")


@dataclass(frozen=True, kw_only=True)
class Database:
    """The PostgreSQL instance of the Database on Demand service (DBoD)."""

    host: str = about("Host name from the DBoD page of the instance.")
    port: int = about("Port from the DBoD page; every instance has its own.")
    instance: str = about("Name of the DBoD instance.")
    name: str = about("Name of the app's database.", default="certhelperdb")
    role: str = about("Role that owns the database and that the app logs in as.", default="certhelper")
    administrator: str = about("The role that DBoD gives you.", default="admin")
    network: str = about("Who must be let in: the network of the cluster's nodes, for pg_hba.conf.",
                         default="188.184.0.0/15")
    backups: str = about("Folder on your machine for its dumps; empty for the usual one, which `database.backup` names.",
                         default="")
    keep: int = about("How many dumps are kept; the oldest goes when another is complete. 0 keeps all.", default=10)


@dataclass(frozen=True, kw_only=True)
class Redis:
    """The Redis server beside the app."""

    name: str = about("Name of its objects and its host name.", default="redis")
    version: str = about("Tag of the image stream redis in the namespace openshift.", default="7-el9")
    memory: str = about("Memory limit.", default="512Mi")


@dataclass(frozen=True, kw_only=True)
class Eos:
    """The project's EOS storage in the app's pods."""

    path: str = about("Folder of EOS that the app needs, such as `/eos/project/t/tkdqmdoc`; empty for no EOS.", default="")
    file: str = about("A file below `path` that is read as a proof; empty to list the folder instead.", default="")
    account: str = about("Account that may read it; empty for the owner of the site.", default="")
    mount: str = about("Where EOS stands in the pods.", default="/eos")
    read_only: bool = about("Whether the app may only read.", default=False)
    patience: int = about("Seconds that a slow or late EOS is waited for.", default=300)
    claim: str = about("Name of the claim.", default="eos-volume")
    storage_class: str = about("Storage class of the claim.", default="eos")
    secret: str = about("Name of the Secret with account and password.", default="eos-credentials")
    secret_type: str = about("Type of that Secret, which cannot be changed later; empty for the one it has, or Opaque.",
                             default="")
    keys: Literal["both", "keytab-user", "KEYTAB_USER"] = about(
        "Which keys the Secret has: the form that begins with this one, or both.", default="both")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume that the project's pods share."""

    mount: str = about("Where it stands in the app's pods, such as `/shared`; empty for no shared volume.", default="")
    claim: str = about("Name of the claim.", default="shared")
    storage_class: str = about("Storage class of the claim; it must let several pods write.", default="cephfs-no-backup")
    size: str = about("Its size, with a unit.", default="1Gi")


@dataclass(frozen=True, kw_only=True)
class Nginx:
    """A proxy before the app."""

    wanted: bool = about("Whether requests go through nginx.", default=False)
    version: str = about("Tag of the image stream nginx in the namespace openshift.", default="1.26-ubi9")
    upload: str = about("Largest request body.", default="10m")


@dataclass(frozen=True, kw_only=True)
class Expose:
    """Who may visit the site."""

    internet: bool = about("Whether the whole Internet may, and not only CERN.", default=False)


@dataclass(frozen=True, kw_only=True)
class SignOn:
    """The registration at the application portal."""

    identifier: str = about("Application identifier: lower case, 3 to 32 characters; one per instance.")
    issuer: str = about("Issuer of the sign-on tokens.", default="https://auth.cern.ch/auth/realms/cern")
    callback: str = about("Path that the app serves for the way back from sign-on; unless another is written here, it follows from "
                          "the branch's version of django-allauth and its settings, as far as they tell.",
                          default="/accounts/oidc/cern/login/callback/")
    way: Literal["portal", "return-uri"] = about(
        "Whose registration: `portal` is one of the app's own, that a person makes; `return-uri` is the one that the "
        "platform keeps for the project, without a form.", default="portal")


@dataclass(frozen=True, kw_only=True)
class Deploy:
    """How the app runs."""

    replicas: int = about("Number of pods; the start script migrates, so keep 1.", default=1)
    timeout: str = about("How long a request may take at the router.", default="5m")
    memory: str = about("Memory limit of a pod.", default="1Gi")
    static: str = about("A static file whose answer proves that static files are served.",
                        default="/static/home/css/style.css")
    websocket: str = about("Websocket path that echoes; empty when there is none to try.", default="")
    proof: str = about("A page that proves the database works; empty for the home page.", default="/")
    image: str = about("Where the image comes from: `build` builds the branch; `promote:NAME` takes the image that the "
                       "instance NAME runs.", default="build")
    when: str = about("When an app that runs may be replaced; whoever deploys is asked about it.", default="")
    ask: str = about("Who must be asked before; whoever deploys is asked whether that was done.", default="")
    backup: bool = about("Whether the database is dumped before an app that runs is replaced.", default=False)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Builds that start by the clock."""

    cron: str = about("When, as `minute hour day month weekday`; empty for never.", default="")
    zone: str = about("The time zone of `cron`.", default="Europe/Zurich")


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One deployment: dev, training or production."""

    project: str = about("Name of the project (namespace) on OpenShift.")
    app: str = about("Name of the app's objects: Deployment, Service, Route, image stream, build config.")
    host: str = about("Host name of the site, without https://.")
    api: str = about("Address of the API server of the real instance.", default="https://api.paas.okd.cern.ch:443")
    target: Literal["", "local", "cern"] = about("Where commands go when neither --target nor RUNBOOK_TARGET says.",
                                                 default="")
    site: Site = about("The web site request.")
    source: Repository = about("The app's source.")
    database: Database = about("The database.")
    redis: Redis = about("The Redis server.", default=Redis())
    sso: SignOn = about("The single sign-on.")
    deploy: Deploy = about("How the app runs.", default=Deploy())
    eos: Eos = about("The EOS storage.", default=Eos())
    volume: Volume = about("The shared volume.", default=Volume())
    nginx: Nginx = about("A proxy before the app.", default=Nginx())
    expose: Expose = about("Who may visit the site.", default=Expose())
    schedule: Schedule = about("Builds that start by the clock.", default=Schedule())
    environment: Mapping[str, str] = about("Further variables of the app, none of them secret.", default={})
    secrets: Mapping[str, str] = about("Further secret variables: the name and what it is; the guide asks for the value.",
                                       default={})
    name: str = field(default="", metadata={})
    """The build: the stem of the file."""
    path: Path = field(default=Path(), metadata={})
    at: str = field(default="cern", metadata={})
    """The target that these settings are for: `local` or `cern`."""
    port: int = field(default=0, metadata={})
    """The router's HTTPS port when it is not 443."""

    @property
    def url(self) -> str:
        """The address of the app, without a slash at the end."""
        return f"https://{self.host}" + (f":{self.port}" if self.port else "")


def folder_of_instances() -> Path:
    """Return the folder of the instance files: `RUNBOOK_INSTANCES`, else the project's own."""
    return Path(os.environ.get("RUNBOOK_INSTANCES") or Path(__file__).parent.parent / "instances")


def builds(folder: Path) -> list[str]:
    """Return the names of the instances in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find(folder: Path, build: str) -> Path:
    """Return the file of a build. Raises WrongUse that names the builds there are."""
    from runbook.step import suggestion

    known = builds(folder)
    if build not in known:
        raise WrongUse(f"there is no build {build!r} in {folder.name}/", suggestion(build, known))
    return folder / f"{build}.toml"


def load(path: Path, target: str = "cern", facts: Mapping[str, Any] | None = None) -> Instance:
    """Read an instance file for a target; `facts` fill the braces in `[local]`.

    Raises WrongUse with file and line for a broken file, an unknown or missing key and a value of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise WrongUse(f"{path}: {error.strerror}", "an instance file is a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise WrongUse(f"{where}: not valid TOML: {error}", "mend the line; https://toml.io shows the form") from error
    local = table.pop("local", {})
    reader = _Reader(path, text)
    if not isinstance(local, dict):
        raise reader.wrong("local", "is a table of overrides")
    reader.build(Instance, _merged(table, {}), "")
    if target == "local":
        reader.local = True
        table = _merged(table, _filled(local, facts or {}, reader))
    made: Instance = reader.build(Instance, table, "")
    if not re.fullmatch(r"build|promote:[\w-]+", made.deploy.image):
        raise reader.wrong("deploy.image", f"must be 'build' or 'promote:NAME', found {made.deploy.image!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{2,31}", made.sso.identifier):
        raise reader.wrong("sso.identifier", f"must begin with a lower case letter and have 3 to 32 of a-z, 0-9, _ and -, found "
                           f"{made.sso.identifier!r}")
    _check_storage(made, reader)
    port = int((facts or {}).get("https_port", 0)) if target == "local" else 0
    return dataclasses.replace(made, name=path.stem, path=path, at=target, port=port)


UNITS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def size_of(text: str) -> float:
    """Return a size as Kubernetes writes it (`1`, `512Mi`, `2G`) in bytes; 0 for what is none."""
    found = re.fullmatch(r"([0-9.]+)([kKMGTP]i?|)", text)
    return float(found[1]) * UNITS.get(found[2], 0) if found else 0


def _check_storage(made: Instance, reader: _Reader) -> None:
    """Raise WrongUse when a path or a size can mean nothing sensible."""
    eos, shared = made.eos, made.volume
    if eos.path and not (eos.path + "/").startswith(eos.mount.rstrip("/") + "/"):
        raise reader.wrong("eos.path", f"must lie below {eos.mount}, where EOS is mounted, found {eos.path!r}")
    if eos.patience < 1:
        raise reader.wrong("eos.patience", f"must be at least 1 second, found {eos.patience}")
    if shared.mount and not re.fullmatch(r"/[^:]+", shared.mount):
        raise reader.wrong("volume.mount", f"must be a path that begins with /, found {shared.mount!r}")
    if not re.fullmatch(r"[1-9][0-9]*[KMGT]i?", shared.size) or size_of(shared.size) < UNITS["Mi"]:
        raise reader.wrong("volume.size", f"must be at least 1Mi and have a unit, found {shared.size!r}",
                           "write it as 1Gi; a number alone is bytes")


@dataclass
class _Reader:
    """Builds dataclasses from tables and knows the line of every key, for messages."""

    path: Path
    text: str
    local: bool = False
    """Whether the rest of the file was found good, so that what is wrong stands in [local]."""

    def wrong(self, key: str, why: str, cure: str = "") -> WrongUse:
        return WrongUse(f"{self.path}:{self.line(key)}: {key} {why}", cure)

    def line(self, key: str) -> int:
        """Return the line of `table.key`, of its table when the key is missing, else 1; [local] first once it is read."""
        places = [f"local.{key}", key] if self.local else [key]
        return next((line for place in places if (line := self._line(place))), 1)

    def _line(self, key: str) -> int:
        table, _, leaf = key.rpartition(".")
        current, table_line = "", 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[([^\]]+)\]", line):
                current = header[1].strip()
                if current in (key, table):
                    table_line = number
            elif current == table and re.match(rf"\s*\"?{re.escape(leaf)}\"?\s*[=.]", line):
                return number
        return table_line

    def build(self, form: type, table: Mapping[str, Any], prefix: str) -> Any:
        hints = _hints(form)
        fields = {f.name: f for f in dataclasses.fields(form) if f.metadata}
        for key in table:
            if key not in fields:
                from runbook.step import suggestion
                raise self.wrong(prefix + key, "is not a setting", suggestion(key, fields))
        values = {}
        for name, described in fields.items():
            if name in table:
                values[name] = self.value(hints[name], table[name], prefix + name)
            elif described.default is dataclasses.MISSING and described.default_factory is dataclasses.MISSING:
                raise self.wrong(prefix + name, "is missing", f"add it: {described.metadata['about']}")
        return form(**values)

    def value(self, hint: Any, value: Any, key: str) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, dict):
                raise self.wrong(key, f"must be a table [{key}], found {value!r}")
            return self.build(hint, value, key + ".")
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise self.wrong(key, f"must be one of {', '.join(map(repr, get_args(hint)))}, found {value!r}")
        elif isinstance(hint, types.GenericAlias) or get_origin(hint) is not None:
            if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
                raise self.wrong(key, "must be a table of texts", 'numbers and booleans go in quotes: DJANGO_DEBUG = "False"')
        elif type(value) is not hint:
            words = {str: "a text in quotes", int: "a whole number", bool: "true or false"}
            raise self.wrong(key, f"must be {words[hint]}, found {value!r}")
        return value


def _merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _filled(value: Any, facts: Mapping[str, Any], reader: _Reader, key: str = "local") -> Any:
    """Fill `{fact}` in the texts of `[local]`; a text that is one fact becomes that fact, number or not."""
    if isinstance(value, dict):
        return {name: _filled(inner, facts, reader, f"{key}.{name}") for name, inner in value.items()}
    if not isinstance(value, str):
        return value
    try:
        whole = re.fullmatch(r"\{(\w+)\}", value)
        variable = key.startswith("local.environment.")  # A variable is a text, whatever the fact is.
        return facts[whole[1]] if whole and not variable else value.format(**facts)
    except ValueError as error:
        raise reader.wrong(key, f"cannot be filled in: {error}", "write a brace that is meant as one twice") from error
    except (KeyError, IndexError) as error:
        raise reader.wrong(key, f"names {error}, which the stack does not give",
                           "it gives " + ", ".join(sorted(facts))) from error
