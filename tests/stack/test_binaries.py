"""The chain that finds programs: which link wins, what is refused, and that nothing half done stays."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stack import binaries
from stack.errors import StackError

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
CLOSED = "http://127.0.0.1:9"
"""A download server that refuses at once: this machine without network."""


def program(path: Path, version: str) -> Path:
    """Write a program that answers with a version, as each of ours does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n# libssl OPENSSL\necho 'the program v{version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty cache, an empty PATH, and no download server, unless a test says otherwise."""
    monkeypatch.setenv("RUNBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNBOOK_KUBERNETES_DOWNLOADS", CLOSED)
    monkeypatch.setenv("RUNBOOK_ETCD_DOWNLOADS", CLOSED)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    binaries.forget()
    yield
    binaries.forget()


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Path]:
    """A download server of our own on the loopback interface; returns the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{served.server_port}"
        monkeypatch.setenv("RUNBOOK_KUBERNETES_DOWNLOADS", address)
        monkeypatch.setenv("RUNBOOK_ETCD_DOWNLOADS", address)
        yield folder
        served.shutdown()


def test_the_named_folder_wins_over_path_and_cache(tmp_path, monkeypatch):
    program(tmp_path / "path/kube-apiserver", "1.34.7")
    kept = program(tmp_path / "cache/controlplane-v1.34.1/kube-apiserver", "1.34.1")
    assert binaries.find("kube-apiserver").version == "1.34.7"
    named = program(tmp_path / "assets/kube-apiserver", "1.34.3")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(named.parent))
    found = binaries.find("kube-apiserver")
    assert (found.path, found.link, found.version) == (named, "KUBEBUILDER_ASSETS", "1.34.3")
    named.unlink()
    (tmp_path / "path/kube-apiserver").unlink()
    binaries.forget()
    assert binaries.find("kube-apiserver").path == kept


@pytest.mark.parametrize(("name", "version"), [
    ("kube-apiserver", "1.33.9"), ("kube-apiserver", "1.35.0"), ("etcd", "3.4.23"), ("kubectl", "1.32.4"),
])
def test_another_version_on_path_is_passed_over(tmp_path, name, version):
    program(tmp_path / f"path/{name}", version)
    program(tmp_path / f"cache/controlplane-v1.34.1/{name}", "3.6.4" if name == "etcd" else "1.34.1")
    assert binaries.find(name).link == "cache"


@pytest.mark.parametrize(("name", "version"), [("bwrap", "0.8.0"), ("haproxy", "2.4.1"), ("redis-server", "5.0.1")])
def test_an_old_program_on_path_gives_way_to_the_package(tmp_path, name, version):
    program(tmp_path / f"path/{name}", version)
    assert binaries.find(name).link.startswith("package ")


def test_a_program_on_path_that_fits_is_preferred_to_the_package(tmp_path):
    mine = program(tmp_path / "path/haproxy", "3.0.2")
    assert binaries.find("haproxy") == binaries.Binary("haproxy", mine, "PATH", "3.0.2")


def test_a_variable_that_names_no_fitting_program_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNBOOK_BWRAP", str(program(tmp_path / "old/bwrap", "0.8.0")))
    with pytest.raises(StackError, match=r"RUNBOOK_BWRAP=.*0\.11 or newer"):
        binaries.find("bwrap")


def test_a_server_without_tls_is_passed_over(tmp_path):
    """hostssl cannot be had on it: the file names no TLS library."""
    bare = program(tmp_path / "path/postgres", "17.1")
    bare.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 17.1'\n")
    program(tmp_path / "path/initdb", "17.1")
    assert binaries.find("postgres").path != bare


def test_programs_of_one_server_come_from_one_place():
    server_folder = binaries.find("postgres").path.parent
    assert binaries.find("initdb").path.parent == server_folder
    assert binaries.find("pg_dump").path.parent == server_folder


def test_a_download_with_the_published_checksum_is_kept(tmp_path, server):
    folder = server / f"v1.34.1/bin/linux/{MACHINE}"
    made = program(folder / "kube-apiserver", "1.34.1")
    (folder / "kube-apiserver.sha256").write_text(hashlib.sha256(made.read_bytes()).hexdigest())
    found = binaries.find("kube-apiserver")
    assert found.path == tmp_path / "cache/controlplane-v1.34.1/kube-apiserver"
    assert found.link == "cache (official download)"
    made.unlink()
    assert binaries.find("kube-apiserver") == found


def test_etcd_comes_out_of_its_archive(server):
    name = f"etcd-v3.6.4-linux-{MACHINE}"
    content = b"#!/bin/sh\necho 'etcd Version: 3.6.4'\n"
    archive = server / f"v3.6.4/{name}.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo(f"{name}/etcd")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (archive.parent / "SHA256SUMS").write_text(f"{'0' * 64}  other.tar.gz\n{digest}  {name}.tar.gz\n")
    assert binaries.find("etcd").version == "3.6.4"


def test_a_wrong_checksum_is_refused_and_nothing_stays(tmp_path, server):
    folder = server / f"v1.34.1/bin/linux/{MACHINE}"
    program(folder / "kube-apiserver", "1.34.1")
    (folder / "kube-apiserver.sha256").write_text("0" * 64)
    with pytest.raises(StackError, match=r"checksum .* it is not used"):
        binaries.find("kube-apiserver")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["controlplane.lock"]


def test_an_answer_that_is_no_checksum_is_no_download_server(server, monkeypatch):
    """A hotel's sign-in page must not count as a published checksum."""
    folder = server / f"v1.34.1/bin/linux/{MACHINE}"
    program(folder / "kube-apiserver", "1.34.1")
    (folder / "kube-apiserver.sha256").write_text("<html>Welcome! Please sign in.</html>")
    built: list[list[str]] = []
    monkeypatch.setattr(binaries, "_build", lambda names, _progress: built.append(names))
    with pytest.raises(StackError, match="does not run as kube-apiserver"):
        binaries.find("kube-apiserver")
    assert "kube-apiserver" in built[0]


