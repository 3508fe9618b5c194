"""A stand-in for `docker` with its compose plug-in: records what it is asked, and publishes ports of real local servers.

PostgreSQL with TLS is started by the container's own scripts (`stack/compose/dbod`, `initdb.sh`) with the settings of
the compose file; Redis with the file that the container would read; etcd, kube-apiserver and kube-controller-manager with
client certificates and without CERN's policies, as MicroShift has them. Its router admits every Route and
answers for all of them. No node, no DNS, no image is there.

`python docker.py FOLDER WORDS…`: FOLDER holds what it keeps; `faults.json` in it says what shall go wrong.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import urllib3
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from stack import binaries, certificates, postgres
from stack.state import State

PUBLISHED = {("postgres", 5432): "postgres", ("redis", 6379): "redis", ("microshift", 6443): "api", ("microshift", 80): "plain",
             ("microshift", 443): "router"}
NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
UP_FAULTS = {
    "no-daemon": NO_DAEMON,
    "pull": "Error response from daemon: pull access denied for ghcr.io/microshift-io/microshift:4.21.0_x, repository does not exist "
            "or may require 'docker login': denied: requested access to the resource is denied",
    "offline": "Error response from daemon: Get \"https://ghcr.io/v2/\": dial tcp: lookup ghcr.io: no such host",
    "port": "Error response from daemon: driver failed programming external connectivity on endpoint x: Bind for 127.0.0.1:49153 "
            "failed: port is already allocated",
    "room": "failed to register layer: write /usr/lib/big: no space left on device",
    "strange": "unexpected end of the world",
}
BASH = ["/bin/sh"]


class Docker:
    """What one folder's containers are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A short path of its own: Unix sockets lie below it.
        self.own = State(folder / "own")
        faults = folder / "faults.json"
        self.faults: dict[str, Any] = json.loads(faults.read_text()) if faults.exists() else {}

    def main(self, words: list[str]) -> int:
        with (self.folder / "calls").open("a") as calls:
            calls.write(json.dumps(words) + "\n")
        if words == ["compose", "version"]:
            if self.faults.get("compose"):
                print("docker: unknown command: docker compose\n\nRun 'docker --help' for more information", file=sys.stderr)
                return 1
            print("Docker Compose version v2.39.1")
            return 0
        if words[:2] == ["network", "inspect"]:
            print(json.dumps([{"IPAM": {"Config": [{"Subnet": "127.0.0.0/8", "Gateway": "127.0.0.77"}]}}]))
            return 0
        if words[0] != "compose":
            print(f"docker: unknown command {words[0]}", file=sys.stderr)
            return 1
        options: dict[str, str] = {}
        rest = words[1:]
        while rest[0].startswith("-"):
            options[rest[0]], rest = rest[1], rest[2:]
        os.environ["STACK_STATE"] = Path(options["--env-file"]).read_text().strip().partition("=")[2]
        self.state = State(Path(os.environ["STACK_STATE"]))
        self.compose = yaml.safe_load(Path(options["-f"]).read_text())
        verb = rest[0]
        if verb in self.faults.get("answers", {}):
            print(self.faults["answers"][verb], file=sys.stderr)
            return 1
        return int(getattr(self, verb)(rest[1:]) or 0)

    def up(self, _words: list[str]) -> int:
        if "up" in self.faults:
            print(UP_FAULTS[self.faults["up"]], file=sys.stderr)
            return 1
        self.own.path("run").mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.own.path("ports").exists():
            opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(10)]
            names = [*PUBLISHED.values(), "etcd", "peers", "controllers"]
            self.own.write_json("ports", dict(zip(names, (each.getsockname()[1] for each in opened), strict=False)))
            for each in opened:
                each.close()
        for name, start in (("postgres", self._postgres), ("redis", self._redis), ("microshift", self._microshift)):
            fault = self.faults.get("services", {}).get(name)
            if fault:
                self.own.write(f"{name}.log", fault.get("log", ""))
            elif name in self.faults.get("only", (name,)):
                start()
        return 0

    @property
    def ports(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.own.path("ports").read_text())
        return found

    def _start(self, service: str, part: str, argv: list[str], **environment: str) -> None:
        pids = self.own.path("run", f"{part}.pid")
        if pids.exists() and alive(int(pids.read_text())):
            return
        with self.own.path(f"{service}.log").open("ab") as log:
            made = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                    env={"PATH": os.environ["PATH"], "LC_ALL": "C"} | environment, cwd=self.own.root)
        self.own.write(f"run/{part}.pid", str(made.pid))

    # postgres

    @property
    def _postgres_environment(self) -> dict[str, str]:
        service = self.compose["services"]["postgres"]
        bin_folder = str(binaries.find("postgres").path.parent)
        return {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PGDATA": str(self.own.path("data")), "PGHOST": str(self.own.path("run")),
                "PGPORT": str(self.ports["postgres"]), "PGUSER": "postgres", "LC_ALL": "C",
                "DBOD": str(self.state.path("compose", "postgres")), "DBOD_PRIVATE": str(self.own.path("private")),
                "DBOD_ENTRYPOINT": str(Path(__file__).with_name("entrypoint.sh")), "DBOD_SECRETS": str(self.state.path("compose")),
                "DBOD_INIT": str(ROOT / "stack" / "compose" / "initdb.sh"),
                "POSTGRES_INITDB_ARGS": service["environment"]["POSTGRES_INITDB_ARGS"]}

    def _postgres(self) -> None:
        service = self.compose["services"]["postgres"]
        settings = [word.replace("/var/lib/postgresql/dbod", str(self.own.path("private"))) for word in service["command"]]
        ours = [f"--port={self.ports['postgres']}", f"--unix_socket_directories={self.own.path('run')}",
                "--dynamic_shared_memory_type=mmap", "--shared_buffers=16MB"]
        dbod = str(ROOT / "stack" / "compose" / "dbod")
        self._start("postgres", "postgres", [*postgres._as_postgres(self.own), *BASH, dbod, service["entrypoint"][1], *settings, *ours],
                    **self._postgres_environment)

    # redis

    def _redis(self) -> None:
        self._start("redis", "redis", [str(binaries.find("redis-server").path), str(self.state.path("compose", "redis.conf")),
                                       "--port", str(self.ports["redis"]), "--bind", "127.0.0.1"])

    # microshift

    def _microshift(self) -> None:
        own, ports = self.own, self.ports
        certificate, key = certificates.issue(own, "api", ["localhost", "kubernetes", "127.0.0.1"])
        certificates.issue(own, "kubeadmin", [], organization="system:masters")
        signing = str(certificates.signing_key(own))
        etcd, peers = f"http://127.0.0.1:{ports['etcd']}", f"http://127.0.0.1:{ports['peers']}"
        self._start("microshift", "etcd", [
            str(binaries.find("etcd").path), "--data-dir", str(own.path("etcd")), "--log-level", "warn", "--unsafe-no-fsync",
            "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peers,
            "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"])
        self._start("microshift", "api", [
            str(binaries.find("kube-apiserver").path), f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
            f"--secure-port={ports['api']}", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
            f"--client-ca-file={own.ca}", "--authorization-mode=RBAC", f"--service-account-key-file={signing}",
            f"--service-account-signing-key-file={signing}", "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.43.0.0/16", "--profiling=false"])
        own.write("kubeconfig", yaml.safe_dump(self._kubeconfig(f"https://localhost:{ports['api']}")))
        self._start("microshift", "controllers", [
            str(binaries.find("kube-controller-manager").path), f"--kubeconfig={own.path('kubeconfig')}",
            f"--service-account-private-key-file={signing}", f"--root-ca-file={own.ca}", "--leader-elect=false",
            "--bind-address=127.0.0.1", f"--secure-port={ports['controllers']}", f"--cert-dir={own.path('run')}",
            "--controllers=*,-nodeipam,-node-route-controller,-cloud-node-lifecycle-controller"])
        self._start("microshift", "router", [sys.executable, __file__, str(self.folder), "router"])

    def _kubeconfig(self, server: str) -> dict[str, Any]:
        def text(name: str) -> str:
            return base64.b64encode(self.own.path("pki", name).read_bytes()).decode()
        return {"apiVersion": "v1", "kind": "Config", "current-context": "microshift",
                "clusters": [{"name": "microshift", "cluster": {"server": server, "certificate-authority-data": text("ca.crt")}}],
                "users": [{"name": "user", "user": {"client-certificate-data": text("kubeadmin.crt"),
                                                    "client-key-data": text("kubeadmin.key")}}],
                "contexts": [{"name": "microshift", "context": {"cluster": "microshift", "user": "user"}}]}

    def router(self) -> None:
        """Answer for MicroShift's router: with a certificate of its own, the host that was asked for."""
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f"route of {self.headers['Host']} by {self.headers['X-Forwarded-Proto']}".encode())

        crt, key = certificates.issue(self.own, "default-router", ["*.apps.example.com"])
        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.ports["router"]), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(crt, key)
        threading.Thread(target=self._admit, daemon=True).start()
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.serve_forever()

    def _admit(self) -> None:
        """Define Route, as MicroShift does, and admit every one."""
        api = urllib3.PoolManager(ca_certs=str(self.own.ca), cert_file=str(self.own.path("pki", "kubeadmin.pem")), retries=False)
        server = f"https://localhost:{self.ports['api']}"

        def ask(method: str, path: str, body: object = None, content: str = "application/json") -> Any:
            data = None if body is None else json.dumps(body)
            return api.request(method, server + path, body=data, headers={"Content-Type": content}, timeout=5).json()

        while True:
            try:
                if not self.own.path("routes").exists():
                    ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?fieldManager=microshift",
                        json.loads((ROOT / "stack" / "openshift" / "crd-routes.json").read_text()))
                    self.own.write("routes", "")
                for route in ask("GET", "/apis/route.openshift.io/v1/routes").get("items", []):
                    if not route.get("status", {}).get("ingress"):
                        about = route["metadata"]
                        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                        admitted = {"type": "Admitted", "status": "True", "lastTransitionTime": now}
                        ask("PATCH", f"/apis/route.openshift.io/v1/namespaces/{about['namespace']}/routes/{about['name']}/status",
                            {"status": {"ingress": [{"host": route["spec"]["host"], "routerName": "default", "conditions": [admitted]}]}},
                            "application/merge-patch+json")
            except (urllib3.exceptions.HTTPError, ValueError):
                pass
            time.sleep(0.3)

    # What the engine is asked.

    def ps(self, _words: list[str]) -> None:
        for name in self.compose["services"]:
            fault = self.faults.get("services", {}).get(name, {})
            health = fault.get("health") or ("" if "state" in fault else "healthy" if self._healthy(name) else "starting")
            if not fault.get("missing"):
                print(json.dumps({"Service": name, "State": fault.get("state", "running"), "Health": health,
                                  "ExitCode": fault.get("code", 0)}))

    def _healthy(self, name: str) -> bool:
        if not self.own.path("ports").exists():
            return False
        try:
            if name == "microshift":
                context = ssl.create_default_context(cafile=str(self.own.ca))
                context.load_cert_chain(self.own.path("pki", "kubeadmin.crt"), self.own.path("pki", "kubeadmin.key"))
                api = http.client.HTTPSConnection("localhost", self.ports["api"], timeout=2, context=context)
                api.request("GET", "/readyz")
                return api.getresponse().status == 200 and self.own.path("routes").exists()
            socket.create_connection(("127.0.0.1", self.ports[name]), 1).close()
        except OSError:
            return False
        return True

    def port(self, words: list[str]) -> None:
        print(f"127.0.0.1:{self.ports[PUBLISHED[words[0], int(words[1])]]}")

    def logs(self, words: list[str]) -> None:
        log = self.own.path(f"{words[-1]}.log")
        number = int(words[1].removeprefix("--tail="))
        for line in (log.read_text(errors="replace").splitlines() if log.exists() else [])[-number:]:
            print(f"{words[-1]}-1  | {line}")

    def exec(self, words: list[str]) -> int:
        assert words[0] == "-T"
        words = words[3:] if words[1] == "--user" else words[1:]
        service, argv = words[0], words[1:]
        if service == "microshift" and argv[0] == "cat":
            assert argv[1] == "/var/lib/microshift/resources/kubeadmin/kubeconfig"
            # Inside the container the API has its own port.
            print(yaml.safe_dump(self.faults.get("kubeconfig") or self._kubeconfig("https://localhost:6443")))
            return 0
        if argv[0] == "dbod":
            argv = [*BASH, str(ROOT / "stack" / "compose" / "dbod"), *argv[1:]]
        if argv[0] == "psql":
            argv[0] = str(binaries.find("psql").path)
        return subprocess.run([*postgres._as_postgres(self.own), *argv] if argv[0] in BASH else argv,
                              env=self._postgres_environment, check=False).returncode

    def stop(self, _words: list[str]) -> None:
        for part in ("router", "controllers", "api", "etcd", "redis", "postgres"):
            pids = self.own.path("run", f"{part}.pid")
            if pids.exists():
                number = int(pids.read_text())
                # Open watches would keep the API server for a minute.
                for each in (signal.SIGKILL,) if part != "postgres" else (signal.SIGTERM, signal.SIGKILL):
                    if alive(number):
                        os.killpg(number, each)
                        end = time.monotonic() + 5
                        while alive(number) and time.monotonic() < end:
                            time.sleep(0.05)
                pids.unlink()

    def down(self, words: list[str]) -> None:
        self.stop(words)
        if "--volumes" in words or "-v" in words:
            subprocess.run(["rm", "-rf", str(self.own.root)], check=True)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in re.findall(".", "ZX")


if __name__ == "__main__":
    os.umask(0o077)
    docker = Docker(Path(sys.argv[1]))
    sys.exit(docker.router() if sys.argv[2:] == ["router"] else docker.main(sys.argv[2:]))
