"""Setup environmental variables: every variable of the app, where its value comes from, and whether any is missing.

Variables stand on the Deployment. On the build config they would become part of the image, passwords included.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from procedures import app, database, redis, source, sso
from runbook.instance import Instance
from runbook.observed import File, Observed
from runbook.plan import Apply, Credential, Former, Manifest, Object, Plan, Require, Revision, WaitFor, rolled_out, secret
from runbook.step import step

Need = Literal["required", "optional", "obsolete", "trap"]
Kind = Literal["plain", "secret", "build"]

REVISIONS = "guide/secrets"
"""The annotation of the pod template that carries the revisions of the Secrets that the environment refers to."""


@dataclass(frozen=True)
class Key:
    """A value by reference: a key of a Secret in the project."""

    secret: str
    key: str
    optional: bool = False
    """Whether the variable is left out when the key is not there."""


Value = str | Key | Credential
"""What a variable is set to: a text, a key of another step's Secret, or a credential that `set` keeps itself."""


@dataclass(frozen=True)
class Variable:
    """A variable of the app: what it means, who reads it, and what the guide sets it to."""

    name: str
    meaning: str
    need: Need
    kind: Kind
    read: str
    """Where it is read: a module of the app, or a library."""
    source: str
    """Where its value comes from, in the reader's words."""
    value: Callable[[Instance], Value] | None = None
    """What the guide sets; None leaves it to the instance file."""


def _database(key: str) -> Callable[[Instance], Value]:
    return lambda instance: Key(database.app_password(instance).secret, key)


def _sso(credential: Callable[[Instance], Credential]) -> Callable[[Instance], Value]:
    return lambda instance: Key(credential(instance).secret, credential(instance).key)


def _own(name: str, label: str, *, generated: bool = False, optional: bool = False) -> Callable[[Instance], Value]:
    """Return a value that `set` keeps in its own Secret; on the local stack nobody can know it, so it is made up."""
    return lambda instance: Credential(
        name.lower().replace("_", "-"), label, secret=own_secret(instance), key=name,
        generated=generated or (instance.at == "local" and not optional), optional=optional, former=Former(name))


def own_secret(instance: Instance) -> str:
    """Return the name of the Secret for the values that no other step makes."""
    return f"{instance.app}-environment"


