"""What a process in the sandbox sees of the machine, and what it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import certificates, sandbox
from stack.sandbox import Mount
from stack.state import State


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    made = State(tmp_path_factory.mktemp("state"))
    certificates.ensure_ca(made)
    yield made


def run(state: State, *argv: str, environment: dict[str, str] | None = None, **options: Any) -> str:
    command = sandbox.command(state, argv, user=1000730000, **options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                          env=sandbox.ENVIRONMENT | (environment or {}))
    return done.stdout + done.stderr


def test_the_user_is_random_but_known_and_in_group_0(state: State) -> None:
    assert "uid=1000730000(default) gid=0(root)" in run(state, "id")
    assert sandbox.user_of("one") == sandbox.user_of("one") != sandbox.user_of("two")
    assert sandbox.user_of("one") >= 1_000_000_000


def test_nothing_else_of_the_machine_is_visible(state: State) -> None:
    secret = state.write("secret", "canary")
    hidden = [str(secret), str(state.root), "/etc/shadow", "/etc/ssh", str(Path(__file__)), str(Path.home() / ".bashrc"),
              "/sys/kernel", "/boot", "/srv"]
    said = run(state, "sh", "-c", 'for name; do ls -d "$name" 2>/dev/null; done; echo end', "sh", *hidden)
    assert said == "end\n"
    assert run(state, "sh", "-c", "ls /proc | grep -c '^[0-9]'").strip() in ("2", "3"), "only its own processes"


def test_the_system_cannot_be_written_and_temporary_folders_can(state: State) -> None:
    said = run(state, "sh", "-c", "for d in / /etc /usr /usr/bin; do touch $d/new && echo wrote $d; done; "
               "for d in /tmp /var/tmp /run /dev/shm; do touch $d/new && echo good $d; done")
    assert "wrote" not in said
    assert said.count("good") == 4


def test_the_python_of_the_stack_runs_wherever_it_lies(state: State) -> None:
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    assert run(state, str(python), "-c", "import ssl, sys; print(sys.version_info[:2])").strip() == \
        str(tuple(sys.version_info[:2]))
    if not sys.base_prefix.startswith("/usr"):
        assert run(state, "ls", str(Path(sys.base_prefix).parent)).split() == [Path(sys.base_prefix).name]


def test_layers_are_fresh_at_each_start_and_mounts_lie_over_them(state: State, tmp_path: Path) -> None:
    layer, data = tmp_path / "layer", tmp_path / "data"
    (layer / "src").mkdir(parents=True)
    data.mkdir()
    (layer / "src" / "file").write_text("from the image")
    write = ["sh", "-c", "cat src/file; echo new >src/file; echo kept >data/file; echo no >fixed/x; ls /usr/share/made"]
    options: dict[str, Any] = {"layers": [(layer, "/opt/app-root")], "working_dir": "/opt/app-root",
                               "mounts": [Mount(data, "/opt/app-root/data", writable=True),
                                          Mount(data, "/opt/app-root/fixed"), Mount(data, "/usr/share/made/here")]}
    for _ in range(2):
        said = run(state, *write, **options)
        assert said.startswith("from the image"), said
        assert "fixed/x" in said
        assert "here\n" in said
    assert (layer / "src" / "file").read_text() == "from the image"
    assert (data / "file").read_text() == "kept\n"
    assert not (data / "x").exists()


def test_layers_lie_upon_each_other_and_what_is_written_can_be_kept(state: State, tmp_path: Path) -> None:
    lower, upper, written, work = (tmp_path / name for name in ("lower", "upper", "written", "work"))
    for folder in (lower, upper, written, work):
        folder.mkdir()
    (lower / "both").write_text("hidden")
    (upper / "both").write_text("upper")
    (lower / "gone").write_text("lower")
    layers = [(lower, "/opt/app-root"), (upper, "/opt/app-root")]
    said = run(state, "sh", "-c", "cd /opt/app-root; cat both gone; rm gone; echo new >made", layers=layers,
               kept={"/opt/app-root": (written, work)})
    assert said == "upperlower"
    assert (written / "made").read_text() == "new\n" and (lower / "gone").exists()
    above = [*layers, (written, "/opt/app-root")]
    assert run(state, "sh", "-c", "ls /opt/app-root; echo more >/opt/app-root/made", layers=above).split() == ["both", "made"]
    assert (written / "made").read_text() == "new\n"


def test_the_local_authority_is_trusted_beside_the_systems_own(state: State) -> None:
    count = ("import ssl; c = ssl.create_default_context(); names = [str(x['subject']) for x in c.get_ca_certs()]; "
             "print(len(names), any('local stack' in x for x in names))")
    python = str(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))
    number, found = run(state, python, "-c", count).split()
    assert found == "True"
    assert int(number) >= 1
    assert run(state, "sh", "-c", "test -s /etc/pki/tls/certs/ca-bundle.crt && echo there").strip() == "there"


def test_pods_look_up_names_in_files_only_and_builds_ask_the_network(state: State, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.0.0.1 known\n")
    assert "10.0.0.1" in run(state, "getent", "hosts", "known", hosts=hosts)
    assert "hosts: files\n" in run(state, "cat", "/etc/nsswitch.conf", hosts=hosts)
    assert "hosts: files dns\n" in run(state, "cat", "/etc/nsswitch.conf", host_network=True)


def test_no_value_of_the_environment_is_an_argument(state: State) -> None:
    said = run(state, "sh", "-c", "tr '\\0' '\\n' </proc/1/cmdline; echo; printenv CANARY",
               environment={"CANARY": "canary-in-environment"})
    assert said.splitlines()[-1] == "canary-in-environment"
    assert "canary" not in " ".join(sandbox.command(state, ["true"], user=1))
