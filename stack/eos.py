"""EOS: the folder that stands for it, who may see it, and how it behaves today.

Stands for CERN's EOS, its accounts, and the platform's part in mounting it: a pod whose annotation names a Secret gets a
container that logs in with it (`gitlab-registry.cern.ch/paas-tools/…`), a volume that carries the log-in, and an
emptyDir over /tmp of every container, whatever the image keeps there.

Differs: no Kerberos and no FUSE. The container puts a hash of account and password where the node looks
(`stack/node/eos.py`); the node compares it with the accounts that the portal knows and then mounts the folder. Without
a log-in that holds, /eos is an empty folder. Every account sees all of EOS; there is no quota; a log-in never runs out,
also when the password is changed. Which keys of the Secret CERN's container reads nobody has confirmed: this one takes
KEYTAB_USER and KEYTAB_PWD, else keytab-user and keytab-pwd. The names of what is put into the pod are our own.

EOS can be made to behave badly, as a test of whoever waits for it: `eos.json` in the state folder may hold
`{"absent": true}` (nothing is mounted, and what was is taken away), `{"late": 20}` (seconds between log-in and mount)
and `{"slow": 20}`. The last stands for a `stat` that hangs, but is not one: commands that probes and exec run in a
pod and that name a path below /eos start so many seconds late; the app's own calls are not slowed down.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass

from stack.api import Manifest
from stack.state import State

ANNOTATION = "eos.okd.cern.ch/mount-eos-with-credentials-from-secret"
CLASS = "eos"
"""The storage class whose volumes are EOS."""
IMAGE = "gitlab-registry.cern.ch/paas-tools/eosclient-1:latest"
SIDECAR = "eos-credentials"
STORE = "eos-credentials-store"
"""The volume through which a pod's log-in reaches the node."""
STORE_PATH = "/var/run/eosd/credentials"
TMP = "eos-tmp"
WELCOME = "project/t/tkdqmdoc/welcome.txt"
"""A file of the tracker group's project space, which stands ready as it does at CERN."""
MOUNTED = "/eos"


@dataclass(frozen=True)
class Behaviour:
    """How EOS behaves today."""

    absent: bool = False
    late: float = 0
    slow: float = 0


def behaviour(state: State) -> Behaviour:
    """Return how EOS behaves; well, unless `eos.json` says otherwise."""
    try:
        return Behaviour(**json.loads(state.path("eos.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return Behaviour()


def prepare(state: State) -> None:
    """Make the folder that stands for EOS, with one file to read."""
    welcome = state.eos / WELCOME
    if not welcome.exists():
        welcome.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        welcome.write_text("This file lies in EOS.\n")


def accounts(state: State) -> dict[str, str]:
    """Return the service accounts and their passwords."""
    path = state.path("accounts.json")
    return dict(json.loads(path.read_text())) if path.exists() else {}


def set_password(state: State, name: str, password: str = "") -> str:
    """Make an account, or give it another password; return the password, which is made up when none is given."""
    known = accounts(state)
    known[name] = password or secrets.token_urlsafe(16)
    state.write_json("accounts.json", known)
    return known[name]


def remove_account(state: State, name: str) -> bool:
    """Remove an account; return whether there was one."""
    known = accounts(state)
    if known.pop(name, None) is None:
        return False
    state.write_json("accounts.json", known)
    return True


def refusal(state: State, key: str) -> str:
    """Return why the log-in that a pod's container wrote does not hold, in Kerberos' words, else nothing."""
    user, _, given = key.strip().partition(" ")
    password = accounts(state).get(user)
    if password is None:
        return f"kinit: Client '{user}@CERN.CH' not found in Kerberos database while getting initial credentials"
    wanted = hashlib.sha256(f"{user}@CERN.CH:{password}".encode()).hexdigest()
    return "" if secrets.compare_digest(given, wanted) else \
        f"kinit: Preauthentication failed while getting initial credentials for {user}@CERN.CH"


def policies() -> list[Manifest]:
    """Return the admission policy that does to a pod what CERN's does, and its binding."""
    kind = "Object.spec.containers"
    annotated = f"'{ANNOTATION}' in object.metadata.?annotations.orValue({{}})"
    secret = f"object.metadata.annotations['{ANNOTATION}']"

    def variable(name: str, key: str) -> str:
        source = f"{kind}.env.valueFrom"
        return (f'{kind}.env{{name: "{name}", valueFrom: {source}{{secretKeyRef: '
                f'{source}.secretKeyRef{{name: {secret}, key: "{key}", optional: true}}}}}}')

    variables = ", ".join(variable(*pair) for pair in (
        ("KEYTAB_USER", "KEYTAB_USER"), ("KEYTAB_PWD", "KEYTAB_PWD"),
        ("OTHER_USER", "keytab-user"), ("OTHER_PWD", "keytab-pwd")))
    # A container that mounts a /tmp of its own keeps it; volumes are told apart by name, mounts by path.
    over_tmp = f"""
        Object{{spec: Object.spec{{
            volumes: [Object.spec.volumes{{name: "{TMP}", emptyDir: Object.spec.volumes.emptyDir{{}}}},
                      Object.spec.volumes{{name: "{STORE}", emptyDir: Object.spec.volumes.emptyDir{{}}}}],
            containers: object.spec.containers
                .filter(c, !c.?volumeMounts.orValue([]).exists(m, m.mountPath == "/tmp"))
                .map(c, {kind}{{name: c.name, volumeMounts: [{kind}.volumeMounts{{name: "{TMP}", mountPath: "/tmp"}}]}})
        }}}}
        """
    # Last, so that who looks at a pod's first container sees the app.
    sidecar = f"""
        [JSONPatch{{op: "add", path: "/spec/containers/-", value: {kind}{{
            name: "{SIDECAR}", image: "{IMAGE}", env: [{variables}],
            resources: {kind}.resources{{requests: {{"cpu": "10m", "memory": "10Mi"}},
                                        limits: {{"cpu": "100m", "memory": "20Mi"}}}},
            volumeMounts: [{kind}.volumeMounts{{name: "{STORE}", mountPath: "{STORE_PATH}"}}]
        }}}}]
        """
    group, name = "admissionregistration.k8s.io/v1beta1", "eos.okd.cern.ch"
    return [
        {"apiVersion": group, "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                                                    "resources": ["pods"]}]},
            "matchConditions": [{"name": "asks-for-eos", "expression": annotated}],
            "failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": " ".join(over_tmp.split())}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": " ".join(sidecar.split())}}]}},
        {"apiVersion": group, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name},
         "spec": {"policyName": name}},
    ]
