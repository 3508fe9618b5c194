"""What a new cluster begins with: from the first stack's etcd into the next one's, and never a reason not to start."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import binaries, cluster, seed
from stack.api import wait_until
from stack.services import ETCD_OPERATIONS

pytestmark = pytest.mark.needs("cluster", "inside")

Seed = list[dict[str, str]]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an etcd, with the flags that the stack gives it."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, peers = one.getsockname()[1], f"http://127.0.0.1:{other.getsockname()[1]}"
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([
        str(binaries.find("etcd").path), "--data-dir", str(tmp_path_factory.mktemp("etcd")), "--log-level", "error", "--unsafe-no-fsync",
        "--listen-client-urls", address, "--advertise-client-urls", address, "--listen-peer-urls", peers,
        "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}", "--max-txn-ops", str(ETCD_OPERATIONS)])
    try:
        yield port
    finally:
        server.kill()
        server.wait(10)


@pytest.fixture
def etcd(started: int) -> int:
    """An etcd with nothing in it."""
    wait_until(lambda: ask(started, "deleterange", {"key": of("/"), "range_end": of("0")}), "etcd")
    return started


def of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def ask(port: int, what: str, body: object) -> dict[str, object] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", f"/v3/kv/{what}", json.dumps(body))
        found: dict[str, object] = json.loads(connection.getresponse().read())
    except OSError:
        return None
    return found


def put(port: int, name: str, value: str) -> None:
    assert ask(port, "put", {"key": of(f"/registry/{name}"), "value": of(value)})


def held(port: int) -> dict[str, str]:
    found = ask(port, "range", {"key": of("/"), "range_end": of("0")}) or {}
    pairs: Seed = found.get("kvs", [])  # type: ignore[assignment]
    return {base64.b64decode(each["key"]).decode().removeprefix("/registry/"): base64.b64decode(each["value"]).decode() for each in pairs}


def written(folder: Path, **values: str) -> Path:
    file = folder / "seed.json"
    file.write_text(json.dumps([{"key": of(f"/registry/{name.replace('__', '/')}"), "value": of(value)} for name, value in values.items()]))
    return file


def test_an_empty_etcd_gets_it_and_what_was_quicker_stays(etcd: int, tmp_path: Path) -> None:
    put(etcd, "namespaces/default", "the server's")
    assert not seed.sow(written(tmp_path, namespaces__default="ours", namespaces__openshift="ours", clusterroles__view="ours"), etcd)
    assert held(etcd) == {"namespaces/default": "the server's", "namespaces/openshift": "ours", "clusterroles/view": "ours"}


def test_a_cluster_that_is_there_gets_nothing(etcd: int, tmp_path: Path) -> None:
    put(etcd, seed.FIRST, "there")
    file = written(tmp_path, clusterroles__gone="taken away by hand")
    assert not seed.sow(file, etcd)
    assert held(etcd) == {seed.FIRST: "there"} and file.exists()


def test_of_a_cluster_that_is_there_none_is_taken_for_it_may_have_been_used(etcd: int, tmp_path: Path) -> None:
    assert seed.sow(tmp_path / "none.json", etcd)
    put(etcd, seed.FIRST, "there")
    assert not seed.sow(tmp_path / "none.json", etcd)


def test_as_many_keys_as_a_seed_may_have_come_at_once(etcd: int, tmp_path: Path) -> None:
    assert not seed.sow(written(tmp_path, **{f"roles__{number}": "x" * 1000 for number in range(ETCD_OPERATIONS - 1)}), etcd)
    assert len(held(etcd)) == ETCD_OPERATIONS - 1


@pytest.mark.parametrize("text", ["", '[{"key": "', '{"kvs": 1}', "[3]", '[{"value": ""}]', '[{"key": "?", "value": "?"}]'])
def test_a_file_that_cannot_be_used_goes_and_nothing_of_it_comes(etcd: int, tmp_path: Path, text: str) -> None:
    file = tmp_path / "seed.json"
    file.write_text(text)
    assert seed.sow(file, etcd)
    assert held(etcd) == {} and not file.exists()
    assert seed.sow(file, etcd), "there is none yet"


def test_of_a_cluster_only_that_is_kept_which_is_nobodys(etcd: int, tmp_path: Path) -> None:
    stream = {"kind": "ImageStream", "spec": {"tags": []}, "status": {"tags": ["of this stack's builder"]}}
    kept = {"namespaces/default": "n", seed.FIRST: "r", f"configmaps/kube-system/{cluster.MARKER}": "m"}
    left = {"secrets/default/token": "s", "serviceaccounts/default/default": "a", "services/specs/default/kubernetes": "a", "minions/node": "a",
            "configmaps/kube-system/kube-root-ca.crt": "c", "leases/kube-node-lease/node": "l"}
    for name, value in (kept | left).items():
        put(etcd, name, value)
    put(etcd, f"{seed.STREAMS}openshift/python", json.dumps(stream))
    file = tmp_path / "clusters" / "kept.json"
    seed.gather(file, etcd)
    assert [path.name for path in file.parent.iterdir()] == ["kept.json"]
    ask(etcd, "deleterange", {"key": of("/"), "range_end": of("0")})
    assert not seed.sow(file, etcd)
    stream.pop("status")
    assert held(etcd) == kept | {f"{seed.STREAMS}openshift/python": json.dumps(stream)}


def test_half_a_seed_is_never_kept(etcd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One question of many is not answered: a seed with the mark and without the kinds would break every stack after this one."""
    put(etcd, seed.FIRST, "r")
    asked, real = [], seed._ask

    def fails_once(port: int, what: str, body: object) -> dict[str, Any] | None:
        asked.append(body)
        return None if len(asked) == 3 else real(port, what, body)

    monkeypatch.setattr(seed, "_ask", fails_once)
    file = tmp_path / "clusters" / "half.json"
    seed.gather(file, etcd)
    assert len(asked) == 3 and not file.exists()
    assert f"is not kept: etcd did not give {seed.OF_NOBODY[2]}" in capsys.readouterr().out


def test_where_it_cannot_be_kept_that_is_only_said(etcd: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    seed.gather(tmp_path / "file" / "seed.json", etcd)
    assert "cannot be kept: [Errno 17] File exists" in capsys.readouterr().out


def test_a_seed_is_of_one_content_and_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {seed.place()}
    monkeypatch.setattr(seed, "FEATURES", {"feature-gates": "Another=true"})
    known.add(seed.place())
    monkeypatch.setattr(cluster, "content", lambda: [{"kind": "Another"}])
    known.add(seed.place())
    assert len(known) == 3
