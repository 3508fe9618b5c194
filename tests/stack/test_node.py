"""The node on the real stack: controllers make pods, the node runs them, kubectl reaches them as a project member."""

from __future__ import annotations

import base64
import itertools
import os
import secrets
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import binaries
from stack.api import Manifest, wait_until
from stack.node import environment, status
from stack.node.environment import ConfigError
from tests.project import IMAGE, Project, pod_spec

pytestmark = pytest.mark.needs("cluster", "node", "inside")

SERVE = ("import http.server as h, os; print('serving', flush=True); "
         "h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()")


@pytest.fixture(scope="module")
def project(stack: Any) -> Iterator[Project]:
    made = Project(stack.state, stack.api, f"node-{secrets.token_hex(3)}")
    yield made
    stack.api.delete("Namespace", made.name)


def deploy(project: Project, name: str, container: Manifest, replicas: int = 1, code: str = SERVE) -> None:
    labels = {"app": name}
    template = {"metadata": {"labels": labels},
                "spec": pod_spec(code, container, restartPolicy="Always", terminationGracePeriodSeconds=1)}
    # First the Service: a pod is told of those that there were before it.
    project.create("Service", name, {"selector": labels, "ports": [{"name": "http", "port": 8080}]})
    project.create("Deployment", name, {"replicas": replicas, "selector": {"matchLabels": labels},
                                        "template": template})


# A deployment, from the controllers to an answer on the pod's own address.

def test_a_deployment_runs_answers_and_rolls(project: Project) -> None:
    project.create("Secret", "web", data={"password": base64.b64encode(b"first").decode()}, type="Opaque")
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    deploy(project, "web", {
        "ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": probe,
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "web", "key": "password"}}}]}, replicas=2)
    assert project.kubectl("rollout", "status", "deployment/web", "--timeout=60s").returncode == 0
    pods = project.api.list("Pod", project.name, labelSelector="app=web")
    addresses = {pod["status"]["podIP"] for pod in pods}
    assert len(addresses) == 2, "two pods with the same port, each with an address of its own"
    assert ready(pods[0]) == "True"
    first = pods[0]["metadata"]["name"]
    for address in addresses:
        look = f"import urllib.request as u; print(u.urlopen('http://{address}:8080/', timeout=60).status)"
        assert project.execute(first, "python3", "-c", look).strip() == "200"
    assert project.execute(first, "printenv", "PASSWORD").strip() == "first"
    assert project.execute(first, "printenv", "WEB_PORT").startswith("tcp://10.96.")
    project.api.patch("Deployment", "web", [{"op": "add", "path": "/spec/template/spec/containers/0/env/-",
                                             "value": {"name": "SECOND", "value": "$(PASSWORD)-$(WEB_SERVICE_PORT)"}}],
                      project.name, content="application/json-patch+json")
    assert project.kubectl("rollout", "status", "deployment/web", "--timeout=60s").returncode == 0
    wait_until(lambda: len(project.api.list("Pod", project.name, labelSelector="app=web")) == 2, "old pods to go")
    assert project.kubectl("exec", "deployment/web", "--", "printenv", "SECOND").stdout.strip() == "first-8080"


def test_the_service_answers_by_name_and_the_platform_has_names(project: Project) -> None:
    deploy(project, "named", {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}})
    project.pod("asks", f"""
import socket, time, urllib.request
deadline = time.time() + 50
while True:
    try:
        for name in ("named", "named.{project.name}.svc.cluster.local"):
            print(urllib.request.urlopen(f"http://{{name}}:8080/", timeout=2).status)
        break
    except OSError as error:
        if time.time() > deadline:
            raise
        time.sleep(0.1)
print(socket.gethostbyname("git.localhost"), socket.gethostbyname("kubernetes.default.svc"))
try:
    socket.gethostbyname("nowhere.example")
except OSError as error:
    print(error)
""")
    said = project.ended("asks")
    assert said.splitlines()[:2] == ["200", "200"]
    assert "10.97.0.1 10.96.0.1" in said
    assert "Name or service not known" in said