VARIABLES = (
    Variable("DJANGO_SECRET_KEY", "Signs sessions and tokens; another one signs everybody off.", "required", "secret",
             "settings", "made once", _own("DJANGO_SECRET_KEY", "secret key of Django", generated=True)),
    Variable("DJANGO_ALLOWED_HOSTS", "The one host name that the app answers to; 127.0.0.1 is always added.",
             "required", "plain", "settings", "`host` of the instance file", lambda instance: instance.host),
    Variable("CSRF_TRUSTED_ORIGINS", "The one origin, with https://, whose forms are accepted. Empty, `manage.py "
             "check` fails with 4_0.E001.", "required", "plain", "settings", "`host` of the instance file",
             lambda instance: instance.url),
    Variable("DJANGO_DEBUG", "Shows tracebacks to visitors: never on a site.", "optional", "plain", "settings", "False",
             lambda _: "False"),
    Variable("DJANGO_DATABASE_ENGINE", "Django's database backend.", "required", "plain", "settings", "`database.role`",
             _database("DJANGO_DATABASE_ENGINE")),
    Variable("DJANGO_DATABASE_NAME", "Name of the database.", "required", "plain", "settings", "`database.role`",
             _database("DJANGO_DATABASE_NAME")),
    Variable("DJANGO_DATABASE_HOST", "Host of the database server.", "required", "plain", "settings", "`database.role`",
             _database("DJANGO_DATABASE_HOST")),
    Variable("DJANGO_DATABASE_PORT", "Its port; every DBoD instance has its own.", "required", "plain", "settings",
             "`database.role`", _database("DJANGO_DATABASE_PORT")),
    Variable("DJANGO_DATABASE_USER", "The role that owns the database, not the administrator.", "required", "plain",
             "settings", "`database.role`", _database("DJANGO_DATABASE_USER")),
    Variable("DJANGO_DATABASE_PASSWORD", "Its password.", "required", "secret", "settings", "`database.role`",
             _database("DJANGO_DATABASE_PASSWORD")),
    Variable("PGSSLMODE", "Makes libpq refuse a connection without TLS; the settings say nothing about it.", "required",
             "plain", "libpq, below psycopg2", "require", lambda _: "require"),
    Variable("REDIS_HOST", "Host of the Redis server behind the websockets.", "required", "plain", "settings",
             "`name` below [redis]", lambda instance: instance.redis.name),
    Variable("REDIS_PASSWORD", "Its password; letters and digits only, because the app builds an address from it.",
             "required", "secret", "settings", "`redis.add`",
             lambda instance: Key(redis.password(instance).secret, redis.password(instance).key)),
    Variable("CERN_SSO_REGISTRATION_CLIENT_ID", "Client ID of the sign-on registration.", "required", "secret",
             "settings, users/signals.py", "`sso.secret`", _sso(sso.client_id)),
    Variable("CERN_SSO_REGISTRATION_CLIENT_SECRET", "Client Secret of the sign-on registration.", "required", "secret",
             "settings", "`sso.secret`", _sso(sso.client_secret)),
    Variable("OMS_CLIENT_ID", "Client ID for the OMS interface. Without it nothing starts: it is read at import.",
             "required", "secret", "omsapi/apiconfig.py", "asked for", _own("OMS_CLIENT_ID", "Client ID for OMS")),
    Variable("OMS_CLIENT_SECRET", "Its secret, read at import as well.", "required", "secret", "omsapi/apiconfig.py",
             "asked for", _own("OMS_CLIENT_SECRET", "Client Secret for OMS")),
    Variable("OMS_API_URL", "Address of OMS; the default is right.", "optional", "plain", "omsapi/apiconfig.py",
             "[environment] of the instance file"),
    Variable("OMS_API_AUDIENCE", "Audience of the OMS token; the default is right.", "optional", "plain",
             "omsapi/apiconfig.py", "[environment] of the instance file"),
    Variable("SSO_CLIENT_ID", "Client ID for calls to RunRegistry. A file `.env` is not enough: the library reads the "
             "process environment.", "optional", "secret", "runregistry, cernrequests",
             "RUNBOOK_SSO_CLIENT_ID, when given",
             _own("SSO_CLIENT_ID", "Client ID for RunRegistry", optional=True)),
    Variable("SSO_CLIENT_SECRET", "Its secret.", "optional", "secret", "runregistry, cernrequests",
             "RUNBOOK_SSO_CLIENT_SECRET, when given",
             _own("SSO_CLIENT_SECRET", "Client Secret for RunRegistry", optional=True)),
    Variable("DJANGO_SECRET_ACC", "Account for the tracker maps over SSH; `admin` when not given.", "optional",
             "secret", "settings, remotescripts/views.py", "RUNBOOK_DJANGO_SECRET_ACC, when given",
             _own("DJANGO_SECRET_ACC", "account for tracker maps", optional=True)),
    Variable("DJANGO_SECRET_PASS", "Its password.", "optional", "secret", "settings, remotescripts/views.py",
             "RUNBOOK_DJANGO_SECRET_PASS, when given",
             _own("DJANGO_SECRET_PASS", "password of the account for tracker maps", optional=True)),
    Variable("SITE_ID", "Row of Django's sites; 2 is right on a database that Django made.", "optional", "plain",
             "settings", "[environment] of the instance file"),
    Variable("ENVIRONMENT", "Which RunRegistry is asked. Any value but production and development stops the app at "
             "import: `Invalid setup target`. Unset means production.", "trap", "plain", "runregistry",
             "[environment] of the instance file"),
    Variable("CERN_GITLAB_USER", "User of the deploy token for private Git packages.", "optional", "build",
             ".s2i/bin/assemble", "asked for when `private_packages` is set"),
    Variable("CERN_GITLAB_TOKEN", "Deploy token with read_repository. certhelper carries its own copy of the private "
             "package, so it very probably needs none.", "optional", "build", ".s2i/bin/assemble",
             "asked for when `private_packages` is set"),
    *(Variable(name, "Read, but the app sends no mail: without effect.", "obsolete", "plain", "settings",
               "[environment] of the instance file")
      for name in ("DJANGO_EMAIL_HOST", "DJANGO_EMAIL_PORT", "DJANGO_EMAIL_HOST_USER", "DJANGO_EMAIL_USE_TLS",
                   "DJANGO_SERVER_EMAIL")),
    Variable("DJANGO_EMAIL_HOST_PASSWORD", "Read, but the app sends no mail: without effect.", "obsolete", "secret",
             "settings", "[secrets] of the instance file"),
    Variable("CERN_CERTIFICATE_PATH", "Folder of a grid certificate; RunRegistry uses the SSO client now.", "obsolete",
             "plain", "settings, cernrequests", "[environment] of the instance file"),
)
"""Every variable of certhelper. What is obsolete may still be set: another version of the app may read it again."""

