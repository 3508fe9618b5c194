"""The stack's commands: safe to repeat, and one sentence for everything that is in the way."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import commands, launch
from stack.errors import StackError
from stack.state import State

pytestmark = pytest.mark.needs("cluster", "database", "inside")


def silent(_line: str) -> None:
    pass


@pytest.fixture
def empty() -> Iterator[State]:
    """A state folder in which no stack has run."""
    root = Path(tempfile.mkdtemp(prefix="stack-"))
    yield State(root)
    commands.down(State(root), progress=silent)
    shutil.rmtree(root, ignore_errors=True)


def python(state: State, *arguments: str, before: str = "", prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `invoke stack.…` on a state folder, in a shell that does something before."""
    command = [sys.executable, "-m", "runbook", f"stack.{arguments[0]}", *arguments[1:]]
    return subprocess.run([*prefix, "sh", "-c", f'{before}\nexec "$@"', "sh", *command],
                          cwd=launch.checkout(), env=os.environ | {"RUNBOOK_STATE": str(state.root)},
                          capture_output=True, text=True, check=False, timeout=300)


def test_up_on_a_running_stack_is_quick_and_changes_nothing(stack):
    before = commands.status(stack.state)
    done = python(stack.state, "up")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    # Only what runs: a database that another test has dropped may still be listed the first time.
    pids = [{row["part"]: row["pid"] for row in found["parts"] if row["pid"]} for found in (before, commands.status(stack.state))]
    assert pids[0]
    assert pids[0] == pids[1]


def test_status_tells_version_link_and_memory_of_each_part(stack):
    found = commands.status(stack.state)
    assert found["running"]
    assert found["ready"]
    rows = {row["part"]: row for row in found["parts"]}
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "haproxy"):
        assert rows[name]["version"]
        assert rows[name]["link"]
        assert rows[name]["memory"] > 1 << 20
        assert Path(f"/proc/{rows[name]['pid']}/exe").resolve().name == name
    # A part names its program itself: of the databases there may be some or none.
    assert {row["program"] for row in [*found["parts"], *found["programs"]]} >= {"postgres", "redis-server", "bwrap", "git"}
    assert all(row["version"] for row in found["programs"])


def test_env_lets_a_reader_use_the_stack_as_the_member(stack):
    from stack.binaries import find

    kubectl = str(find("kubectl").path)
    me = stack.run(kubectl, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert (me.stdout, me.returncode) == ("shifter", 0), me.stderr
    assert "forbidden" in stack.run(kubectl, "get", "secrets", "-A").stderr.lower()
    exported = subprocess.run(["sh", "-c", commands.env(stack.state) + 'test -r "$PGSSLROOTCERT" && echo "$KUBECONFIG"'],
                              capture_output=True, text=True, check=True)
    assert exported.stdout.strip() == str(stack.state.kubeconfig)
    for token in (stack.state.tokens.member, stack.state.tokens.admin):
        assert token not in commands.env(stack.state)


def test_nothing_that_env_exports_stands_for_a_program(stack):
    look = (sys.executable, "-c", "from stack import binaries\nfor name in binaries.PROGRAMS: binaries.found(name)")
    assert stack.run(*look).returncode == 0, "a start in the same shell finds its programs"
    assert "RUNBOOK_GIT=" in stack.run(*look, RUNBOOK_GIT=commands.connection(stack.state)["git"]).stderr  # the twin


def test_writes_and_the_members_requests_are_in_the_audit_log(stack):
    stack.member.request("GET", "/apis/apps/v1?marker=member-read")
    stack.api.request("GET", "/apis/apps/v1?marker=admin-read")
    stack.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "audited", "namespace": "default"},
                      "data": {"secret": "canary-in-a-body"}})
    stack.api.delete("ConfigMap", "audited", "default")
    log = (stack.state.logs / "audit.log").read_text()
    assert "marker=member-read" in log
    assert "marker=admin-read" not in log
    assert '"/api/v1/namespaces/default/configmaps/audited","verb":"delete"' in log
    assert "canary-in-a-body" not in log