def test_a_new_service_is_known_in_a_running_pod(project: Project) -> None:
    project.pod("early")
    project.running("early")
    project.create("Service", "late", {"ports": [{"port": 1}]})
    wait_until(lambda: " late " in project.execute("early", "cat", "/etc/hosts"), "the name")


# Environment and configuration errors.

def test_a_missing_variable_crash_loops_and_the_log_names_it(project: Project) -> None:
    project.pod("crash", "import os; os.environ['NEEDED']", restartPolicy="Always")
    seen = project.until("crash", lambda each: each["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
                         and each["restartCount"] >= 1, "the crash loop")
    assert seen["lastState"]["terminated"]["exitCode"] == 1
    assert seen["lastState"]["terminated"]["reason"] == "Error"
    assert "restarting failed container=main" in seen["state"]["waiting"]["message"]
    assert "KeyError: 'NEEDED'" in project.kubectl("logs", "crash", "--previous").stdout
    assert project.get("crash")["status"]["phase"] == "Running"
    assert "BackOff" in dict(project.events("crash"))


def test_a_missing_secret_or_key_is_named_and_the_pod_starts_when_it_comes(project: Project) -> None:
    project.pod("needy", "import os; print(os.environ['A'])", container={"env": [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "later", "key": "a"}}}]})
    seen = project.until("needy", lambda each: "message" in each["state"].get("waiting", {}), "the reason")
    assert seen["state"]["waiting"] == {"reason": "CreateContainerConfigError", "message": 'secret "later" not found'}
    project.create("Secret", "later", data={})
    project.until("needy", lambda each: each["state"].get("waiting", {}).get("message") ==
                  f"couldn't find key a in Secret {project.name}/later", "the key to be named")
    assert ("Failed", 'Error: secret "later" not found') in project.events("needy")
    project.api.patch("Secret", "later", {"data": {"a": base64.b64encode(b"here").decode()}}, project.name)
    assert project.ended("needy") == "here\n"


def test_an_unknown_image_cannot_be_pulled(project: Project) -> None:
    project.pod("foreign", container={"image": "example.org/no/such:1"})
    project.until("foreign", lambda each: each["state"]["waiting"]["reason"] == "ImagePullBackOff", "the back-off")
    assert any(reason == "Failed" and "example.org/no/such:1" in message for reason, message
               in project.events("foreign"))


def test_a_program_that_is_not_there_is_a_start_error(project: Project) -> None:
    project.pod("typo", container={"command": ["no-such-program"]})
    seen = project.until("typo", lambda each: "terminated" in each["state"], "the end")
    assert seen["state"]["terminated"]["reason"] == "StartError"
    assert "no-such-program" in seen["state"]["terminated"]["message"]


# Probes.

