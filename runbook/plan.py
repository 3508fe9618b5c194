"""The values that a step yields. A plan says what shall be; `apply`, `diff`, `markdown` and `shell` interpret it.

Values hold no client and no secret: a password travels as a `Credential`, a reference that `apply` resolves once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Former:
    """Where a set-up made by hand keeps a value: a variable on the build config, or the Secret that it refers to."""

    variable: str
    beside: tuple[str, str] = ("", "")
    """Another variable and the value that it must have, such as the role whose password it is."""


@dataclass(frozen=True)
class Credential:
    """A secret value by reference: found in the environment, else in the cluster's Secret, else asked for or made.

    `name` also names the variable `RUNBOOK_<NAME>` and the file variable `RUNBOOK_<NAME>_FILE` that win over all else.
    """

    name: str
    label: str
    """What it is, in the reader's words: prompts and messages use it."""
    secret: str = ""
    """The Secret that keeps it."""
    key: str = ""
    generated: bool = False
    """Whether the guide may make it up when nobody gives one."""
    optional: bool = False
    """Whether an empty value will do: nothing is asked for then."""
    former: Former | None = None
    """Where a set-up made by hand has it: it is kept, not made anew."""
    must: str = ""
    """The one value that is right, when it is no secret and the instance file says it: another one is refused."""

    @property
    def variable(self) -> str:
        """The environment variable that gives the value."""
        return "RUNBOOK_" + self.name.upper().replace("-", "_")


def cloning(app: str, repository: str) -> tuple[Credential, Credential]:
    """Return the user and the token that read a private repository, for builds and for looking at it."""
    kept = f"{app}-source"
    return (Credential("source-user", f"user that may clone {repository}", kept, "username"),
            Credential("source-token", f"token that may only read {repository}", kept, "password"))


@dataclass(frozen=True)
class Object:
    """The name of an object in the cluster; without a namespace it is the instance's project."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Revision:
    """The revisions of objects at the moment of applying, by reference: `name=resourceVersion`, joined by commas.

    A pod reads its Secrets and ConfigMaps once, at its start. With their revisions in its template, a change of one is
    a change of the pod. The number says that something changed, and nothing of what it is. What is absent is left out.
    """

    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Condition:
    """A named state of an object that can be waited for.

    `test` gets the object (None when absent) and returns "" when the state holds, else what is seen instead.
    `failed` returns why the state can never come, else "". `flag` is the same condition for `kubectl wait`.
    """

    name: str
    test: Callable[[Manifest | None], str]
    flag: str
    failed: Callable[[Manifest | None], str] = lambda _: ""


@dataclass(frozen=True)
class Apply:
    """Apply a manifest server-side under the step's field manager.

    `part` marks a manifest that adds fields to an object which another step made.
    `data` marks an object that holds people's data: undo keeps it unless `--data` is given.
    """

    manifest: Manifest
    part: bool = False
    data: bool = False

    @property
    def object(self) -> Object:
        """The name of what is applied."""
        meta = self.manifest["metadata"]
        return Object(self.manifest["kind"], meta["name"], meta.get("namespace", ""))


@dataclass(frozen=True)
class LogIn:
    """Log in to the database server as a role with a credential: the only proof that a password is set."""

    role: str
    credential: Credential


@dataclass(frozen=True)
class WaitFor:
    """Wait until an object is in a state."""

    object: Object
    condition: Condition
    seconds: float = 300
    alone: bool = False
    """Whether a Deployment's pods of before must have ended too: one on its way out is still asked for a moment."""


@dataclass(frozen=True)
class Execute:
    """Execute SQL as the database administrator unless it has had its effect already.

    `unless` is a query (a row means: done) or a `LogIn`. With a `credential`, `{verifier}` in the statement becomes
    its SCRAM verifier, so that the password itself is never sent. Every statement runs outside a transaction.
    """

    statement: str
    unless: str | LogIn
    undo: str = ""
    """The statement that takes it back; "" when that is impossible."""
    undo_unless: str = ""
    """A query: a row means that there is nothing to take back."""
    data: bool = False
    database: str = "postgres"
    """The database in which it runs."""
    credential: Credential | None = None
    keep: str = ""
    """`administrator`: the credential is the administrator's own and goes into his password file, not the cluster."""
    instead: str = ""
    """What to do by hand when it cannot be undone."""
    after: WaitFor | None = None
    """What must hold before it is executed."""


