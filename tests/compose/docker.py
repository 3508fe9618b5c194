"""A stand-in for `docker` with its compose plug-in: records what it is asked, and publishes ports of real local servers.

PostgreSQL with TLS is started by the container's own scripts (`stack/compose/dbod`, `initdb.sh`) with the settings of
the compose file, first as root and then as postgres, who may not read what the machine's user mounts; Redis with the file
that the container would read; MicroShift by `microshift.py` beside this. Of an image the Containerfile is carried out in
the builder's sandbox, with the catalogue's images, and `save` and `skopeo` hand it on.

`python docker.py FOLDER WORDS…`: FOLDER holds what it keeps; `faults.json` in it says what shall go wrong.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from stack.state import State

# The rest is imported where it is needed: it is asked often, and most of it asks for little.

PUBLISHED = {"postgres": {5432: "postgres"}, "redis": {6379: "redis"}, "microshift": {6443: "api", 80: "http", 443: "https"}}
GATEWAY = "127.0.0.77"
"""An address of this machine, as that of a bridge would be."""
KUBECONFIG = "/var/lib/microshift/resources/kubeadmin/kubeconfig"
OPTIONS = {"up": {"--detach"}, "stop": set(), "down": {"--volumes"}}
"""What every compose command knows, podman-compose 1.6.0 included."""
NO_DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
UP_FAULTS = {
    "no-daemon": NO_DAEMON,
    "pull": "Error response from daemon: pull access denied for ghcr.io/microshift-io/microshift:4.21.0_x, repository does not exist "
            "or may require 'docker login': denied: requested access to the resource is denied",
    "offline": "Error response from daemon: Get \"https://ghcr.io/v2/\": dial tcp: lookup ghcr.io: no such host",
    "registry": "Error response from daemon: Get \"https://ghcr.io/v2/\": dial tcp 192.0.2.1:443: connect: connection refused",
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
        if words[0] == "compose":
            words = self._compose(words[1:])
        verb = words[0]
        if self.folder.joinpath("project.json").exists():
            about = json.loads(self.folder.joinpath("project.json").read_text())
            self.state, self.project = State(Path(about["state"])), about["project"]
            os.environ["STACK_STATE"] = about["state"]
            self.file = Path(about["file"])
        if verb in self.faults.get("answers", {}):
            print(self.faults["answers"][verb], file=sys.stderr)
            return 1
        return int(getattr(self, verb)(words[1:]) or 0)

    def _compose(self, words: list[str]) -> list[str]:
        """Take the options of a compose command and return its verb and words."""
        options: dict[str, str] = {}
        while words[0].startswith("-"):
            options[words[0]], words = words[1], words[2:]
        unknown = set(words[1:]) - OPTIONS[words[0]]
        if unknown:
            sys.exit(f"compose: error: unrecognized arguments: {' '.join(unknown)}")
        state = Path(options["--env-file"]).read_text().strip().partition("=")[2]
        (self.folder / "project.json").write_text(json.dumps({"state": state, "file": options["-f"], "project": options["-p"]}))
        return words

    def network(self, words: list[str]) -> None:
        print(json.dumps([{"IPAM": {"Config": [{"Subnet": "127.0.0.0/8", "Gateway": GATEWAY}]}}]))

    def up(self, _words: list[str]) -> int:
        if "up" in self.faults:
            print(UP_FAULTS[self.faults["up"]], file=sys.stderr)
            return 1
        self.own.path("run").mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.own.path("published.json").exists():
            opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
            self.own.write_json("published.json", dict(zip(("postgres", "redis", "api"), (each.getsockname()[1] for each in opened),
                                                           strict=True)))
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
        found: dict[str, int] = json.loads(self.own.path("published.json").read_text())
        if self.own.path("ports.json").exists():
            found |= {"http": self.own.ports.http, "https": self.own.ports.https}
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
        from stack import binaries

        service = self._service
        bin_folder = str(binaries.find("postgres").path.parent)
        stubs = self.own.path("stubs")
        stubs.mkdir(exist_ok=True)
        (stubs / "chown").write_text("#!/bin/sh\n# Root and postgres are the same user here; what tells them apart is what they see.\n")
        (stubs / "chown").chmod(0o755)
        return {"PATH": f"{stubs}:{bin_folder}:{os.environ['PATH']}", "PGDATA": str(self.own.path("data")),
                "PGHOST": str(self.own.path("run")), "PGPORT": str(self.ports["postgres"]), "PGUSER": "postgres", "LC_ALL": "C",
                "DBOD": str(self.state.path("compose", "postgres")), "DBOD_PRIVATE": str(self.own.path("private")),
                "DBOD_ENTRYPOINT": str(Path(__file__).with_name("entrypoint.sh")), "DBOD_SECRETS": str(self.state.path("compose")),
                "DBOD_INIT": str(ROOT / "stack" / "compose" / "initdb.sh"), "STAND_IN_GOSU": shlex.join(self._user("postgres")),
                "POSTGRES_INITDB_ARGS": service["environment"]["POSTGRES_INITDB_ARGS"]}

    @property
    def _service(self) -> dict[str, Any]:
        import yaml

        found: dict[str, Any] = yaml.safe_load(self.file.read_text())["services"]["postgres"]
        return found

    def _user(self, name: str) -> list[str]:
        """Return the beginning of a command of a user in the container: postgres does not see what the machine's user mounts."""
        from stack import postgres

        words = postgres._as_postgres(self.own)
        if name == "root":
            return [word if word != str(postgres.UID) else "0" for word in words]
        return [*words[:-1], "--tmpfs", str(self.state.path("compose")), "--"]

    def _postgres(self) -> None:
        service = self._service
        settings = [word.replace("/var/lib/postgresql/dbod", str(self.own.path("private"))) for word in service["command"]]
        ours = [f"--port={self.ports['postgres']}", f"--unix_socket_directories={self.own.path('run')}",
                "--dynamic_shared_memory_type=mmap", "--shared_buffers=16MB"]
        dbod = str(ROOT / "stack" / "compose" / "dbod")
        self._start("postgres", "postgres", [*self._user("root"), *BASH, dbod, service["entrypoint"][1], *settings, *ours],
                    **self._postgres_environment)

    # redis

    def _redis(self) -> None:
        from stack import binaries

        self._start("redis", "redis", [str(binaries.find("redis-server").path), str(self.state.path("compose", "redis.conf")),
                                       "--port", str(self.ports["redis"]), "--bind", "127.0.0.1"])

    # microshift

    def _microshift(self) -> None:
        from stack import sandbox

        ports = self.state.ports
        if not self.own.databases.is_symlink():
            self.own.databases.symlink_to(self.state.databases)  # the names that pods know
        self.own.write_json("container.json", {
            "api": self.ports["api"], "gateway": GATEWAY, "ports": [ports.http, ports.https, *ports.databases],
            "trusted": str(sandbox.bundle(self.state))})
        self.own.path("ready").unlink(missing_ok=True)
        known = {name: value for name, value in os.environ.items() if name not in {"RUNBOOK_STATE", "STACK_STATE"}}
        self._start("microshift", "microshift", [sys.executable, str(Path(__file__).with_name("microshift.py")), str(self.own.root),
                                                 "outer"], **known)

    def _kubeconfig(self, server: str) -> dict[str, Any]:
        import base64

        def text(name: str) -> str:
            return base64.b64encode(self.own.path("pki", name).read_bytes()).decode()
        return {"apiVersion": "v1", "kind": "Config", "current-context": "microshift",
                "clusters": [{"name": "microshift", "cluster": {"server": server, "certificate-authority-data": text("ca.crt")}}],
                "users": [{"name": "user", "user": {"client-certificate-data": text("kubeadmin.crt"),
                                                    "client-key-data": text("kubeadmin.key")}}],
                "contexts": [{"name": "microshift", "context": {"cluster": "microshift", "user": "user"}}]}

    # What the engine is asked.

    def ps(self, words: list[str]) -> None:
        ours = ["--all", "--quiet", "--no-trunc", "--filter", f"label=com.docker.compose.project={self.project}"]
        service = words[-1].removeprefix("label=com.docker.compose.service=")
        assert words in (ours, [*ours, "--filter", f"label=com.docker.compose.service={service}"])
        if self.own.path("published.json").exists():
            for name in (name for name in PUBLISHED if words == ours or name == service):
                if not self.faults.get("services", {}).get(name, {}).get("missing"):
                    print(f"id-{name}")

    def inspect(self, words: list[str]) -> None:
        found = []
        for name in (word.removeprefix("id-") for word in words):
            fault = self.faults.get("services", {}).get(name) or self._end_of(name)
            health = fault.get("health") or ("" if "state" in fault else "healthy" if self._healthy(name) else "starting")
            ports = {f"{inside}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(self.ports[part])}]
                     for inside, part in PUBLISHED[name].items() if part in self.ports}
            found.append({"Id": f"id-{name}", "State": {"Status": fault.get("state", "running"), "ExitCode": fault.get("code", 0),
                                                        **({"Health": {"Status": health}} if health else {})},
                          "Config": {"Labels": {"com.docker.compose.service": name}}, "NetworkSettings": {"Ports": ports}})
        print(json.dumps(found))

    def _end_of(self, name: str) -> dict[str, Any]:
        """Return how a service's container has ended, if it has."""
        pids = self.own.path("run", f"{name}.pid")
        return {"state": "exited", "code": 1} if pids.exists() and not alive(int(pids.read_text())) else {}

    def _healthy(self, name: str) -> bool:
        import http.client
        import ssl

        try:
            if name == "microshift":
                context = ssl.create_default_context(cafile=str(self.own.ca))
                context.load_cert_chain(self.own.path("pki", "kubeadmin.crt"), self.own.path("pki", "kubeadmin.key"))
                api = http.client.HTTPSConnection("localhost", self.ports["api"], timeout=2, context=context)
                api.request("GET", "/readyz")
                return api.getresponse().status == 200 and self.own.path("ready").exists()
            socket.create_connection(("127.0.0.1", self.ports[name]), 1).close()
        except OSError:
            return False
        return True

    def logs(self, words: list[str]) -> None:
        log = self.own.path(f"{words[-1].removeprefix('id-')}.log")
        for line in (log.read_text(errors="replace").splitlines() if log.exists() else [])[-int(words[1]):]:
            print(line)

    def exec(self, words: list[str]) -> int:
        assert words[0] == "--interactive"
        user, words = (words[2], words[3:]) if words[1] == "--user" else ("root", words[1:])
        service, argv = words[0].removeprefix("id-"), words[1:]
        if argv[0] in self.faults.get("answers", {}):
            print(self.faults["answers"][argv[0]], file=sys.stderr)
            return 1
        if service == "microshift":
            return int({"cat": self._cat, "skopeo": self._skopeo}[argv[0]](argv[1:]) or 0)
        if argv[0] == "dbod":
            argv = [*BASH, str(ROOT / "stack" / "compose" / "dbod"), *argv[1:]]
        return subprocess.run([*self._user(user), *argv], env=self._postgres_environment, check=False).returncode

    def _cat(self, words: list[str]) -> None:
        import yaml

        assert words == [KUBECONFIG]
        # Inside the container the API has its own port.
        print(yaml.safe_dump(self.faults.get("kubeconfig") or self._kubeconfig("https://localhost:6443")))

    def stop(self, _words: list[str]) -> None:
        server = self.own.path("data", "postmaster.pid")
        if server.exists():
            number = int(server.read_text().split()[0])
            ended(number, lambda: os.kill(number, signal.SIGINT), 30)
        for part in ("microshift", "redis", "postgres"):
            pids = self.own.path("run", f"{part}.pid")
            if pids.exists():
                number = int(pids.read_text())
                if not ended(number, lambda number=number: os.killpg(number, signal.SIGTERM), 30):
                    ended(number, lambda number=number: os.killpg(number, signal.SIGKILL), 10)
                pids.unlink()

    def down(self, words: list[str]) -> None:
        from stack import commands

        self.stop(words)
        if "--volumes" in words and self.own.root.exists():
            self.own.databases.unlink(missing_ok=True)
            commands._remove(self.own.root)

    # Images: those of the engine lie below `engine`, those that MicroShift has are its node's.

    def _image(self, reference: str) -> Path:
        import hashlib

        return self.own.path("engine", hashlib.sha256(reference.encode()).hexdigest()[:16])

    def build(self, words: list[str]) -> int:
        import shutil

        secrets = {}
        options = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
        for name, value in zip(words[:-1:2], words[1:-1:2], strict=True):
            if name == "--secret":
                about = dict(part.split("=", 1) for part in value.split(","))
                secrets[about["id"]] = Path(about["src"])
        folder = self._image(options["--tag"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Recipe(self.own, folder, Path(words[-1]), secrets, options["--tag"]).carry_out(Path(options["--file"]).read_text())

    def save(self, words: list[str]) -> int:
        import tarfile

        folder = self._image(words[0])
        if not folder.exists():
            print(f"Error response from daemon: No such image: {words[0]}", file=sys.stderr)
            return 1
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            archive.add(folder, ".")
        return 0

    def image(self, words: list[str]) -> None:
        from stack import commands

        assert words[0] == "rm"
        commands._remove(self._image(words[1]))

    def _skopeo(self, words: list[str]) -> int:
        import tempfile

        from stack import catalogue

        kept = self.own.path("store.json")
        store: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
        if words[0] == "inspect":
            kind, _, name = words[-1].partition(":")
            digest = catalogue.digest_of(name.removeprefix("//")) if kind == "docker" else store.get(name, "")
            print(digest or f"Error reading manifest of {name}: manifest unknown", file=sys.stdout if digest else sys.stderr)
            return 0 if digest else 1
        assert words[:3] == ["copy", "--quiet", "docker-archive:/dev/stdin"]
        name = words[3].removeprefix("containers-storage:")
        self.own.images.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.own.images))
        subprocess.run(["tar", "-x", "-C", folder], check=True)  # from our own standard input
        about = json.loads((folder / "about.json").read_text())
        if about.pop("name") != name:
            print(f"Error: {name} is not in the archive", file=sys.stderr)
            return 1
        (folder / "about.json").unlink()
        store[name] = catalogue.keep(self.own, folder, **about)
        self.own.write_json("store.json", store)
        return 0


