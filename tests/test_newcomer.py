"""A newcomer's first hour: an ordinary user, a clean clone, an empty home, and the commands of README.md.

The tests stand in the order of that hour and share one clone. They need root, to become somebody else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from procedures import RUNBOOK
from runbook.clients.web import Web
from runbook.instance import load
from stack import binaries
from stack.api import wait_until
from stack.state import State, cache_root

ROOT = Path(__file__).parent.parent
NOBODY = 65534
FITS = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
TRAINING = ("guide.run", "--build=training", "--target=local")
"""A second instance on the stack that runs: its steps all have something to do."""
PLAIN = {build: load(Path(__file__).parents[1] / "instances" / f"{build}.toml") for build in ("dev", "training")}
UNCHANGED = {build: {step.name: "unchanged" if step.wanted(plain) else "skipped" for step in RUNBOOK.standing}
             for build, plain in PLAIN.items()}
"""What a second run says of each step; what an instance does not want is skipped."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user for the test")


@dataclass(frozen=True)
class Newcomer:
    """Somebody with a folder of his own, readable by him only, and nothing from the caller but the way to the network."""

    folder: Path

    @property
    def clone(self) -> Path:
        return self.folder / "guide"

    @property
    def state(self) -> State:
        return State(self.folder / "home/.local/state/certhelper-guide")

    @property
    def cache(self) -> Path:
        return self.folder / "home/.cache/certhelper-guide"

    @property
    def environment(self) -> dict[str, str]:
        network = {key: value for key, value in os.environ.items()
                   if key.lower().endswith("_proxy") or (key.startswith("PIP_") and key != "PIP_CACHE_DIR")
                   or key in {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}}
        return network | {"HOME": str(self.folder / "home"), "PATH": os.environ["PATH"] + ":/usr/local/bin:/usr/bin:/bin",
                          "LANG": "C.UTF-8", "KUBEBUILDER_ASSETS": str(self.folder / "control-plane")}

    def start(self, *words: str, cwd: Path | None = None, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a terminal does."""
        become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        return subprocess.Popen([*prefix, *become, *words], cwd=cwd or self.clone, env=self.environment | environment, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def run(self, *words: str, code: int | None = 0, cwd: Path | None = None, prefix: tuple[str, ...] = (),
            **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command and see its exit code."""
        with self.start(*words, cwd=cwd, prefix=prefix, **environment) as process:
            out, err = process.communicate(timeout=800)
        assert code is None or process.returncode == code, f"{' '.join(words)} ended with {process.returncode}\n{out}{err}"
        assert "Traceback" not in err
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def inv(self, *words: str, code: int | None = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.clone / "inv"), *words, code=code, cwd=cwd)

    def states(self, *words: str) -> dict[str, str]:
        return {found["step"]: found["state"] for found in map(json.loads, self.inv(*words, "--json").stdout.splitlines())}

    def processes(self) -> dict[int, str]:
        """Return the processes that were started for him or see a file of his, in whatever namespace."""
        mine = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                known = b"".join((process / name).read_bytes() for name in ("cmdline", "environ", "mountinfo"))
            except OSError:  # it ended
                continue
            if str(self.folder).encode() in known and int(process.name) != os.getpid():
                mine[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return mine


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Newcomer]:
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    newcomer = Newcomer(folder)
    (folder / "home").mkdir()
    # Cloned by root: Git refuses to read somebody else's repository. What is not committed a newcomer does not get.
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(newcomer.clone)], check=True)
    # Made once by whoever tests; that they can be made is tested elsewhere.
    (folder / "control-plane").mkdir()
    for name in binaries.CONTROL_PLANE:
        shutil.copy(binaries.find(name).path, folder / "control-plane" / name)
    installed = Path("pip", "installed")  # what the example's image consists of
    if (cache_root() / installed).exists():
        shutil.copytree(cache_root() / installed, newcomer.cache / installed, symlinks=True)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(folder)], check=True)
    try:
        candidates = ("python3.11", "python3.12", "python3.13", "python3.14", "python3")
        tried = " || ".join(f"{name} -c {shlex.quote(FITS)}" for name in candidates)
        if newcomer.run("sh", "-c", tried, code=None, cwd=folder).returncode:
            pytest.skip("no Python 3.11 or newer with venv that an ordinary user can run")
        yield newcomer
    finally:
        if (newcomer.clone / ".venv/.lock").exists():
            newcomer.inv("stack.down", code=None)
        for pid in newcomer.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def deployed(newcomer: Newcomer) -> tuple[Newcomer, str]:
    """What README.md says first, and the address that it ends with."""
    first = re.search(r"```sh\n\./inv (.*)\n", (ROOT / "README.md").read_text())
    assert first
    done = newcomer.inv(*first[1].split())
    return newcomer, done.stdout.strip().splitlines()[-1]


def test_from_a_clean_clone_to_an_app_that_answers(deployed: tuple[Newcomer, str]) -> None:
    newcomer, url = deployed
    status, text = Web(newcomer.state.ca).request("GET", url)
    assert status == 200
    assert "Sign on" in text
    assert not newcomer.run("git", "status", "--short").stdout, "a run leaves the checkout as it was"
    assert {path.name for path in (newcomer.folder / "home").iterdir()} <= {".local", ".cache"}


