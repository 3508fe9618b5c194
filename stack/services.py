"""The parts of the stack that run as processes: how each is started, and how one sees that it is ready.

`outer` runs in the host's network: the builder, which needs the package index, and the private namespaces.
`inner` runs inside those: the control plane, HAProxy, the platform, the portal, one PostgreSQL per database instance.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack import binaries, certificates, haproxy
from stack.state import API_CLUSTER_ADDRESS, MEMBER, NODE_ADDRESS, OUTSIDE_ADDRESS, SERVICE_NETWORK, State

Check = Callable[[], str]
"""Returns nothing when a service is ready, else what was seen; answers within a second."""

ETCD_PORT = 2379
ETCD_OPERATIONS = 1000
"""How many operations etcd takes at once; `stack/seed.py` has two for a key, one in the other, and some 220 keys."""
KUBELET_PORT = 10250
CONTROLLERS = "system:kube-controller-manager"


@dataclass(frozen=True)
class Service:
    """One process that the supervisor keeps running, or with `once` a task that must end well once."""

    name: str
    argv: list[str]
    ready: Check
    after: tuple[str, ...] = ()
    """Services that must be ready before this one is started."""
    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: tuple[int, ...] = ()
    """File descriptors that the process inherits under the same numbers."""
    once: bool = False
    stop: signal.Signals = signal.SIGTERM
    stop_group: bool = False
    """Send `stop` to its whole process group: unshare ignores it and waits for its child."""
    pid_file: Path | None = None
    """A file whose first line is the process to send `stop` to, where that is not the one we started."""
    grace: float = 3.0
    """Seconds between asking it to stop and killing it."""
    log: Path | None = None
    """Where its output goes: `logs/NAME.log` unless said otherwise."""
    deadline: float = 60.0
    """Seconds from its start until it must be ready; else it is killed and started again."""


def outer(state: State, sockets: Mapping[str, int]) -> list[Service]:
    """Return what runs in the host's network; `sockets` are handed on to HAProxy, which is inside."""
    return [
        Service("builder", _python("stack.builder", str(state.root)), unix_check(state.builder_socket),
                environment=outer_environment(state), deadline=120),
        Service("inner", [*namespaces(), *_python("stack.supervisor", "inner", str(state.root))],
                lambda: "" if state.connection.exists() else "its services are not all ready",
                environment=environment_of(state) | {"RUNBOOK_SOCKETS": json.dumps(dict(sockets))},
                sockets=tuple(sockets.values()), stop_group=True, grace=15,
                deadline=float("inf")),
    ]


def inner(state: State, sockets: Mapping[str, int]) -> list[Service]:
    """Return what runs inside the private namespaces, databases excepted."""
    environment = environment_of(state)
    ports = state.ports
    return [
        Service("etcd", _etcd(state), http_check(ETCD_PORT, "/health", None), environment=environment),
        # A watch that is open keeps it from ending for a minute; what it stores is safe in etcd.
        Service("kube-apiserver", _api_server(state), http_check(6443, "/readyz", state.ca), environment=environment,
                stop=signal.SIGKILL),
        Service("kube-controller-manager", _controllers(state), http_check(10257, "/healthz", None, tls=True),
                after=("kube-apiserver",), environment=environment, stop=signal.SIGKILL),
        Service("haproxy", proxy(state), _tcp(OUTSIDE_ADDRESS, ports.https), environment=environment,
                sockets=tuple(sockets.values()), stop=signal.SIGTERM, grace=1),
        Service("cluster", _python("stack.supervisor", "cluster", str(state.root)), lambda: "it has not ended",
                environment=environment, once=True, deadline=120),
        Service("platform", _python("stack.platform", str(state.root)), _tcp(NODE_ADDRESS, KUBELET_PORT),
                after=("cluster",), environment=environment, grace=5),
        Service("portal", _python("stack.portal", str(state.root)), unix_check(state.portal_socket),
                after=("kube-apiserver",), environment=environment),
    ]


