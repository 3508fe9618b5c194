"""What every cluster holds before anybody uses it: taken from a user's first stack, put into the etcd of the next ones.

A new API server makes its roles, priorities and namespaces one by one, and works out its schemas anew after each kind that
`cluster.prepare` brings: half of what a start takes. From a seed it finds all that and the mark of `cluster.prepare`, as
after a restart. A seed is of one version of the API server with its features, and of one content.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import tempfile
from pathlib import Path
from typing import Any

from stack import binaries, cluster
from stack.api import wait_until
from stack.services import ETCD_PORT, FEATURES
from stack.state import cache_root

STREAMS = "image.openshift.io/imagestreams/"
OF_NOBODY = (STREAMS, "apiextensions.k8s.io/", "apiregistration.k8s.io/", "clusterrolebindings/", "clusterroles/",
             f"configmaps/kube-system/{cluster.MARKER}", "flowschemas/", "mutatingadmissionpolicies/",
             "mutatingadmissionpolicybindings/", "namespaces/", "priorityclasses/", "prioritylevelconfigurations/",
             "rolebindings/", "roles/", "storageclasses/", "template.openshift.io/", "validatingadmissionpolicies/",
             "validatingadmissionpolicybindings/")
"""The keys of a seed, below /registry/: in none of them is a secret, an account, an address, or anything of one stack."""
FIRST = "clusterroles/cluster-admin"
"""What no cluster is without whose API server was ready once."""


def place() -> Path:
    """Return the file of the seed for this stack's clusters; it may not be there."""
    about = [binaries.find("kube-apiserver").version, FEATURES, cluster.content(), OF_NOBODY]
    mark = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_root() / "clusters" / f"{mark[:16]}.json"


def sow(file: Path, port: int = ETCD_PORT) -> bool:
    """Put a seed into an etcd in which there is no cluster yet; return whether there is none, so that `gather` is to take it.

    Of a cluster that is there none is ever taken: it may have been used. What the API server was quicker to make stays as it
    is. A file that cannot be used is removed. Raises TimeoutError when etcd does not answer.
    """
    if wait_until(lambda: _ask(port, "range", {"key": _key(FIRST)}), "etcd to answer", 60).get("kvs"):
        return False
    try:
        puts = [{"request_txn": {"compare": [_absent(each["key"])], "success": [{"request_put": each}]}}
                for each in json.loads(file.read_text())]
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"the seed {file} cannot be read: {error!r}", flush=True)
    else:
        if _ask(port, "txn", {"compare": [_absent(_key(FIRST))], "success": puts}):
            return False
    with contextlib.suppress(OSError):
        file.unlink()
    return True


def gather(file: Path, port: int = ETCD_PORT) -> None:
    """Keep what a cluster holds that nobody has used yet, all of it or nothing; where that cannot be, it is only said."""
    seed = []
    for place in OF_NOBODY:
        found = _ask(port, "range", {"key": _key(place), "range_end": _key(_after(place))})
        if found is None:  # half a seed would be taken for a whole cluster
            print(f"the seed {file} is not kept: etcd did not give {place}", flush=True)
            return
        seed += [{"key": each["key"], "value": _unused(each["value"]) if place == STREAMS else each["value"]}
                 for each in found.get("kvs", [])]
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".made-", dir=file.parent) as made:
            Path(made, "seed").write_text(json.dumps(seed))
            Path(made, "seed").replace(file)
    except OSError as error:
        print(f"the seed {file} cannot be kept: {error}", flush=True)


def _unused(value: str) -> str:
    """Take the images out of an image stream: each stack's builder imports its own."""
    stream = json.loads(base64.b64decode(value))
    stream.pop("status", None)
    return base64.b64encode(json.dumps(stream).encode()).decode()


def _key(name: str) -> str:
    return base64.b64encode(f"/registry/{name}".encode()).decode()


def _after(name: str) -> str:
    """Return the first name behind all that begin with this one."""
    return name[:-1] + chr(ord(name[-1]) + 1)


def _absent(key: str) -> dict[str, Any]:
    return {"key": key, "target": "VERSION", "version": "0"}


def _ask(port: int, what: str, body: object) -> dict[str, Any] | None:
    """Ask etcd by its JSON gateway; returns None, and prints why, when it does not answer or refuses."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", f"/v3/kv/{what}", json.dumps(body))
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status == http.client.OK:
            found: dict[str, Any] = json.loads(text)
            return found
        print(f"etcd refuses a {what}: {text[:500]}", flush=True)
    except ConnectionRefusedError:
        pass  # it is still starting
    except (OSError, http.client.HTTPException) as error:
        print(f"etcd does not answer: {error!r}", flush=True)
    finally:
        connection.close()
    return None
