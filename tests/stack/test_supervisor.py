"""The supervisors: what dies is started again, and nothing outlives them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import commands, launch, seed
from stack.api import ApiError, collection, wait_until
from stack.state import State
from tests.conftest import connect
from tests.project import Project

pytestmark = pytest.mark.needs("cluster", "inside")


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def second() -> Iterator[State]:
    """Another stack, beside the session's: one that these tests may kill, begun by two starts at once."""
    state = State(Path(tempfile.mkdtemp(prefix="stack-")))
    both = [subprocess.Popen([sys.executable, "-m", "runbook", "stack.up"], cwd=launch.checkout(), text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=os.environ | {"RUNBOOK_STATE": str(state.root)}) for _ in range(2)]
    try:
        for each in both:
            _, errors = each.communicate(timeout=120)
            assert (each.returncode, errors) == (0, "")
        yield state
    finally:
        commands.down(state, wipe=True, progress=silent)
    assert not state.root.exists()


def parts(state: State) -> dict[str, dict[str, object]]:
    return {row["part"]: row for row in commands.status(state)["parts"]}


def processes(state: State) -> list[str]:
    """The host's processes that have the state folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(state.root) in word for word in words) and int(path.parent.name) != os.getpid():
            found.append(" ".join(words))
    return found


def test_two_stacks_run_side_by_side(stack, second):
    assert stack.state.ports.api != second.ports.api
    assert processes(stack.state)
    for state in (second, stack.state):
        wait_until(lambda state=state: {row["state"] for row in parts(state).values()} <= {"ready", "done"},
                   "every part to be ready")


def test_two_starts_at_once_make_one_stack(second):
    supervisors = subprocess.run(["pgrep", "-fc", f"stack.supervisor outer {second.root}"], capture_output=True, text=True, check=False)
    assert supervisors.stdout.strip() == "1"


def test_the_second_cluster_begins_with_what_the_first_one_had_and_with_nothing_of_its_own(stack, second):
    ours, theirs = ({role["metadata"]["name"]: role["metadata"]["uid"] for role in connect(state).api.list("ClusterRole")}
                    for state in (stack.state, second))
    assert theirs["cluster-admin"] == ours["cluster-admin"] and theirs["openshift-aggregate-to-admin"] == ours["openshift-aggregate-to-admin"]
    assert seed.place().stat().st_mode & 0o077 == 0
    values = b"".join(base64.b64decode(each["value"]) for each in json.loads(seed.place().read_text()))
    assert b"cluster-admin" in values
    for state in (stack.state, second):
        ports = [state.ports.api, state.ports.http, state.ports.https, state.ports.outside, *state.ports.databases]
        # A number alone may stand in a uid or in a time by chance.
        for own in (*vars(state.tokens).values(), state.ca.read_text(), str(state.root), *(f":{port}" for port in ports)):
            assert own.encode() not in values, own


def family(top: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [top]
    for pid in found:
        found += children.get(pid, [])
    return found


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Return the addresses and ports of the host's own network on which processes take connections or datagrams."""
    sockets = set()
    for link in (link for pid in pids for link in Path("/proc", str(pid)).glob("fd/*")):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(link.readlink().name)
    found = set()
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


LOOPBACK = "0100007F"


def test_everything_listens_on_loopback_only(second):
    """Whatever process of the stack holds it: no other socket of theirs is in the host's network."""
    ports = second.ports
    named = {ports.api, ports.http, ports.https, ports.outside, *ports.databases}
    assert listening(family(int(second.path("run", "outer.pid").read_text()))) == {(LOOPBACK, port) for port in named}


def test_a_socket_that_listens_to_everybody_would_be_seen():
    with socket.create_server(("0.0.0.0", 0)) as opened:
        assert ("00000000", opened.getsockname()[1]) in listening([os.getpid()])


def test_files_are_the_owners_only(second):
    assert second.root.stat().st_mode & 0o777 == 0o700
    for secret in ("tokens.json", "users.csv", "kubeconfig", "admin.kubeconfig", "pki/ca.key", "connection.json"):
        assert second.path(secret).stat().st_mode & 0o077 == 0, secret
    tokens = second.tokens
    for line in processes(second):
        assert tokens.admin not in line
        assert tokens.member not in line


@pytest.mark.parametrize("part", ["etcd", "kube-controller-manager", "haproxy", "platform", "portal", "builder"])
def test_a_part_that_is_killed_comes_back(second, part):
    before = parts(second)[part]
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    after = wait_until(lambda: (row := parts(second)[part])["state"] == "ready" and row["pid"] not in (0, before["pid"])
                       and row, f"{part} to be ready again")
    assert after["restarts"] == before["restarts"] + 1
    wait_until(lambda: commands.up(second, silent), "the stack to answer")