ENVIRONMENTS = ("production", "development")

LIBRARIES: Mapping[str, tuple[str, ...]] = {"runregistry": ("SSO_CLIENT_ID", "SSO_CLIENT_SECRET")}
"""Variables without which a library's calls fail, though the app itself never names them."""

PLATFORM = frozenset({"HOME", "HOSTNAME", "PATH", "PWD", "LANG", "PORT", "APP_ROOT", "DJANGO_SETTINGS_MODULE",
                      "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"})
"""Variables that the image, the platform or Django's own start set."""


@step(
    needs=(app.create, database.create, redis.add, sso.secret),
    see="The Deployment names every variable; passwords stand there as references to Secrets.",
    otherwise=(
        ("`stands there and nothing here sets it`",
         "A variable on the build config is known to nobody here: put it below [environment], or below [secrets] when it is "
         "secret."),
        ("`the instance file wants`", "The app uses another database than [database] says: mend the instance file."),
        ("`holds no secret and no trap: …`",
         "The instance file is in Git: describe what is secret below [secrets], and the value is asked for."),
        ("`ImproperlyConfigured`",
         "Django does not take the settings: the line says which, and `environment.check` what is missing."),
        ("`CreateContainerConfigError`", ("A Secret or a key that the environment refers to is gone: the pod's events "
                                          "name it, and `guide.status` the step that makes it.")),
        ("`UndefinedValueError: … not found` in the pod's log", ("The app needs the variable: run `environment.check`, "
                                                                 "which names file and line.")),
        ("`DisallowedHost` or `Invalid HTTP_HOST header`, or 400 in the browser",
         "`host` in the instance file is not the name that you visited."),
        ("`Invalid setup target`", "`ENVIRONMENT` is neither production nor development: take it out."),
    ),
)
def set(instance: Instance, observed: Observed) -> Plan:  # noqa: A001
    """Set the app's variables on its Deployment."""
    yield Require("[environment] of the instance file holds no secret and no trap",
                  "; ".join(misplaced(instance)), f"mend {instance.path.name or 'the instance file'}")
    former = observed.former(instance.app)
    yield Require("every variable that stands on the build config is known here", "; ".join(unknown(instance, former)),
                  "put it below [environment] of the instance file, or below [secrets] when it is secret: its value is kept")
    yield Require("the app stays with its database", "; ".join(elsewhere(instance, former)), "mend [database] of the instance file")
    before = observed.object("Deployment", instance.app)
    # What did not run before may need a new build, which comes later: it is not waited for here.
    well = before is None or not rolled_out.test(before)
    values = variables(instance)
    own = {value.key: value for value in values.values() if isinstance(value, Credential)}
    yield Apply(secret(own_secret(instance), own, app.labels(instance)))
    yield Apply(environment_part(instance, values), part=True)
    # Last: what a set-up by hand keeps on the build config is in the Secret above by now.
    yield Apply(no_build_variables(instance), part=True)
    if well:
        yield WaitFor(Object("Deployment", instance.app), rolled_out)


