"""Whether the database server lets a pod of the project in: tried from inside, because only that proves it.

A script of the standard library says hello as PostgreSQL's protocol does and reads the first answer. pg_hba.conf is
looked at before the password, so no password is needed, and the server's own words tell the two failures apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runbook.errors import GuideError, Unknown
from runbook.plan import Admitted, Condition, Manifest, Object

if TYPE_CHECKING:
    from runbook.connections import Connections
    from runbook.diff import Difference

SCRIPT = """
import socket, ssl, struct, sys
host, port, user, database = sys.argv[1:5]
def hello(s):
    body = struct.pack("!i", 196608) + b"".join(p.encode() + b"\\0" for p in ("user", user, "database", database)) + b"\\0"
    s.sendall(struct.pack("!i", len(body) + 4) + body)
    answer = s.recv(4096)
    if answer[:1] == b"R":
        return ""
    return next((p[1:].decode() for p in answer[5:].split(b"\\0") if p[:1] == b"M"), "no PostgreSQL server")
try:
    s = socket.create_connection((host, int(port)), 10)
    s.sendall(struct.pack("!ii", 8, 80877103))
    if s.recv(1) != b"S":
        print("the server offers no TLS"); sys.exit(3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    why = hello(context.wrap_socket(s, server_hostname=host))
except OSError as error:
    why = f"{host}:{port} cannot be reached from a pod: {error}"
print(why or "admitted")
sys.exit(3 if why else 0)
"""

POD = "guide-database-access"


def seen(proof: Admitted, deed: str, connections: Connections) -> Difference:
    """Return whether the server admits the app's running pod; without a running pod that is not known yet."""
    from runbook.diff import Difference, State

    pods = connections.observed.objects("Pod", f"app={proof.deployment}") if _project(connections) else []
    # A pod that crashes again and again is Running as well; only a ready container can be relied on to be there.
    ready = [p for p in pods if "deletionTimestamp" not in p["metadata"]
             and any(c["name"] == proof.deployment and c["ready"] for c in p.get("status", {}).get("containerStatuses", []))]
    if not ready:
        return Difference(State.WAITING, deed, note="not tried, as no pod of the app runs; it may be done already")
    code, said = connections.cluster.execute(ready[0]["metadata"]["name"], proof.deployment, command(proof))
    return Difference(State.DONE if code == 0 else State.DRIFTED, deed, note="" if code == 0 else said.strip())


def admitted(proof: Admitted, connections: Connections) -> bool:
    """Return whether the server lets a pod in before anybody is asked to see to it; only trying tells.

    On the local stack, where a stand-in acts at once, that is tried only when an app without a pod says that it was done once.
    """
    if connections.portal and not connections.observed.object("Deployment", proof.deployment):
        return False
    return not tried(proof, connections)


def tried(proof: Admitted, connections: Connections) -> str:
    """Make a pod that tries, and remove it; return "" when it was let in, else the server's words."""
    cluster = connections.cluster
    _remove(connections)
    cluster.request("POST", cluster.collection("Pod"), pod(proof, image(proof, connections)),
                    query={"fieldManager": "guide/database.access"})
    try:
        ended = cluster.wait(Object("Pod", POD), ENDED, 180)
        said = cluster.log(POD).strip()
        return "" if ended and ended["status"]["phase"] == "Succeeded" else said or "the pod said nothing"
    finally:
        _remove(connections)


def command(proof: Admitted) -> list[str]:
    """Return what runs inside the pod."""
    return ["python3", "-c", SCRIPT, proof.host, str(proof.port), proof.role, proof.database]


def image(proof: Admitted, connections: Connections) -> str:
    """Return the builder image as the image stream names it: every project can pull it, and it has Python."""
    name, _, tag = proof.image.partition(":")
    stream = connections.observed.object("ImageStream", name, "openshift") or {}
    for found in stream.get("status", {}).get("tags", []):
        if found["tag"] == tag and found.get("items"):
            return str(found["items"][0]["dockerImageReference"])
    raise GuideError(f"the image stream {name} in the namespace openshift has no tag {tag}",
                     "`invoke app.create` lists the tags that are there")


def pod(proof: Admitted, reference: str) -> Manifest:
    """Return the pod that tries."""
    labels = {"app.kubernetes.io/managed-by": "certhelper-guide"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "labels": labels},
            "spec": {"restartPolicy": "Never", "activeDeadlineSeconds": 120, "terminationGracePeriodSeconds": 1,
                     "containers": [{"name": "try", "image": reference, "command": command(proof),
                                     "resources": {"limits": {"cpu": "100m", "memory": "128Mi"}}}]}}


def _ended(found: Manifest | None) -> str:
    phase = (found or {}).get("status", {}).get("phase", "not there")
    return "" if phase in ("Succeeded", "Failed") else f"its phase is {phase}"


ENDED = Condition("ended", _ended, "jsonpath={.status.phase}=Succeeded")
GONE = Condition("gone", lambda found: "still there" if found else "", "delete")


def _remove(connections: Connections) -> None:
    live = connections.cluster.get(Object("Pod", POD))
    if live:
        connections.cluster.delete(Object("Pod", POD), live["metadata"]["uid"])
        connections.cluster.wait(Object("Pod", POD), GONE, 60)


def _project(connections: Connections) -> bool:
    try:
        return connections.observed.object("Namespace", connections.instance.project) is not None
    except Unknown:
        return False
