"""Mount EOS storage: the project's files, in every pod of the app."""

from procedures import app, deploy, project, volume
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Apply, Ask, Credential, Inside, Manifest, Object, Plan, Require, Revision, WaitFor, rolled_out
from runbook.plan import secret as secret_manifest
from runbook.step import RUN, step

PORTAL = "https://account.cern.ch/"
ANNOTATION = "eos.okd.cern.ch/mount-eos-with-credentials-from-secret"
"""The platform puts a container that logs in into every pod with this annotation."""
REVISION = "guide/eos-credentials"
"""The annotation that carries the Secret's revision: a pod logs in once, with the password of its start."""
KEYS = {"keytab-user": "keytab-pwd", "KEYTAB_USER": "KEYTAB_PWD"}
"""The two forms of the Secret's keys that are in use: the former platform's, and that of sites which run today."""
SIZE = "1Mi"
"""EOS has no size of its own, but a claim must have one."""
PERIOD = 5
"""Seconds between two looks whether EOS is there."""


def account(instance: Instance) -> str:
    """Return the account that reads EOS."""
    return instance.eos.account or instance.site.owner


def password(instance: Instance, kept: Manifest | None = None) -> Credential:
    """The password of that account; `kept` is the Secret as it is, which may have but one form of the keys."""
    has = (kept or {}).get("data") or {}
    key = next((key for key in (KEYS[form] for form in forms(instance)) if key in has), KEYS[forms(instance)[0]])
    return Credential("eos-password", f"password of the account {account(instance)}", secret=instance.eos.secret, key=key)


def forms(instance: Instance) -> list[str]:
    """Return the forms of the keys that the Secret shall have, by the name of the user's key."""
    return list(KEYS) if instance.eos.keys == "both" else [instance.eos.keys]


@step(
    needs=(project.request,),
    person=True,
    wanted=lambda instance: bool(instance.eos.path),
    setting="`path` below [eos]",
    see="The Secret holds the account and its password.",
    otherwise=(
        ("`field is immutable` or `it is of the type …, and that cannot be changed`",
         "A Secret's type cannot be changed. Leave `secret_type` below [eos] empty, and the type stays."),
        ("`kinit: …failed…` or `KDC_ERR_PREAUTH_FAILED` in the log of the container beside the app",
         "The password is wrong, or was changed since: run the step with `--rotate`, and then `eos.mount`."),
    ),
    unconfirmed="Which keys and which type of Secret the platform reads today. Sites that run use KEYTAB_USER and KEYTAB_PWD in "
                "an Opaque one; the Secret carries both forms. `oc get pod NAME -o yaml` on a pod that mounts EOS would tell.",
)
def credentials(instance: Instance, observed: Observed) -> Plan:
    """Put the account that reads EOS, and its password, into the project."""
    wanted = instance.eos
    kept = observed.object("Secret", wanted.secret)
    there = kept["type"] if kept else ""
    yield Require(f"the Secret {wanted.secret} is of the type that [eos] names",
                  f"it is of the type {there}, and that cannot be changed"
                  if there and wanted.secret_type not in ("", there) else "",
                  f"take `secret_type` out of [eos], or delete the Secret: `oc delete secret {wanted.secret}`")
    hidden = password(instance, kept)
    yield Ask(
        deed=f"Give the password of the account {account(instance)}; its owner knows it, or sets another one there.",
        where=PORTAL,
        form="accounts",
        values={"name": account(instance)},
        until=hidden,
        gives={"password": hidden},
    )
    values: dict[str, str | Credential] = {}
    for user_key in forms(instance):
        values |= {user_key: account(instance), KEYS[user_key]: hidden}
    yield Apply(secret_manifest(wanted.secret, values) | {"type": there or wanted.secret_type or "Opaque"})