def test_nothing_of_his_stack_needs_root(deployed: tuple[Newcomer, str]) -> None:
    newcomer, _ = deployed
    stack = json.loads(newcomer.inv("stack.status", "--json").stdout)
    assert stack["ready"] and {"platform", "builder"} <= {row["part"] for row in stack["parts"]}
    assert {Path(f"/proc/{row['pid']}").stat().st_uid for row in stack["parts"] if row["pid"]} == {NOBODY}


def test_the_second_run_changes_nothing_from_whatever_folder(deployed: tuple[Newcomer, str]) -> None:
    newcomer, url = deployed
    assert newcomer.states("guide.run", "--build=dev") == UNCHANGED["dev"]
    done = newcomer.inv("guide.run", "--build=dev", cwd=Path("/"))
    assert done.stdout.strip().splitlines()[-1] == url


def test_interrupted_it_says_so_once_and_goes_on_where_it_stopped(deployed: tuple[Newcomer, str]) -> None:
    newcomer, _ = deployed
    # To the end, whose build takes longer than any busy machine needs to deliver a signal.
    with newcomer.start("./inv", *TRAINING) as run:
        assert run.stdout
        assert any("database.role" in line for line in run.stdout), run.communicate()
        os.killpg(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors.strip()) == (130, "interrupted; the same command goes on where this one stopped")
    states = newcomer.states(*TRAINING, "--to=environment.set")
    assert states["database.role"] == "unchanged"
    assert states["environment.set"] in {"changed", "unchanged"}


def test_a_stack_killed_in_the_middle_is_started_again_by_the_next_run_once_its_ports_are_free(deployed: tuple[Newcomer, str]) -> None:
    newcomer, url = deployed
    outer, port = int(newcomer.state.path("run", "outer.pid").read_text()), newcomer.state.ports.api
    with newcomer.start("./inv", *TRAINING) as run:
        assert run.stdout
        assert any("environment.set" in line for line in run.stdout), run.communicate()
        os.kill(outer, signal.SIGKILL)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "Traceback" not in errors
    assert "error:" in errors
    with taken(port):
        done = newcomer.inv(*TRAINING, code=1)
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    newcomer.inv(*TRAINING)
    assert newcomer.states(*TRAINING) == UNCHANGED["training"]
    assert newcomer.states("guide.run", "--build=dev") == UNCHANGED["dev"]
    assert Web(newcomer.state.ca).request("GET", url)[0] == 200


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Listen on a port meanwhile, as soon as what was killed has left it."""
    def server() -> socket.socket | None:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            return None

    with wait_until(server, f"port {port} to be free"):
        yield


def test_wiped_it_leaves_no_process_and_no_file_of_its_state(deployed: tuple[Newcomer, str]) -> None:
    newcomer, _ = deployed
    assert newcomer.processes()
    newcomer.inv("stack.down", "--wipe")
    deadline = time.monotonic() + 10
    while newcomer.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert newcomer.processes() == {}
    assert not newcomer.state.root.exists()
    left = {path.name for path in newcomer.state.root.parent.iterdir()}
    assert left <= {"certhelper-guide-journal.jsonl"}, "what was done stays written down, for people"


def on_a_disk(newcomer: Newcomer, megabytes: int, script: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script of the newcomer whose state folder lies on a disk of its own, `$DISK`, of that size."""
    small = newcomer.folder / "small"
    small.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={megabytes}m,uid={NOBODY},gid={NOBODY},mode=700 none {small} && exec \"$@\""
    return newcomer.run("sh", "-c", f"{script}\ncode=$?\n./inv stack.down >/dev/null\nexit $code", code=code,
                        prefix=("unshare", "-m", "sh", "-c", mount, "sh"), DISK=str(small), RUNBOOK_STATE=f"{small}/state")


def test_a_disk_that_is_too_small_is_one_sentence_before_anything_starts(deployed: tuple[Newcomer, str]) -> None:
    newcomer, _ = deployed
    done = on_a_disk(newcomer, 40, './inv guide.run --build=dev; code=$?; test ! -e "$RUNBOOK_STATE/etcd" || exit 9; (exit $code)', 1)
    assert f"{newcomer.folder}/small/state is full (" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


FILLED = """
./inv stack.up >/dev/null || exit 9
cat /dev/zero > "$DISK/fill" 2>/dev/null
./inv guide.run --build=dev >/dev/null 2> "$HOME/full"; echo "full $?"
rm "$DISK/fill"
./inv guide.run --build=dev --to=app.create >/dev/null; echo "roomy $?"
"""


def test_a_disk_that_fills_up_in_the_middle_is_one_sentence_and_the_run_goes_on(deployed: tuple[Newcomer, str]) -> None:
    """The stack runs and its disk is filled: the run names the disk, and goes on where it stopped once there is room."""
    newcomer, _ = deployed
    done = on_a_disk(newcomer, 500, FILLED)
    assert done.stdout.splitlines()[:2] == ["full 1", "roomy 0"], done.stdout + done.stderr
    said = (newcomer.folder / "home/full").read_text()
    first, *rest = said.strip().splitlines()
    assert first.startswith("error: ") and f"the disk of the state folder {newcomer.folder}/small/state is full" in first
    assert [line.strip().partition(" ")[0] for line in rest] in (["next:"], []), said  # none where a part had stopped first