def test_readiness_follows_the_probe(project: Project) -> None:
    project.pod("gate", container={"readinessProbe": {
        "exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}})
    project.until("gate", lambda each: "running" in each["state"], "the start")
    wait_until(lambda: "Unhealthy" in dict(project.events("gate")), "the failed probe's event")
    assert not project.container("gate")["ready"]
    project.execute("gate", "touch", "/tmp/ready")
    project.running("gate")
    project.execute("gate", "rm", "/tmp/ready")
    project.until("gate", lambda each: not each["ready"], "the pod to be unready")
    assert project.container("gate")["restartCount"] == 0


@pytest.mark.fault(37)
def test_a_failed_liveness_probe_restarts_and_a_host_header_is_sent(project: Project) -> None:
    code = """
import http.server as h, time
begun = time.time()
class Page(h.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.headers['Host'] == 'app.example' and time.time() - begun < 3
        self.send_response(200 if good else 400)
        self.end_headers()
h.ThreadingHTTPServer(('', 8080), Page).serve_forever()
"""
    action = {"httpGet": {"path": "/", "port": 8080, "httpHeaders": [{"name": "Host", "value": "app.example"}]}}
    project.pod("sick", code, restartPolicy="Always", container={
        "startupProbe": {**action, "periodSeconds": 1, "failureThreshold": 20},
        "livenessProbe": {**action, "periodSeconds": 1, "failureThreshold": 2}}, terminationGracePeriodSeconds=1)
    project.until("sick", lambda each: each["started"], "the startup probe to succeed")
    seen = project.until("sick", lambda each: each["restartCount"] >= 1, "the restart")
    assert seen["lastState"]["terminated"]["exitCode"] in (137, 143)
    assert any("failed liveness probe, will be restarted" in message for _, message in project.events("sick"))
    assert ("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 400") in project.events("sick")


# Volumes, init containers, jobs.

def test_volumes_hold_what_the_objects_say(project: Project) -> None:
    project.create("ConfigMap", "files", data={"a.conf": "alpha", "b.conf": "beta"})
    project.create("Secret", "key", data={"id": base64.b64encode(b"hidden").decode()})
    code = """
import os, pathlib
for name in ('/etc/app/a.conf', '/one/b.conf', '/secret/id', '/info/labels', '/made/by-init', '/usr/share/app/x'):
    print(name, pathlib.Path(name).read_text().strip())
print(sorted(os.listdir('/etc/app')), oct(os.stat('/secret/id').st_mode & 0o777))
for name in ('/etc/app/new', '/made/new', '/usr/new', '/new'):
    try:
        pathlib.Path(name).write_text('x')
        print('wrote', name)
    except OSError as error:
        print(error.strerror, name)
"""
    volumes = [{"name": "conf", "configMap": {"name": "files"}}, {"name": "made", "emptyDir": {}},
               {"name": "key", "secret": {"secretName": "key", "defaultMode": 0o400}},
               {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {
                   "fieldPath": "metadata.name"}}]}}]
    init = {"name": "init", "image": IMAGE, "command": ["sh", "-c", "echo one >/made/by-init; mkdir /made/sub; "
            "echo two >/made/sub/x"], "volumeMounts": [{"name": "made", "mountPath": "/made"}]}
    project.pod("mounts", code, volumes=volumes, initContainers=[init], container={"volumeMounts": [
        {"name": "conf", "mountPath": "/etc/app"}, {"name": "key", "mountPath": "/secret"},
        {"name": "conf", "mountPath": "/one/b.conf", "subPath": "b.conf"}, {"name": "info", "mountPath": "/info"},
        {"name": "made", "mountPath": "/made"}, {"name": "made", "mountPath": "/usr/share/app", "subPath": "sub"}]})
    said = project.ended("mounts")
    for line in ("/etc/app/a.conf alpha", "/one/b.conf beta", "/secret/id hidden", "/info/labels mounts",
                 "/made/by-init one", "/usr/share/app/x two", "['a.conf', 'b.conf'] 0o400", "wrote /made/new",
                 "Read-only file system /etc/app/new", "Read-only file system /usr/new", "Read-only file system /new"):
        assert line in said
    statuses = project.get("mounts")["status"]["initContainerStatuses"]
    assert statuses[0]["state"]["terminated"]["reason"] == "Completed"