@step(
    needs=(set,),
    see="Every variable that the app reads without a default is set.",
    otherwise=(
        ("`… is read in …, and nothing sets it`",
         ("Put it below [environment] of the instance file, or below [secrets] when it is secret, "
          "and run `environment.set`.")),
        ("`… is needed by …, and nobody gave it`",
         ("Register a client for RunRegistry at the application portal and give both values in the environment: "
         "RUNBOOK_SSO_CLIENT_ID and RUNBOOK_SSO_CLIENT_SECRET.")),
    ),
)
def check(instance: Instance, observed: Observed) -> Plan:
    """Check that every variable which the app's code needs is set."""
    found = observed.source()
    files: source.Files = found.files if found else {}
    yield Require("the app's code can be read", found.error if found else "", "see `source.check`")
    built = source.settings(source.text_of(files, source.ENVIRONMENT))
    given = PLATFORM | frozenset(given_names(instance, observed)) | built.keys()
    # The first place that reads a variable is the one to name, so it comes last into the table.
    missing = {read.name: read for read in reversed(list(reads(files))) if read.required and read.name not in given}
    for name, read in sorted(missing.items()):
        yield Require(f"{name} is set", f"{name} is read in {read.path}:{read.line}, and nothing sets it",
                      f"put {name} below [environment] or [secrets] of the instance file, then "
                      f"`invoke environment.set --build={instance.name}`")
    for library in sorted(source.requirements(files) & LIBRARIES.keys()):
        for name in LIBRARIES[library]:
            yield Require(f"{name} is set for {library}",
                          "" if name in given else f"{name} is needed by {library}, and nobody gave it",
                          f"RUNBOOK_{name}=… invoke environment.set --build={instance.name}")
    if not missing:
        yield Require("every variable that the code reads without a default is set", "", "")


def variables(instance: Instance) -> dict[str, Value]:
    """Return every variable of an instance and its value, sorted by name; the instance file has the last word."""
    values = {known.name: known.value(instance) for known in VARIABLES if known.value}
    for name, meaning in instance.secrets.items():
        values[name] = _own(name, meaning)(instance)
    return dict(sorted((values | dict(instance.environment)).items()))


def misplaced(instance: Instance) -> list[str]:
    """Return what must not stand below [environment]: that file is in Git, and a wrong word there stops the app."""
    known = {variable.name: variable for variable in VARIABLES}
    wrong = []
    for name, value in instance.environment.items():
        kind = known[name].kind if name in known else "plain"
        if kind == "secret":
            wrong.append(f"{name} is secret: take it out"
                         + ("" if known[name].value else f" and describe it below [secrets]: {name} = \"what it is\""))
        elif kind == "build":
            wrong.append(f"{name} is for builds only: set `private_packages` below [source] instead")
        elif name == "ENVIRONMENT" and value not in ENVIRONMENTS:
            wrong.append(f"ENVIRONMENT is {value!r}, but runregistry accepts only {' or '.join(ENVIRONMENTS)}")
    return wrong


def environment_part(instance: Instance, values: Mapping[str, Value]) -> Manifest:
    """Return the part of the Deployment that is the environment."""
    env = [{"name": name, "value": value} if isinstance(value, str)
           else {"name": name, "valueFrom": {"secretKeyRef": reference(value)}} for name, value in values.items()]
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": instance.app},
            "spec": {"template": {"metadata": {"annotations": {REVISIONS: revisions(values)}},
                                  "spec": {"containers": [{"name": instance.app, "env": env}]}}}}


def no_build_variables(instance: Instance) -> Manifest:
    """Return the part of the build config that holds no variable: a build would write each into the image, passwords too."""
    return {"apiVersion": "build.openshift.io/v1", "kind": "BuildConfig", "metadata": {"name": instance.app},
            "spec": {"strategy": {"sourceStrategy": {"env": []}}}}