def test_without_network_the_download_is_given_up_in_time(monkeypatch):
    """A server that takes the connection and says nothing, as a firewall does."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("RUNBOOK_KUBERNETES_DOWNLOADS", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        built: list[float] = []
        monkeypatch.setattr(binaries, "_build", lambda *_: built.append(time.monotonic()))
        begun = time.monotonic()
        for _ in range(2):  # the second program does not wait again
            with pytest.raises(StackError):
                binaries.find("kube-apiserver")
        assert built[-1] - begun < binaries.OFFLINE_AFTER + 1


GO = """#!/bin/sh
# Stands for the Go toolchain, which takes minutes: same words, same files, at once.
case "$1" in
version) echo "go version go1.26.0 linux/amd64" ;;
list) printf 'a\\nb\\nc\\n' ;;
build)
    [ -n "$GO_FAILS" ] && { echo "main.go:1: out of cheese" >&2; exit 1; }
    for word; do case "$word" in */bin/) out=$word ;; esac; done
    echo a >&2; echo b >&2; echo c >&2
    echo built >> "$GO_LOG"
    [ -n "$GO_WAITS" ] && { touch "$GO_WAITS"; exec sleep 600; }
    for name in server kube-apiserver kube-controller-manager; do
        version=1.34.1; [ $name = server ] && version=3.6.4
        printf '#!/bin/sh\\necho v%s\\n' $version > "$out$name"; chmod +x "$out$name"
    done ;;
esac
"""


@pytest.fixture
def go(tmp_path, monkeypatch) -> Path:
    """A toolchain that builds at once and notes that it did."""
    path = tmp_path / "path/go"
    path.parent.mkdir()
    path.write_text(GO)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    monkeypatch.setenv("GO_LOG", str(tmp_path / "log"))
    return path


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()} - {"versions.json"}


def test_the_build_makes_all_three_at_once_and_leaves_only_them(tmp_path, go):
    lines: list[str] = []
    found = binaries.find("kube-apiserver", lines.append)
    assert found.link == f"cache (go build, {go})"
    assert {binaries.find(name).version for name in binaries.CONTROL_PLANE} == {"1.34.1", "3.6.4"}
    assert (tmp_path / "log").read_text() == "built\n"
    assert left(tmp_path) == {"controlplane.lock", "controlplane-v1.34.1"}
    assert any("100 % (3 of 3 packages)" in line for line in lines)


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path, go, monkeypatch):
    monkeypatch.setenv("GO_FAILS", "1")
    with pytest.raises(StackError, match="out of cheese"):
        binaries.find("etcd")
    assert left(tmp_path) == {"controlplane.lock"}


def find_in_another_process(tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", "from stack.binaries import find; print(find('etcd').version)"],
                            cwd=Path(__file__).parents[2], env=os.environ | environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_at_once_build_once(tmp_path, go):
    both = [find_in_another_process(tmp_path) for _ in range(2)]
    assert [each.communicate(timeout=60)[0] for each in both] == ["3.6.4\n", "3.6.4\n"]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_build_that_is_killed_leaves_nothing_that_counts(tmp_path, go):
    begun = tmp_path / "begun"
    killed = find_in_another_process(tmp_path, GO_WAITS=str(begun))
    deadline = time.monotonic() + 30
    while not begun.exists():
        assert time.monotonic() < deadline, "the build did not begin"
        time.sleep(0.02)
    killed.kill()
    killed.communicate(timeout=60)
    assert not (tmp_path / "cache/controlplane-v1.34.1").exists()
    assert binaries.find("etcd").version == "3.6.4"
    assert left(tmp_path) == {"controlplane.lock", "controlplane-v1.34.1"}


def test_the_modules_are_pinned():
    wanted = (binaries.SOURCES / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{binaries.KUBERNETES}" in wanted
    assert f"go.etcd.io/etcd/server/v3 v{binaries.ETCD}" in wanted
    assert all(module.rsplit("/cmd/")[0] in wanted for module in binaries.MODULES.values())
    assert (binaries.SOURCES / "go.sum").stat().st_size > 10_000


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUNBOOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(StackError, match=r"the cache folder .* RUNBOOK_CACHE"):
        binaries.find("etcd")