def test_a_missing_volume_source_is_told_in_an_event(project: Project) -> None:
    project.pod("unmounted", volumes=[{"name": "v", "secret": {"secretName": "absent"}}])
    wait_until(lambda: ("FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "absent" not found')
               in project.events("unmounted"), "the event")


def test_jobs_complete_and_fail(project: Project) -> None:
    for name, code in (("good", "print('done')"), ("bad", "raise SystemExit(3)")):
        project.create("Job", name, {"backoffLimit": 0, "template": {"spec": pod_spec(code)}})

    def condition(name: str) -> list[str]:
        job = project.api.get("Job", name, project.name) or {}
        return [each["type"] for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"]
    wait_until(lambda: "Complete" in condition("good"), "the good job")
    wait_until(lambda: "Failed" in condition("bad"), "the bad job")
    assert project.kubectl("logs", "job/good").stdout == "done\n"


def test_a_failed_init_container_holds_the_others_back(project: Project) -> None:
    init = {"name": "init", "image": IMAGE, "command": ["false"]}
    project.pod("held", initContainers=[init])
    wait_until(lambda: project.get("held").get("status", {}).get("phase") == "Failed", "the failure")
    assert project.container("held")["state"]["waiting"]["reason"] == "PodInitializing"


def test_a_sidecar_starts_first_and_ends_last(project: Project) -> None:
    side = {"name": "side", "image": IMAGE, "restartPolicy": "Always", "command": ["python3", "-c", SERVE],
            "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/').status)"
    project.pod("accompanied", code, initContainers=[side])
    assert project.ended("accompanied") == "200\n"


# The end of a pod.

def test_deletion_sends_term_to_the_program_and_waits_for_it(project: Project, stack: Any) -> None:
    project.create("PersistentVolumeClaim", "notes", {
        "storageClassName": "standard", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}})
    code = """
import pathlib, signal, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path('/notes/end').write_text('in order')
    raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path('/notes/begun').write_text('')
time.sleep(600)
"""
    project.pod("polite", code, terminationGracePeriodSeconds=120, container={
        "volumeMounts": [{"name": "notes", "mountPath": "/notes"}],
        "lifecycle": {"preStop": {"exec": {"command": ["touch", "/notes/hook"]}}}},
        volumes=[{"name": "notes", "persistentVolumeClaim": {"claimName": "notes"}}])
    wait_until(lambda: (project.api.get("PersistentVolumeClaim", "notes", project.name) or {}).get("spec", {})
               .get("volumeName"), "the volume")
    name = (project.api.get("PersistentVolumeClaim", "notes", project.name) or {})["spec"]["volumeName"]
    folder = stack.state.volumes / name
    wait_until((folder / "begun").exists, "the start")
    project.api.delete("Pod", "polite", project.name)
    wait_until(lambda: not project.get("polite"), "the pod to go before its grace is over")
    assert (folder / "end").read_text() == "in order"
    assert (folder / "hook").exists()


def test_a_program_that_ignores_term_takes_its_whole_grace(project: Project) -> None:
    # bash as the first process of a container ignores SIGTERM, here as on OpenShift.
    project.pod("deaf", terminationGracePeriodSeconds=2, container={"command": ["bash", "-c", "sleep 600; true"]})
    project.running("deaf")
    begun = time.monotonic()
    project.api.delete("Pod", "deaf", project.name)
    wait_until(lambda: not project.get("deaf"), "the pod to go")
    assert time.monotonic() - begun >= 2


def test_a_pod_can_be_deleted_by_force(project: Project) -> None:
    project.pod("forced", terminationGracePeriodSeconds=120, container={"command": ["bash", "-c", "sleep 600; true"]})
    project.running("forced")
    folder = project.state.logs / "pods" / f"{project.name}_forced_{project.get('forced')['metadata']['uid']}"
    assert folder.exists()
    assert project.kubectl("delete", "pod", "forced", "--force", "--grace-period=0").returncode == 0
    wait_until(lambda: not folder.exists(), "its files to go")


# Logs and exec through the API server.

def test_logs_can_be_cut_stamped_and_followed(project: Project) -> None:
    project.pod("talks", "import time\nfor n in range(5): print('line', n, flush=True); time.sleep(0.3)")
    project.until("talks", lambda each: each["state"].get("running") or each["state"].get("terminated"), "the start")
    assert project.kubectl("logs", "-f", "talks").stdout.split("\n")[:5] == [f"line {n}" for n in range(5)]
    assert project.kubectl("logs", "talks", "--tail=2").stdout == "line 3\nline 4\n"
    assert project.kubectl("logs", "talks", "--limit-bytes=9").stdout == "line 0\nli"
    assert project.kubectl("logs", "talks", "--since=1h").stdout.count("line") == 5
    stamped = project.kubectl("logs", "talks", "--timestamps", "--tail=1").stdout
    assert stamped.startswith("20")
    assert stamped.endswith("Z line 4\n")
    assert "previous terminated container" in project.kubectl("logs", "talks", "--previous").stderr


def test_logs_of_a_container_that_waits_say_so(project: Project) -> None:
    project.pod("waits", container={"envFrom": [{"secretRef": {"name": "absent"}}]})
    project.until("waits", lambda each: "message" in each["state"].get("waiting", {}), "the reason")
    assert "is waiting to start: CreateContainerConfigError" in project.kubectl("logs", "waits").stderr


def test_exec_carries_input_output_and_the_exit_code(project: Project) -> None:
    project.pod("inside", container={"env": [{"name": "GREETING", "value": "hello"}], "workingDir": "/tmp"})
    project.running("inside")
    done = project.kubectl("exec", "inside", "--", "sh", "-c", "pwd; echo $GREETING; echo no >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "/tmp\nhello\n")
    assert "no\n" in done.stderr
    big = "x" * 300_000
    done = project.kubectl("exec", "-i", "inside", "--", "sh", "-c", "cat; echo end", stdin=big)
    assert done.stdout == big + "end\n"
    identity = project.execute("inside", "id").strip()
    assert identity.endswith("gid=0(root) groups=0(root)")
    assert int(identity.partition("uid=")[2].partition("(")[0]) > 1_000_000_000


def test_exec_by_the_python_client_speaks_the_older_protocol(project: Project) -> None:
    from kubernetes import client, config
    from kubernetes.stream import stream as open_stream

    project.pod("python-client")
    project.running("python-client")
    core = client.CoreV1Api(config.new_client_from_config(str(project.state.kubeconfig)))
    answer = open_stream(core.connect_get_namespaced_pod_exec, "python-client", project.name, stdout=True, stderr=True,
                         stdin=False, tty=False, command=["sh", "-c", "echo there; exit 4"], _preload_content=False)
    answer.run_forever(timeout=60)
    assert answer.read_stdout() == "there\n"
    assert answer.returncode == 4


def test_a_terminal_is_one(project: Project) -> None:
    import pty

    project.pod("terminal")
    project.running("terminal")
    own, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [str(binaries.find("kubectl").path), f"--kubeconfig={project.state.kubeconfig}", "-n", project.name,
               "exec", "-it", "terminal", "--", "sh", "-c", "tty; read x; stty size; echo got $x"]
    said = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT) as process:
        os.close(theirs)
        while select.select([own], [], [], 20)[0]:
            try:
                said += os.read(own, 4096)
            except OSError:  # how a terminal says that its other side has closed
                break
            if said.endswith(b"/dev/pts/0\r\n"):
                os.write(own, b"it\n")
        process.kill()
    os.close(own)
    assert b"24 80" in said
    assert b"got it" in said


# What a pod cannot do.

def test_a_pod_sees_nothing_of_the_machine(project: Project, stack: Any) -> None:
    hidden = [str(stack.state.root), str(stack.state.pki / "ca.key"), str(Path.home() / ".ssh"), "/etc/shadow",
              str(Path(__file__).parent), "/proc/1/root/etc/shadow"]
    project.pod("looks", f"""
import os, pathlib
for name in {hidden!r}:
    print('SEEN' if os.path.exists(name) else 'hidden', name)
print(len([name for name in os.listdir('/proc') if name.isdigit()]), 'processes', sorted(os.listdir('/home'))
      if os.path.exists('/home') else '')
print(sorted(os.listdir('/')))
""")
    said = project.ended("looks")
    assert "SEEN" not in said
    assert "1 processes" in said


def test_a_pod_reaches_the_api_as_its_account_and_gets_its_rights(project: Project) -> None:
    project.pod("calls", """
import json, ssl, urllib.request, urllib.error
folder = '/var/run/secrets/kubernetes.io/serviceaccount'
token = open(folder + '/token').read()
request = urllib.request.Request('https://kubernetes.default.svc/api/v1/secrets',
                                 headers={'Authorization': 'Bearer ' + token})
try:
    urllib.request.urlopen(request, context=ssl.create_default_context(cafile=folder + '/ca.crt'), timeout=60)
except urllib.error.HTTPError as error:
    print(error.code, json.load(error)['message'])
""")
    said = project.ended("calls")
    assert said.startswith("403 ")
    assert f"system:serviceaccount:{project.name}:default" in said


def test_a_pod_cannot_use_the_kubelets_port(project: Project) -> None:
    project.pod("knocks", f"""
import http.client, ssl
context = ssl._create_unverified_context()
connection = http.client.HTTPSConnection('10.244.0.1', 10250, context=context, timeout=60)
try:
    connection.request('GET', '/containerLogs/{project.name}/knocks/main')
    print('ANSWERED', connection.getresponse().status)
except OSError as error:
    print('refused', error)
""")
    said = project.ended("knocks")
    assert "refused" in said
    assert "ANSWERED" not in said


def test_secrets_are_on_no_command_line(project: Project) -> None:
    canary = "canary-" + secrets.token_hex(12)
    project.create("Secret", "canary", data={"value": base64.b64encode(canary.encode()).decode()})
    project.pod("quiet", container={"env": [
        {"name": "CANARY", "valueFrom": {"secretKeyRef": {"name": "canary", "key": "value"}}}]})
    project.running("quiet")
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert canary.encode() not in process.read_bytes()
        except OSError:
            continue


# The node itself.

def test_the_node_is_ready_and_its_lease_is_renewed_and_never_without_a_time(stack: Any) -> None:
    """A node controller that has once seen the Lease without its time notices no renewal, and takes the node for lost."""
    node = stack.api.get("Node", status.NODE)
    assert {each["type"]: each["status"] for each in node["status"]["conditions"]}["Ready"] == "True"
    over = threading.Event()
    deadline = threading.Timer(30, over.set)
    deadline.start()
    seen = stack.api.watch("Lease", "kube-node-lease", stop=over)
    assert next(event for event, _ in seen if event == "SYNCED")
    stack.api.delete("Lease", status.NODE, "kube-node-lease")  # The next renewal, ten seconds later at most, makes it anew.
    versions = [lease["spec"].get("renewTime", "") for event, lease in itertools.islice(seen, 3) if event != "DELETED"]
    deadline.cancel()  # A timer that still runs would keep the worker from ending.
    assert len(versions) == 2, "it was not made anew and renewed within 30 s"
    assert "" < versions[0] < versions[1]


def test_what_the_node_controller_wrote_of_a_lost_node_is_put_right(project: Project) -> None:
    """A node that was away for a minute comes back to pods that all count as not ready."""
    project.pod("lost")
    project.running("lost")
    lost = {"conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]}
    told = project.api.patch("Pod", "lost", {"status": lost}, project.name, subresource="status",
                             content="application/strategic-merge-patch+json")
    assert ready(told) == "False"
    wait_until(lambda: ready(project.get("lost")) == "True", "the pod to be ready again")


def ready(pod: Manifest) -> str:
    return str({each["type"]: each["status"] for each in pod["status"]["conditions"]}["Ready"])


def test_an_error_in_one_part_ends_the_platform() -> None:
    code = """
import pathlib, sys
from stack import platform
from stack.state import State
def breaks(state, stop):
    raise ValueError("on purpose")
def waits(state, stop):
    stop.wait(30)
sys.exit(platform.run(State(pathlib.Path("/nowhere")), {"breaks": breaks, "waits": waits}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "ValueError: on purpose" in done.stderr
    assert "breaks ended" in done.stderr


# Pure parts.

POD: Manifest = {"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
                 "spec": {}, "status": {"podIP": "10.244.0.9"}}
OBJECTS: dict[tuple[str, str], Manifest] = {
    ("Secret", "s"): {"data": {"k": base64.b64encode(b"secret").decode()}},
    ("ConfigMap", "c"): {"data": {"K": "config", "L": "more"}}}


def of(container: Manifest, services: list[Manifest] | None = None, pod: Manifest = POD) -> dict[str, str]:
    return environment.environment(pod, container, services or [], lambda *key: OBJECTS.get(key))


def test_environment_sources_and_precedence() -> None:
    found = of({"envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}, "prefix": "P_"},
                            {"configMapRef": {"name": "absent", "optional": True}}],
                "env": [{"name": "K", "value": "own"}, {"name": "J", "value": "$(K)/$(P_k)/$$(K)/$(UNKNOWN)"},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory",
                                                                              "divisor": "1Mi"}}},
                        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x", "optional": True}}}],
                "resources": {"limits": {"memory": "512Mi"}}})
    assert found == {"K": "own", "L": "more", "P_k": "secret", "J": "own/secret/$(K)/$(UNKNOWN)",
                     "IP": "10.244.0.9", "APP": "x", "MEMORY": "512"}


@pytest.mark.parametrize(("entry", "message"), [
    ({"secretKeyRef": {"name": "absent", "key": "k"}}, 'secret "absent" not found'),
    ({"configMapKeyRef": {"name": "absent", "key": "k"}}, 'configmap "absent" not found'),
    ({"secretKeyRef": {"name": "s", "key": "absent"}}, "couldn't find key absent in Secret n/s"),
    ({"configMapKeyRef": {"name": "c", "key": "absent"}}, "couldn't find key absent in ConfigMap n/c"),
])
def test_missing_values_are_named_as_the_kubelet_does(entry: Manifest, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        of({"env": [{"name": "A", "valueFrom": entry}]})


def test_services_announce_themselves() -> None:
    services = [{"metadata": {"name": "my-redis", "namespace": "n"}, "spec": {
        "clusterIP": "10.96.1.1", "ports": [{"port": 6379, "name": "redis"}]}},
        {"metadata": {"name": "other", "namespace": "m"}, "spec": {"clusterIP": "10.96.1.2", "ports": [{"port": 1}]}},
        {"metadata": {"name": "headless", "namespace": "n"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}]
    found = of({"env": [{"name": "MY_REDIS_PORT_6379_TCP_ADDR", "value": "mine"}]}, services)
    assert found == {
        "MY_REDIS_SERVICE_HOST": "10.96.1.1", "MY_REDIS_SERVICE_PORT": "6379", "MY_REDIS_SERVICE_PORT_REDIS": "6379",
        "MY_REDIS_PORT": "tcp://10.96.1.1:6379", "MY_REDIS_PORT_6379_TCP": "tcp://10.96.1.1:6379",
        "MY_REDIS_PORT_6379_TCP_PROTO": "tcp", "MY_REDIS_PORT_6379_TCP_PORT": "6379",
        "MY_REDIS_PORT_6379_TCP_ADDR": "mine"}
    assert of({}, services, {**POD, "spec": {"enableServiceLinks": False}}) == {}


@pytest.mark.parametrize(("policy", "states", "phase"), [
    ("Always", [{"waiting": {}}], "Pending"),
    ("Always", [{"running": {}}], "Running"),
    ("Always", [{"terminated": {"exitCode": 1}}], "Running"),
    ("Never", [{"terminated": {"exitCode": 0}}, {"running": {}}], "Running"),
    ("Never", [{"terminated": {"exitCode": 0}}, {"terminated": {"exitCode": 2}}], "Failed"),
    ("OnFailure", [{"terminated": {"exitCode": 0}}], "Succeeded"),
    ("OnFailure", [{"terminated": {"exitCode": 1}}], "Running"),
])
def test_the_phase_follows_from_the_containers(policy: str, states: list[Manifest], phase: str) -> None:
    mains = [{"state": state, "lastState": {}} for state in states]
    assert status.phase({"spec": {"restartPolicy": policy}}, [], mains) == phase