def test_logs_of_a_part_and_of_none(stack):
    assert any("kube-apiserver" in line or "Version" in line for line in commands.logs(stack.state, "kube-apiserver"))
    with pytest.raises(StackError, match=r"no log of a part 'nothing'; there are logs of .*etcd"):
        list(commands.logs(stack.state, "nothing"))
    with pytest.raises(StackError, match="no log of a part"):
        list(commands.logs(stack.state, "../users.csv"))
    known = "there are logs of .*etcd"
    assert re.fullmatch(f"error: which part\\? {known}.*\n", python(stack.state, "logs").stderr)
    assert re.fullmatch(f"error: there is no log of a part 'nothing'; {known}.*\n", python(stack.state, "logs", "nothing").stderr)
    assert python(stack.state, "logs", "etcd").returncode == 0


def test_what_needs_a_stack_says_so_without_one(empty):
    with pytest.raises(StackError, match=r"no stack runs in .*; start it with stack\.up"):
        commands.env(empty)
    assert not commands.status(empty)["running"]
    with pytest.raises(StackError, match="the stack has not run yet"):
        list(commands.logs(empty, "etcd"))
    said: list[str] = []
    commands.down(empty, progress=said.append)
    assert said == [f"no stack runs in {empty.root}"]


def test_a_port_that_is_taken_is_named_and_nothing_is_started(empty):
    launch.make_folders(empty)
    for each in launch.open_ports(empty).values():
        each.close()
    port = empty.ports.https
    with socket.create_server(("127.0.0.1", port)):
        done = python(empty, "up")
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert f"port {port} on 127.0.0.1" in done.stderr
        assert "stack.down --wipe" in done.stderr
        assert not launch.running(empty)
    with launch.open_ports(empty)["https"] as opened:  # the twin: free again, it is opened again
        assert opened.getsockname()[1] == port


def test_a_state_folder_that_cannot_be_used():
    with tempfile.TemporaryDirectory(prefix="s-") as short:  # not pytest's own folder, whose path is refused for its length
        (Path(short) / "file").write_text("")
        with pytest.raises(StackError, match=r"the state folder .*file/s cannot be used: .*RUNBOOK_STATE"):
            commands.up(State(Path(short) / "file/s"), silent)
    with pytest.raises(StackError, match="longer than"):
        commands.up(State(Path("/tmp") / ("x" * 90)), silent)


def test_a_stack_that_has_stopped_is_what_ails(empty):
    empty.root.mkdir(exist_ok=True)
    assert "has stopped" in commands.ailing(empty)


def in_namespace(*more: str) -> tuple[str, ...]:
    return ("unshare", *([] if os.geteuid() == 0 else ["-U", "-r"]), *more)


def test_no_space_left_is_one_sentence(empty):
    done = python(empty, "up", prefix=in_namespace("-m"), before=f"mount -t tmpfs -o size=256k none {empty.root}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{empty.full}; make room there" in done.stderr


def test_forbidden_namespaces_are_one_sentence_with_the_cure(empty):
    """The kernel's own limit, set to none in a namespace of ours: what a hardened machine does."""
    done = python(empty, "up", prefix=("unshare", "-U", "-r"), before="echo 0 > /proc/sys/user/max_net_namespaces")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "unprivileged_userns_clone" in done.stderr
    assert "or run as root" in done.stderr
    assert not launch.running(empty)


def test_wipe_removes_only_what_is_a_stacks(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StackError, match="does not look like the state folder"):
        commands.down(State(tmp_path), wipe=True, progress=silent)
    assert (tmp_path / "thesis.tex").exists()


def test_wipe_removes_what_a_failed_start_has_left(empty, monkeypatch):
    monkeypatch.setenv("RUNBOOK_GIT", "/no/such/git")
    with pytest.raises(StackError, match="RUNBOOK_GIT"):
        commands.up(empty, silent)
    assert not empty.path("ports.json").exists() and any(empty.root.iterdir())
    commands.down(empty, wipe=True, progress=silent)
    assert not empty.root.exists()


def test_a_start_does_not_take_a_folder_with_other_things_for_its_own(empty, monkeypatch):
    empty.path("thesis.tex").write_text("years of work")
    monkeypatch.setenv("RUNBOOK_GIT", "/no/such/git")
    with pytest.raises(StackError, match="RUNBOOK_GIT"):
        commands.up(empty, silent)
    with pytest.raises(StackError, match="does not look like the state folder"):
        commands.down(empty, wipe=True, progress=silent)
    assert empty.path("thesis.tex").exists()