def unknown(instance: Instance, former: Mapping[str, Manifest]) -> list[str]:
    """Return the variables of a set-up made by hand that nothing here sets; without effect or for builds only is no loss."""
    given = variables(instance)
    dropped = [known.name for known in VARIABLES if known.need == "obsolete" or known.kind == "build"]
    return [f"{name} stands there and nothing here sets it" for name in former if name not in given and name not in dropped]


def elsewhere(instance: Instance, former: Mapping[str, Manifest]) -> list[str]:
    """Return in what the database of a set-up made by hand differs from that of the instance file."""
    db = instance.database
    wanted = {"DJANGO_DATABASE_HOST": db.host, "DJANGO_DATABASE_PORT": str(db.port), "DJANGO_DATABASE_NAME": db.name}
    return [f"{name} is {former[name]['value']}, the instance file wants {value}" for name, value in wanted.items()
            if former.get(name, {}).get("value", value) != value]


def reference(value: Key | Credential) -> Manifest:
    """Return a secretKeyRef; a variable whose key may be missing is then left out."""
    return {"name": value.secret, "key": value.key} | ({"optional": True} if value.optional else {})


def revisions(values: Mapping[str, Value]) -> Revision:
    """Return the revisions of the Secrets that the values refer to: a changed one starts another pod."""
    return Revision(tuple(Object("Secret", name) for name in sorted({v.secret for v in values.values() if not isinstance(v, str)})))


def given_names(instance: Instance, observed: Observed) -> Iterator[str]:
    """Yield the names of the variables that a pod gets; an optional one only when its key is there."""
    def kept(value: Key | Credential) -> bool:
        there = observed.object("Secret", value.secret) or {}
        return bool((there.get("data") or {}).get(value.key))

    yield from (name for name, value in variables(instance).items()
                if isinstance(value, str) or not value.optional or kept(value))


@dataclass(frozen=True)
class Read:
    """A place in the code that reads a variable."""

    name: str
    path: str
    line: int
    required: bool
    """Whether it fails when the variable is not set."""


def reads(files: Mapping[str, File]) -> Iterator[Read]:
    """Yield every read of a variable in the app's Python files, tests left out."""
    for path, file in sorted(files.items()):
        if path.endswith(".py") and not is_test(path):
            try:
                tree = ast.parse(file.text)
            except SyntaxError:  # A file for another Python: the build or the app itself will tell.
                continue
            yield from _reads_in(tree, path)


def is_test(path: str) -> bool:
    """Whether a file is a test or documentation, which no pod runs."""
    *folders, name = path.split("/")
    return name.startswith("test") or name == "conftest.py" or bool(frozenset(folders) & {"test", "tests", "docs"})


def _reads_in(tree: ast.Module, path: str) -> Iterator[Read]:
    config = frozenset(alias.asname or alias.name for node in ast.walk(tree)
                       if isinstance(node, ast.ImportFrom) and node.module == "decouple" for alias in node.names)
    # `os.environ[…]` inside a function or a `try` need not fail at the start; decouple's `config` is meant to.
    forgiving = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try)

    def visit(node: ast.AST, *, sure: bool) -> Iterator[Read]:
        match node:
            case ast.Call(func=ast.Name(id=word) | ast.Attribute(value=ast.Name(id="decouple"), attr=word),
                          args=[ast.Constant(value=str(name)), *rest], keywords=keywords) \
                    if word in config or (isinstance(node.func, ast.Attribute) and word == "config"):
                yield Read(name, path, node.lineno, not rest and all(k.arg != "default" for k in keywords))
            case ast.Subscript(value=ast.Attribute(attr="environ") | ast.Name(id="environ"),
                               slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                yield Read(name, path, node.lineno, sure)
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ") | ast.Name(id="environ"), attr="get")
                          | ast.Attribute(attr="getenv") | ast.Name(id="getenv"),
                          args=[ast.Constant(value=str(name)), *_]):
                yield Read(name, path, node.lineno, required=False)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, sure=sure and not isinstance(node, forgiving))

    yield from visit(tree, sure=True)