@dataclass(frozen=True)
class Answers:
    """Proof of a person's deed: something answers at a host and port with TLS as PostgreSQL does."""

    host: str
    port: int


@dataclass(frozen=True)
class Accepts:
    """Proof of a person's deed: an address answers as it does once the deed is done, with a status below 400."""

    url: str
    what: str
    """What answers, in a few words: `the sign-on knows …`."""
    otherwise: str
    """What to say when it refuses."""


@dataclass(frozen=True)
class Admitted:
    """Proof of a person's deed: the database server lets a pod of the project in, with TLS.

    Tried from the app's running pod, else from a pod made for it and removed again.
    """

    host: str
    port: int
    role: str
    database: str
    image: str
    deployment: str


@dataclass(frozen=True)
class LoggedIn:
    """Proof of a person's deed: somebody is logged in to the cluster at this address."""

    api: str


Proof = Object | Accepts | Answers | Admitted | Credential | LoggedIn
"""How the effect of a person's deed is seen: an object exists, a server answers, a credential is known."""


@dataclass(frozen=True)
class Ask:
    """Ask a person for what only a person can do, then wait until the effect is seen.

    On the local stack its portal plays the person: `form` names the form, `values` fill it.
    """

    deed: str
    """One sentence: what the person does."""
    where: str
    """The address or place where it is done."""
    form: str
    values: Mapping[str, Any]
    until: Proof
    instead: str = ""
    """What to do when this shall be taken back."""
    gives: Mapping[str, Credential] = field(default_factory=dict)
    """Values that the person learns: the answer's key and the credential that it becomes."""
    seconds: float = 1800


@dataclass(frozen=True)
class StartBuild:
    """Start a build, follow its log, and wait until its image is what the Deployment runs.

    Nothing is started when `because` is empty: it says why a build is needed. The result is the build's name.
    """

    config: str
    deployment: str
    container: str
    because: str


@dataclass(frozen=True)
class Scale:
    """Set the number of pods of a Deployment through its scale subresource."""

    deployment: str
    replicas: int


@dataclass(frozen=True)
class Look:
    """Look at the running app over HTTPS as a reader's browser would; with `websocket`, send a text and see an answer."""

    url: str
    path: str
    status: tuple[int, ...] = (200,)
    contains: str = ""
    websocket: bool = False
    what: str = ""
    outside: bool = False
    """Whether to look from an address outside CERN; the local stack has one, at CERN the reader's own counts."""
    refused: bool = False
    """Whether the site must not answer at all."""
    unlike: str = ""
    """What another status, or a text without `contains`, means; said in place of address and status."""


@dataclass(frozen=True)
class Write:
    """Write a file in the reader's checkout of the app's repository."""

    path: str
    text: str
    executable: bool = False


@dataclass(frozen=True)
class Require:
    """A check of something that the step cannot mend itself: `found` is empty when it holds."""

    what: str
    found: str
    cure: str
    aside: str = ""
    """What a reader should know although it holds."""
    given: bool = False
    """Whether it is about what the command was given: then it is wrong use, and nothing was tried."""


@dataclass(frozen=True)
class Inside:
    """Run a command in a ready pod of the Deployment's newest ReplicaSet, with a deadline.

    Without `unless` the command only looks: exit status 0, and `contains` in its output, is the proof. With it the
    command changes something, and is run when the command `unless` does not end with 0.
    """

    deployment: str
    container: str
    command: tuple[str, ...]
    what: str
    """What it proves or does, in a few words: `the file … can be read`."""
    unless: tuple[str, ...] = ()
    contains: str = ""
    input: Credential | None = None
    """A credential for its standard input, the only way by which one reaches a pod's process."""
    show: bool = False
    """Whether the reader sees what it prints."""
    seconds: float = 30
    unready: bool = False
    """Whether a pod that runs will do when none is ready: what is looked for may be the reason."""
    retry: float = 0
    """For how many seconds a look that fails is tried again: something remote may be late."""