@step(
    needs=(app.create, credentials),
    wanted=lambda instance: bool(instance.eos.path),
    setting="`path` below [eos]",
    see="Every pod has two containers, the app and the one that logs in, and the app's is ready: it sees the path.",
    otherwise=(
        ("`stat: cannot … No such file or directory` or `stat: cannot stat '/eos`",
         "EOS did not show the path in time. The log of the container beside the app says whether the log-in went wrong "
         "(`eos.credentials --rotate` gives another password); else EOS is late or the path is mistyped: "
         "`patience` and `path` below [eos]."),
        ("`the cluster offers … below [eos]`", "The storage class is not offered: `storage_class` below [eos] names one that is."),
        ("`it has one: the image's command would then lie below /tmp`", "Remove `.s2i/bin/run` from the repository."),
        ("`stat: cannot … Permission denied`",
         "The account may not read the path: ask the owner of the EOS project to let it in."),
        ("`Startup probe failed: … timed out`", "EOS hangs. The pods that run are left alone; run the step again later."),
        ("`Transport endpoint is not connected`",
         "A pod's mount was lost when EOS came back. A mount with `HostToContainer`, as this step makes it, comes back by "
         "itself; `oc delete pod` makes a fresh pod."),
        ("`/tmp/scripts/run: No such file or directory`",
         "The repository has a `.s2i/bin/run`, and the platform mounts an empty folder over /tmp: remove that file."),
        ("`failed to patch volume update to pod template` or `volume mount '…' already exists`",
         "That was `oc set volume`, a second time. Run this step instead: it can be repeated."),
    ),
    unconfirmed="The names of what the platform puts into the pod, and that its storage class is called `eos`: "
                "`oc get storageclass` and `oc get pod NAME -o yaml` would tell.",
)
def mount(instance: Instance, observed: Observed) -> Plan:
    """Mount the project's EOS storage into the app's pods."""
    wanted = instance.eos
    found = observed.source()
    yield Require("the repository has no .s2i/bin/run",
                  "it has one: the image's command would then lie below /tmp, over which CERN mounts an empty folder"
                  if found and ".s2i/bin/run" in found.files else "",
                  "remove .s2i/bin/run; the image starts what APP_SCRIPT names")
    yield volume.class_is_offered(observed, wanted.storage_class, "[eos]")
    there = observed.object("PersistentVolumeClaim", wanted.claim)
    yield volume.is_not_going(there, wanted.claim, f"invoke eos.unmount --build={instance.name}")
    before = observed.object("Deployment", instance.app)
    # What did not run before may need a build, which comes later: it is not waited for here.
    well = before is None or not rolled_out.test(before)
    # EOS takes no notice of the size: that of a claim made otherwise stays.
    size = there["spec"]["resources"]["requests"]["storage"] if there else SIZE
    yield Apply(volume.claim(there, wanted.claim, wanted.storage_class, size))
    yield Apply(part(instance), part=True)
    if well:
        yield WaitFor(Object("Deployment", instance.app), rolled_out, seconds=wanted.patience + 240)


def part(instance: Instance) -> Manifest:
    """Return the part of the Deployment that is EOS.

    The startup probe waits for a slow or late EOS. There is no liveness probe on it: whenever EOS stalls, it would
    restart an app that does no worse for waiting.
    """
    wanted = instance.eos
    mounting: Manifest = {"mountPath": wanted.mount,
                          # EOS is mounted on the node when the pod runs already, and again when it was lost.
                          "mountPropagation": "HostToContainer"}
    if wanted.read_only:
        mounting["readOnly"] = True
    probe = {"exec": {"command": ["stat", wanted.path]}, "periodSeconds": PERIOD, "timeoutSeconds": 10,
             "failureThreshold": max(1, wanted.patience // PERIOD)}
    return volume.mounted(instance, "eos", wanted.claim, mounting, {"startupProbe": probe}, annotations={
        ANNOTATION: wanted.secret, REVISION: Revision((Object("Secret", wanted.secret),))})


@step(
    needs=(mount, deploy.build),
    wanted=lambda instance: bool(instance.eos.path),
    setting="`path` below [eos]",
    see="The running app reads from EOS.",
    otherwise=(
        ("`the app can …: … No such file or directory` or `no answer within … s`",
         "EOS is slow or gone, or the account lost its rights. Run the step again in a while; then look at `eos.mount`."),
        ("`no pod of … is ready`", "The app does not run: `guide.run` starts it; see `deploy.build` and the symptoms of "
         "`eos.mount` when it does not start.", RUN),
    ),
)
def verify(instance: Instance, _observed: Observed) -> Plan:
    """Verify inside the running app that EOS can be read."""
    wanted = instance.eos
    file = f"{wanted.path.rstrip('/')}/{wanted.file}"
    command = ("head", "-c", "1", file) if wanted.file else ("ls", "-f", wanted.path)
    what = f"the app can read {file}" if wanted.file else f"the app can list {wanted.path}"
    yield Inside(instance.app, instance.app, command, what, seconds=30, retry=wanted.patience)


@step(
    undoes=mount,
    wanted=lambda instance: bool(instance.eos.path),
    setting="`path` below [eos]",
    see="The pods have one container again, and the claim is gone; the files in EOS are untouched.",
    otherwise=(
        ("`… is used by …`", "Something else mounts the claim: take the volume out there first; the message says how."),
        ("`… hangs in Terminating`",
         "The message says which finalizer holds the claim, and which pods still use it. `--force` removes the finalizers: then "
         "nobody makes sure any more that the volume behind the claim is let go. Files in EOS are not touched."),
    ),
)
def unmount(instance: Instance, observed: Observed) -> Plan:
    """Unmount EOS from the app's pods and free its claim; the files in EOS stay."""
    yield from mount.plan(instance, observed)