def proxy(state: State) -> list[str]:
    """Return the command of HAProxy: a master that starts a new worker for each configuration."""
    return [str(binaries.find("haproxy").path), "-W", "-S", f"unix@{haproxy.MASTER},mode,600",
            "-f", str(state.path("run", "haproxy.cfg"))]


def prepare_files(state: State) -> None:
    """Write what the services read: certificates, users, policies, kubeconfigs."""
    tokens = state.keep_tokens()
    certificates.ensure_ca(state)
    certificates.signing_key(state)
    certificates.issue(state, "kube-apiserver", [
        "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local", "127.0.0.1", API_CLUSTER_ADDRESS, NODE_ADDRESS])
    certificates.issue(state, "kubelet-client", [], organization="system:masters")
    everybody = '"system:authenticated"'
    state.write("users.csv", f"{tokens.admin},admin,admin,\"system:masters\"\n"
                             f"{tokens.controllers},{CONTROLLERS},{CONTROLLERS},\"system:masters\"\n"
                             f"{tokens.member},{MEMBER},{MEMBER},{everybody}\n"
                             f"{tokens.stranger},stranger,stranger,{everybody}\n")
    state.write_json("audit-policy.json", AUDIT_POLICY)
    state.write_json("admin.kubeconfig", _kubeconfig(state, "https://127.0.0.1:6443", "admin", tokens.admin, "ca.crt"))
    state.write_json("controllers.kubeconfig", _kubeconfig(
        state, "https://127.0.0.1:6443", CONTROLLERS, tokens.controllers, "ca.crt"))
    state.write_json("kubeconfig", _kubeconfig(state, state.server, MEMBER, tokens.member, "ca.crt"))


AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "users": [MEMBER, "stranger"]},
        # The heartbeat of the parts, and what the control plane does by itself, would drown what people do.
        {"level": "None", "resources": [{"group": "coordination.k8s.io"}, {"group": "events.k8s.io"},
                                        {"group": "", "resources": ["events"]}]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "None", "users": [CONTROLLERS, "system:apiserver"]},
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
    ],
}
"""Who wrote what, and all that the member and the stranger asked for; no contents, so no secrets."""


def _kubeconfig(state: State, server: str, user: str, token: str, ca: str) -> object:
    cluster = {"server": server, "certificate-authority": str(state.path("pki", ca))}
    context = {"cluster": "stack", "user": user}
    return {"apiVersion": "v1", "kind": "Config", "current-context": "stack", "preferences": {},
            "clusters": [{"name": "stack", "cluster": cluster}], "contexts": [{"name": "stack", "context": context}],
            "users": [{"name": user, "user": {"token": token}}]}


def _etcd(state: State) -> list[str]:
    peers = "http://127.0.0.1:2380"
    return [str(binaries.find("etcd").path), "--data-dir", str(state.path("etcd")), "--log-level", "warn",
            "--listen-client-urls", f"http://127.0.0.1:{ETCD_PORT}", "--advertise-client-urls", f"http://127.0.0.1:{ETCD_PORT}",
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", f"default={peers}", "--max-txn-ops", str(ETCD_OPERATIONS),
            # What the stack holds can be made again; what counts is that a reader's disk is not kept busy.
            "--unsafe-no-fsync"]


FEATURES = {
    # The policies that stand for CERN's admission; and exec as websockets down to the node.
    "feature-gates": "MutatingAdmissionPolicy=true,TranslateStreamCloseWebsocketRequests=false",
    "runtime-config": "admissionregistration.k8s.io/v1beta1=true",
}