@dataclass(frozen=True)
class Patch:
    """Set fields that people or the platform move, such as `suspend`, by a merge patch under the step's manager.

    Done when the object has them; a field whose value is None is taken out. `undo` are the fields that take it back.
    """

    object: Object
    fields: Manifest
    what: str
    undo: Manifest | None = None
    foreign: bool = False
    """Whether the object is somebody else's, so that only `--force` sets anything on it."""
    owner: str = ""
    """The step whose field it is, when that is another one: the field is set under that step's manager."""


@dataclass(frozen=True)
class Show:
    """Show a table to the reader: the answer of an operation that only looks."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str = "nothing"
    """What to say when there are no rows."""


@dataclass(frozen=True)
class Log:
    """Print the log of a Deployment's newest pods."""

    deployment: str
    container: str
    lines: int = 100
    follow: bool = False
    previous: bool = False


@dataclass(frozen=True)
class Shell:
    """Open a terminal in a ready pod of the Deployment."""

    deployment: str
    container: str
    command: tuple[str, ...] = ("bash",)


@dataclass(frozen=True)
class Confirm:
    """Ask the reader whether to go on; `--yes` answers for him, and without a terminal the run stops with 75."""

    question: str
    cure: str = "run it in a terminal, or add --yes when you have asked"
    typed: bool = False
    """Whether data is lost: the answer is the instance's name, and on production at CERN `--yes` does not stand for it."""


@dataclass(frozen=True)
class Dump:
    """Write a dump of the app's database to a file on the reader's machine, outside the cluster.

    It is made as the app's role, which owns everything in the database.
    """

    database: str
    role: str
    credential: Credential
    because: str


@dataclass(frozen=True)
class Restore:
    """Put a dump in the place of all that the app's role owns in the database, in one transaction: all or nothing.

    The Deployment has no pods meanwhile and gets those that it had back, also when the restore fails.
    """

    database: str
    role: str
    credential: Credential
    file: str
    deployment: str



Action = (Apply | Execute | WaitFor | Ask | StartBuild | Scale | Look | Write | Require | Inside | Patch | Show | Log | Shell
          | Confirm | Dump | Restore)
Plan = Generator[Action, Any, None]


def secret(name: str, values: Mapping[str, str | Credential], labels: Mapping[str, str] | None = None) -> Manifest:
    """Return an Opaque Secret; values may be credentials, which stay references until the plan is applied."""
    meta: Manifest = {"name": name} | ({"labels": dict(labels)} if labels else {})
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "stringData": dict(values)}


def _rolled_out(found: Manifest | None) -> str:
    """Rolled out means: observed, all wanted pods updated and ready, no old pod left (as `kubectl rollout status`)."""
    if found is None:
        return "there is no such Deployment"
    wanted, status = found["spec"].get("replicas", 1), found.get("status", {})
    if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
        return "the controller has not seen the change yet"
    updated, ready, total = (status.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "replicas"))
    return "" if updated == ready == total == wanted else f"{updated} of {wanted} pods updated, {ready} ready, {total} in all"


def _stuck(found: Manifest | None) -> str:
    """Return the controller's own word that a roll-out made no progress in time."""
    conditions = (found or {}).get("status", {}).get("conditions", [])
    return next((c["message"] for c in conditions
                 if c["type"] == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"), "")


rolled_out = Condition("rolled out", _rolled_out, "rollout status", _stuck)
exists = Condition("there", lambda found: "" if found else "not there yet", "jsonpath={.metadata.uid}")

MANAGED_BY = {"app.kubernetes.io/managed-by": "certhelper-guide"}
"""The label of every object that a step created."""


def marked(action: Apply, manager: str) -> Manifest:
    """Return a manifest with the marks of its origin, unless it adds to what another step made."""
    if action.part:
        return action.manifest
    meta = action.manifest["metadata"]
    return action.manifest | {"metadata": meta | {
        "labels": meta.get("labels", {}) | MANAGED_BY,
        "annotations": meta.get("annotations", {}) | {"guide/step": manager.removeprefix("guide/")}}}
