"""What runs on this machine beside the containers, `python -m stack.compose ROLE STATE`; see `stack/supervisor.py`.

`outer` keeps HAProxy, the portal, the builder and the rest running; `cluster` puts what makes it a small CERN into the
cluster once; `platform` follows Routes (for HAProxy's certificates) and claims (for volumes).
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from pathlib import Path

from stack import binaries, certificates, cluster, eos, haproxy, platform, router, services, storage
from stack.api import Api, ApiError, wait_until
from stack.compose import front, project
from stack.services import Service
from stack.state import MEMBER, State
from stack.supervisor import Supervisor, announce

LOOK = 0.5
"""Seconds after which a requested database is noticed at the latest."""
WITHOUT = ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")
"""Kinds that MicroShift does not serve: its API server takes no feature gates for them."""
ENGINE = ("DOCKER_", "CONTAINER_", "XDG_RUNTIME_DIR")
"""Beginnings of variables that say where the engine is: portal and builder ask it."""
ROUTES = "routes.route.openshift.io"
LOCALHOST = """
localhost:5353 {{
    template IN A {{
        answer "{{{{ .Name }}}} 60 IN A {gateway}"
    }}
}}
"""
"""For MicroShift's CoreDNS: where pods find the hosts of this machine (`auth.localhost`, the database)."""


class Outer(Supervisor):
    """The only supervisor of a compose stack."""

    def tick(self) -> None:
        """Also tell everybody when all is ready."""
        super().tick()
        if not self.state.connection.exists() and self.processes and all(
                process.ready.is_set() for process in self.processes.values()):
            announce(self.state, project.published(self.state).network)


def run_outer(state: State) -> None:
    """Keep the parts on this machine running; the launcher has opened the sockets and holds the lock."""
    sockets: dict[str, int] = json.loads(os.environ["RUNBOOK_SOCKETS"])
    state.write("run/outer.pid", f"{os.getpid()}\n")
    state.write_json("run/sockets.json", sockets)
    tokens = state.tokens
    state.write("run/users.map", f"{tokens.admin} admin\n{tokens.member} {MEMBER}\n{tokens.stranger} stranger\n")
    state.write("run/haproxy.cfg", configuration(state, ()))
    Outer(state, "outer", prefix=binaries.MORTAL).run(parts(state, sockets))


def parts(state: State, sockets: dict[str, int]) -> list[Service]:
    """Return what runs here."""
    environment = services.outer_environment(state) | {
        name: value for name, value in os.environ.items() if name.startswith(ENGINE)}

    def python(*words: str) -> list[str]:
        return [sys.executable, "-P", "-m", *words, str(state.root)]

    return [
        Service("haproxy", services.proxy(state), services.http_check(state.ports.api, "/readyz", state.ca),
                environment=environment, sockets=tuple(sockets.values()), grace=1),
        Service("cluster", python("stack.compose", "cluster"), lambda: "it has not ended", after=("haproxy",),
                environment=environment, once=True, deadline=120),
        Service("platform", python("stack.compose", "platform"), lambda: "" if _followed(state) else "it has seen no Routes yet",
                after=("cluster",), environment=environment, grace=5),
        Service("portal", python("stack.portal"), services.unix_check(state.portal_socket), after=("haproxy",),
                environment=environment),
        Service("builder", python("stack.builder"), services.unix_check(state.builder_socket), after=("cluster",),
                environment=environment, deadline=120),
    ]


def _followed(state: State) -> bool:
    return state.path("run", "routes").exists()


def configuration(state: State, hosts: tuple[str, ...]) -> str:
    """Return HAProxy's configuration with certificates for these hosts."""
    known = project.published(state)
    certificates.issue(state, "api", ["localhost", "kubernetes", "127.0.0.1"])
    certificates.issue(state, "router", ["localhost", *haproxy.PLATFORM_HOSTS, "127.0.0.1"])
    return front.render(front.Front(
        state_sockets(state), state.ports, known.gateway if binds(known.gateway) else "", known.api, known.router, known.postgres,
        known.server, str(state.path("compose", "api-ca.crt")), str(state.path("compose", "client.pem")),
        str(state.path("run", "users.map")), str(state.path("pki", "api.pem")),
        sorted(json.loads(each.read_text())["port"] for each in state.databases.glob("*/server.json")),
        [str(state.path("pki", "router.pem")), *(router.certificate(state, host) for host in hosts)]))