class Recipe:
    """A Containerfile that is carried out: what it knows is what source-to-image needs."""

    def __init__(self, own: State, folder: Path, context: Path, secrets: dict[str, Path], name: str) -> None:
        self.own, self.folder, self.context, self.secrets, self.name = own, folder, context, secrets, name
        self.env: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.copied: dict[str, str] = {}
        self.user, self.command = "", [""]

    def carry_out(self, text: str) -> int:
        import shutil

        from stack import catalogue

        for line in text.splitlines():
            print(f"STEP {line.split('=')[0]}", flush=True)
            word, _, rest = line.partition(" ")
            code = getattr(self, f"_{word.lower()}")(rest)
            if code:
                print(f"ERROR: process \"{rest}\" did not complete successfully: exit code: {code}", file=sys.stderr)
                return 1
        if "/tmp/scripts" in self.copied and not self.command[0].startswith("/tmp/scripts"):
            shutil.rmtree(self.folder / "scripts")
        shutil.rmtree(self.folder / "src")
        scripts = {"scripts": "/tmp/scripts"} if (self.folder / "scripts").exists() else {}
        binds = {}
        for number, (bound, target) in enumerate(self.builder.binds):
            shutil.copytree(bound, self.folder / f"bind-{number}", symlinks=True)
            binds[f"bind-{number}"] = target
        (self.folder / "about.json").write_text(json.dumps({
            "name": self.name, "layers": {"app-root": catalogue.APP_ROOT} | scripts, "below": {}, "binds": binds, "env": self.builder.env | self.env,
            "labels": self.labels, "working_dir": self.builder.working_dir, "command": self.command}))
        return 0

    def _from(self, reference: str) -> int:
        from stack import catalogue

        found = catalogue.resolve(self.own, reference)
        if not found:
            print(f"ERROR: failed to resolve source metadata for {reference}: manifest unknown", file=sys.stderr)
            return 1
        self.builder = found
        return 0

    def _user(self, name: str) -> None:
        self.user = name

    def _copy(self, rest: str) -> None:
        import shutil

        source, target = [word for word in rest.split() if not word.startswith("--chown=1001:0")]
        self.copied[target] = source
        if (self.context / source).is_dir():
            shutil.copytree(self.context / source, self.folder / source, symlinks=True)

    def _env(self, rest: str) -> None:
        self.env |= dict(word.split("=", 1) for word in shlex.split(rest.replace("\\$", "$")))

    def _label(self, rest: str) -> None:
        self.labels |= dict(word.split("=", 1) for word in shlex.split(rest.replace("\\$", "$")))

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)

    def _run(self, rest: str) -> int:
        from stack import catalogue, sandbox
        from stack.builder import layers
        from stack.builder import run as builds
        from stack.sandbox import Mount

        if rest == "update-ca-trust":
            # The sandbox shows the local CA at the same place; here it counts that the image was given it, by its root.
            assert self.user == "0" and (self.context / self.copied["/etc/pki/ca-trust/source/anchors/local-stack.crt"]).exists()
            return 0
        assert self.user == "1001"
        words = rest.split()
        # What becomes an archive is a copy: an archive knows nothing of what is removed from a layer below.
        work = layers.prepare(self.own, self.builder, self.folder / "src", self.folder, None)
        mounts = [*work.mounts, Mount(self.folder / "src", "/tmp/src", writable=True), *(Mount(*each) for each in self.builder.binds)]
        if "/tmp/scripts" in self.copied:
            mounts.append(Mount(self.folder / "scripts", "/tmp/scripts"))
        for word in words[:-1]:
            about = dict(part.split("=", 1) for part in word.removeprefix("--mount=").split(","))
            place = self.folder / "app-root" / Path(about["target"]).relative_to(catalogue.APP_ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            mounts.append(Mount(self.secrets[about["id"]], about["target"]))
        machine, more = builds._machine_settings()
        argv = sandbox.command(self.own, [words[-1]], user=1001, working_dir=catalogue.HOME, host_network=True,
                               mounts=[*mounts, *more])
        environment = {**sandbox.ENVIRONMENT, "PIP_CACHE_DIR": layers.PIP_CACHE, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **machine,
                       **self.builder.env, **self.env, **work.environment}
        return subprocess.run(argv, env=environment, check=False).returncode


def ended(pid: int, ask: Callable[[], None], seconds: float) -> bool:
    """Ask a process to end and tell whether it has."""
    end = time.monotonic() + seconds
    if alive(pid):
        ask()
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(Docker(Path(sys.argv[1])).main(sys.argv[2:]))
