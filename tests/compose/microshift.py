"""What the stand-in's container of MicroShift holds: real API server, controllers, HAProxy as its router, and a node.

They are the embedded stack's, in namespaces of their own as a container has them, but bare as MicroShift is: clients show
certificates, Route is defined by MicroShift itself, nothing mutates, and there are no builds, image streams or templates.
Pods find this machine's hosts at the gateway of the containers' network.

`python microshift.py STATE ROLE`; STATE is the container's own folder, and `container.json` in it says what is outside.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from stack import binaries, certificates, haproxy, launch, node, platform, router, services
from stack.api import Api, ApiError, wait_until
from stack.services import Service
from stack.state import OUTSIDE_ADDRESS, State
from stack.supervisor import Supervisor

LOCAL = "https://127.0.0.1:6443"


def outside(state: State) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(state.path("container.json").read_text())
    return found


def role(state: State, name: str) -> list[str]:
    return [sys.executable, "-P", __file__, str(state.root), name]


def relays(state: State) -> dict[int, Path]:
    """Return the sockets that lead out of the namespaces, by the port that pods ask for."""
    return {port: state.path("run", f"out-{port}") for port in outside(state)["ports"]}


def streams(pairs: dict[str, str]) -> str:
    """Return a configuration of HAProxy that hands connections on as they are."""
    parts = ["global\n    no strict-limits\n    maxconn 1000\ndefaults\n    mode tcp\n    timeout connect 5s\n"
             "    timeout client 24h\n    timeout server 24h\n"]
    parts += [f"listen {number}\n    bind {bind}\n    server one {server}\n" for number, (bind, server) in enumerate(pairs.items())]
    return "\n".join(parts)


def run_outer(state: State) -> None:
    """In the machine's network: what the container publishes, and the way from its pods to this machine."""
    launch.make_folders(state)
    sockets = launch.open_ports(state)
    services.prepare_files(state)
    certificates.issue(state, "kubeadmin", [], organization="system:masters")
    known = outside(state)
    published = socket.create_server(("127.0.0.1", known["api"]))
    numbers = {name: each.fileno() for name, each in sockets.items()} | {"published": published.fileno()}
    gateway = known["gateway"]
    state.write("run/out.cfg", streams({f"unix@{path}": f"{gateway}:{port}" for port, path in relays(state).items()}))
    environment = services.environment_of(state) | {"SSL_CERT_FILE": known["trusted"]}
    Supervisor(state, "outer", prefix=binaries.MORTAL).run([
        Service("out", [str(binaries.find("haproxy").path), "-db", "-f", str(state.path("run", "out.cfg"))], lambda: "",
                environment=environment, grace=1),
        Service("inner", [*services.namespaces(), *role(state, "inner")], lambda: "",
                environment=environment | {"RUNBOOK_SOCKETS": json.dumps(numbers)}, sockets=tuple(numbers.values()),
                stop_group=True, grace=15, deadline=float("inf"))])


def run_inner(state: State) -> None:
    """In the container's own namespaces."""
    sockets: dict[str, int] = json.loads(os.environ["RUNBOOK_SOCKETS"])
    published = sockets.pop("published")
    state.write_json("run/sockets.json", sockets)
    subprocess.run([sys.executable, "-P", "-m", "stack.network"], check=True)
    state.write("run/haproxy.cfg", haproxy.initial(state, sockets))
    state.write("run/in.cfg", streams({f"fd@{published}": "127.0.0.1:6443"} | {
        f"{OUTSIDE_ADDRESS}:{port}": f"unix@{path}" for port, path in relays(state).items()}))
    wanted = {each.name: each for each in services.inner(state, sockets)}
    # MicroShift's server takes certificates and no feature gates.
    bare = [word for word in wanted["kube-apiserver"].argv if not word.startswith(("--feature-gates", "--runtime-config"))]
    environment = services.environment_of(state) | {"SSL_CERT_FILE": os.environ["SSL_CERT_FILE"]}
    Supervisor(state, "inner").run([
        wanted["etcd"], wanted["kube-controller-manager"], wanted["haproxy"],
        replace(wanted["kube-apiserver"], argv=[*bare, f"--client-ca-file={state.ca}",
                                                "--feature-gates=TranslateStreamCloseWebsocketRequests=false"]),
        Service("ways", [str(binaries.find("haproxy").path), "-db", "-f", str(state.path("run", "in.cfg"))], lambda: "",
                environment=environment, sockets=(published,), grace=1),
        replace(wanted["platform"], argv=role(state, "platform"), after=("kube-apiserver",), environment=environment)])


def run_platform(state: State) -> int:
    """Router and node, once Route is defined."""
    api = Api(LOCAL, state.tokens.admin, state.ca)

    def defined() -> bool:
        try:
            api.apply(json.loads((ROOT / "stack" / "openshift" / "crd-routes.json").read_text()), "microshift")
            api.list("Route", "default")
        except ApiError:
            return False
        return True

    wait_until(defined, "the kind Route")
    state.write("ready", "")
    return platform.run(state, {"node": node.run, "router": router.run})


if __name__ == "__main__":
    os.umask(0o077)
    own = State(Path(sys.argv[1]))
    if sys.argv[2] == "platform":
        code = run_platform(own)
        sys.stderr.flush()
        os._exit(code)
    {"outer": run_outer, "inner": run_inner}[sys.argv[2]](own)