def test_a_part_that_is_away_is_named_and_a_stack_that_is_well_ails_nothing(second):
    assert commands.ailing(second) == ""
    before = parts(second)["kube-apiserver"]
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    wait_until(lambda: "kube-apiserver of the local stack is not ready" in commands.ailing(second), "the part to be named")
    wait_until(lambda: commands.ailing(second) == "", "the stack to be well again", 120)
    commands.up(second, silent)
    after = parts(second)["kube-apiserver"]
    assert (after["state"], after["restarts"]) == ("ready", before["restarts"] + 1) and after["pid"] != before["pid"]


@pytest.fixture
def project(second: State) -> Project:
    return Project(second, connect(second).api, f"pods-{secrets.token_hex(3)}")


def test_pods_are_started_again_when_the_platform_died(second, project):
    project.pod("survivor", restartPolicy="Always")
    project.running("survivor")
    left = second.volumes / "pvc-of-an-earlier-cluster"
    left.mkdir()
    os.kill(int(str(parts(second)["platform"]["pid"])), signal.SIGKILL)
    seen = project.until("survivor", lambda each: each["restartCount"] == 1 and each["ready"], "the restart", 40)
    assert seen["lastState"]["terminated"]["exitCode"] == 137
    assert project.execute("survivor", "echo", "here").strip() == "here"
    wait_until(lambda: not left.exists(), "the folder that no volume has to go")


def test_when_the_node_answers_again_no_pod_is_told_ready_whose_containers_are_gone(second, project):
    project.pod("before", restartPolicy="Always", container={"readinessProbe": {
        "exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}})
    project.until("before", lambda each: "running" in each["state"], "the start")
    project.execute("before", "touch", "/tmp/ready")
    project.running("before")
    os.kill(int(str(parts(second)["platform"]["pid"])), signal.SIGKILL)

    def answered() -> bool:  # by the API's own way to the node: a kubectl would come too late to see it
        try:
            project.api.request("GET", f"{collection('Pod', project.name)}/before/log")
        except ApiError as error:
            return error.status == 400  # 500 says that there is nobody
        return True

    wait_until(answered, "the node to answer", pause=0.01)
    assert not project.container("before")["ready"], "its file is gone with its container"
    project.until("before", lambda each: "running" in each["state"] and each["restartCount"] == 1, "it to run again", 60)


def test_the_private_namespaces_come_back(second):
    before = parts(second)
    os.kill(int(str(before["inner"]["pid"])), signal.SIGKILL)
    wait_until(lambda: parts(second).get("kube-apiserver", {}).get("pid", 0) not in (0, before["kube-apiserver"]["pid"]),
               "a new API server")
    commands.up(second, silent)
    assert parts(second)["inner"]["restarts"] == 1


def test_nothing_outlives_the_outer_supervisor(second):
    """The must-fail twin of a clean stop: killed, it can tidy nothing; and the next start finds its way."""
    assert len(processes(second)) > 5
    os.kill(int(second.path("run", "outer.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not processes(second), "the end of every process")
    assert not launch.running(second)
    assert not commands.status(second)["running"]
    assert commands.up(second, silent)["server"] == second.server
    assert parts(second)["kube-apiserver"]["state"] == "ready"


def test_ready_is_said_only_when_a_check_says_so(tmp_path):
    """A process that runs but never answers is not ready, is ended at its deadline, and started again."""
    state = State(tmp_path)
    state.logs.mkdir()
    code = subprocess.Popen([sys.executable, "-c", f"""
import sys
from pathlib import Path
from stack.services import Service
from stack.state import State
from stack.supervisor import Supervisor
service = Service("mute", [sys.executable, "-c", "import time; time.sleep(600)"], lambda: "nothing heard", deadline=0.2)
Supervisor(State(Path({str(tmp_path)!r})), "trial").run([service])
"""], cwd=launch.checkout())
    try:
        def seen() -> dict[str, object]:
            try:
                known: dict[str, object] = json.loads((tmp_path / "run/trial.json").read_text())["mute"]
            except (OSError, ValueError):
                return {}
            return known
        wait_until(lambda: int(str(seen().get("restarts", 0))) >= 2, "two restarts")
        assert seen()["state"] != "ready"
        wait_until(lambda: "nothing heard" in str(seen()["detail"]), "the reason")
    finally:
        code.terminate()
        assert code.wait(10) == 0
    assert not processes(State(tmp_path))