def state_sockets(state: State) -> dict[str, int]:
    """Return the sockets that the launcher opened."""
    found: dict[str, int] = json.loads(state.path("run", "sockets.json").read_text())
    return found


@functools.cache
def binds(address: str) -> bool:
    """Tell whether this machine has an address: in a desktop's virtual machine the containers' network is not ours."""
    import socket

    if not address:
        return False
    with socket.socket() as opened:
        try:
            opened.bind((address, 0))
        except OSError:
            return False
    return True


def run_cluster(state: State) -> None:
    """Put the missing kinds, roles, streams and templates into MicroShift, and tell its DNS where this machine is."""
    api = Api(state.server, state.tokens.admin, state.ca)

    def answers() -> bool:
        try:
            return bool(api.request("GET", "/readyz") == "ok")
        except ApiError:
            return False
    wait_until(answers, "the API server", 90)
    own_routes = _serves_routes(api)
    left_out = {ROUTES} if own_routes else set()
    wanted = [each for each in cluster.content() if each["kind"] not in WITHOUT and each["metadata"]["name"] not in left_out
              and not (each["kind"] == "StorageClass" and each["metadata"]["name"] == eos.CLASS)]  # it cannot be mounted there
    for stream in (each for each in wanted if each["kind"] == "ImageStream"):
        for tag in stream["spec"]["tags"]:
            tag["referencePolicy"] = {"type": "Source"}  # there is no registry that could hand on what it imported
    cluster.apply_all(api, wanted)
    known = project.published(state)
    if binds(known.gateway):
        tell_dns(api, known.gateway)


def _serves_routes(api: Api) -> bool:
    """Tell whether the cluster has a definition of Route that is not ours: MicroShift's stays as it is."""
    found = api.get("CustomResourceDefinition", ROUTES)
    managers = {each.get("manager") for each in found["metadata"].get("managedFields", [])} if found else {cluster.MANAGER}
    return cluster.MANAGER not in managers


def tell_dns(api: Api, gateway: str) -> None:
    """Let pods resolve names below `localhost` to this machine; without MicroShift's DNS there is nothing to tell."""
    found = api.get("ConfigMap", "dns-default", "openshift-dns")
    if not found:
        print("cluster: there is no ConfigMap openshift-dns/dns-default; pods will not find this machine's hosts", flush=True)
        return
    text = found["data"]["Corefile"]
    block = LOCALHOST.format(gateway=gateway)
    if block not in text:
        api.patch("ConfigMap", "dns-default", {"data": {"Corefile": text + block}}, "openshift-dns")


def keep_front(state: State, stop: threading.Event) -> None:
    """Give HAProxy a certificate for the host of every Route, and a way to the database server once it is requested."""
    changed = threading.Event()
    routes = router.Follow(Api(state.server, state.tokens.admin, state.ca), "Route", changed, stop)
    loaded = ""  # see router.run
    while not stop.is_set():
        changed.wait(LOOK)
        changed.clear()
        if routes.failed:
            raise routes.failed
        if not routes.synced:
            continue
        hosts = {str(each["spec"].get("host", "")).lower() for each in routes.objects()} - {"", *haproxy.PLATFORM_HOSTS}
        text = configuration(state, tuple(sorted(hosts)))
        if text != loaded and router.load(state, text):
            loaded = text
        if not _followed(state):
            state.write("run/routes", "")


def main(role: str, root: str) -> None:
    """Run as one of the roles outer, cluster, platform."""
    os.umask(0o077)
    state = State(Path(root))
    if role == "platform":
        code = platform.run(state, {"front": keep_front, "storage": storage.run})
        sys.stderr.flush()
        os._exit(code)
    {"outer": run_outer, "cluster": run_cluster}[role](state)


if __name__ == "__main__":
    main(*sys.argv[1:3])