def _api_server(state: State) -> list[str]:
    key = str(state.path("pki", "service-accounts.key"))
    flags = {
        "etcd-servers": f"http://127.0.0.1:{ETCD_PORT}",
        "bind-address": "127.0.0.1", "secure-port": "6443", "advertise-address": NODE_ADDRESS,
        "tls-cert-file": str(state.path("pki", "kube-apiserver.crt")),
        "tls-private-key-file": str(state.path("pki", "kube-apiserver.key")),
        "token-auth-file": str(state.path("users.csv")), "authorization-mode": "RBAC",
        "service-account-key-file": key, "service-account-signing-key-file": key,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-cluster-ip-range": SERVICE_NETWORK,
        "kubelet-preferred-address-types": "InternalIP",
        "kubelet-client-certificate": str(state.path("pki", "kubelet-client.crt")),
        "kubelet-client-key": str(state.path("pki", "kubelet-client.key")),
        **FEATURES,
        "audit-policy-file": str(state.path("audit-policy.json")),
        "audit-log-path": str(state.path("logs", "audit.log")),
        "audit-log-maxsize": "20", "audit-log-maxbackup": "1",
        "profiling": "false",
    }
    return [str(binaries.find("kube-apiserver").path), *(f"--{name}={value}" for name, value in flags.items())]


def _controllers(state: State) -> list[str]:
    flags = {
        "kubeconfig": str(state.path("controllers.kubeconfig")),
        "service-account-private-key-file": str(state.path("pki", "service-accounts.key")),
        "root-ca-file": str(state.ca), "leader-elect": "false", "bind-address": "127.0.0.1",
        "cert-dir": str(state.path("run", "kube-controller-manager")),
        "controllers": "*,-nodeipam,-node-route-controller,-cloud-node-lifecycle-controller",
        "profiling": "false",
    }
    path = binaries.find("kube-controller-manager").path
    return [str(path), *(f"--{name}={value}" for name, value in flags.items())]


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]


def namespaces() -> list[str]:
    """Return the beginning of a command that runs in private namespaces, as their root."""
    return [binaries.tool("unshare"), *([] if os.geteuid() == 0 else ["-U", "-r"]),
            "-n", "-m", "-p", "-i", "--fork", "--kill-child", "--mount-proc"]


KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "KUBEBUILDER_ASSETS", "XDG_CACHE_HOME", "XDG_STATE_HOME", "RUNBOOK_CACHE",
        "RUNBOOK_BACKOFF", "GOGC")
"""Variables of the caller that reach the parts; GOGC trades the control plane's memory for processor time."""
NETWORK = ("PIP_", "UV_", "GIT_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
"""Beginnings of variables that say how this machine reaches package indexes and Git servers."""


def environment_of(state: State) -> dict[str, str]:
    """Return what every part gets: nothing of the caller's that could change what runs inside."""
    wanted = {*KEPT, *(binaries.variable(name) for name in binaries.PROGRAMS)}
    kept = {name: value for name, value in os.environ.items() if name in wanted}
    return kept | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONUNBUFFERED": "1",
                   "RUNBOOK_STATE": str(state.root), "TMPDIR": str(state.path("run", "tmp"))}


def outer_environment(state: State) -> dict[str, str]:
    """Return what the parts in the host's network get: also how this machine reaches the outside."""
    network = {name: value for name, value in os.environ.items() if name.upper().startswith(NETWORK)}
    return network | environment_of(state)


def http_check(port: int, path: str, ca: Path | None, *, tls: bool = False) -> Check:
    """Return a check that a GET of a loopback port's path answers 200."""
    contexts: list[ssl.SSLContext] = []

    def check() -> str:
        if (ca or tls) and not contexts:
            # The controllers make their own certificate: this asks our own process whether it lives, nothing secret.
            contexts.append(ssl.create_default_context(cafile=str(ca)) if ca else ssl._create_unverified_context())  # noqa: S323, SLF001
        connection = (http.client.HTTPSConnection("127.0.0.1", port, timeout=1, context=contexts[0]) if contexts
                      else http.client.HTTPConnection("127.0.0.1", port, timeout=1))
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read(2000).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            return f"port {port}: {error}"
        finally:
            connection.close()
        return "" if answer.status == 200 else f"{path}: {answer.status} {text[-300:]}"
    return check


def _tcp(address: str, port: int) -> Check:
    def check() -> str:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError as error:
            return f"{address}:{port}: {error.strerror or error}"
        return ""
    return check


def unix_check(path: Path) -> Check:
    """Return a check that a Unix socket takes connections."""
    def check() -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(path))
            except OSError as error:
                return f"{path.name}: {error.strerror or error}"
        return ""
    return check
