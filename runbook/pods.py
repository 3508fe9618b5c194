"""The pods of a Deployment: which are the newest, which is ready, why one cannot start, and a look inside."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from runbook.errors import GuideError, WrongUse
from runbook.plan import Inside, Log, Manifest, Object, Shell

if TYPE_CHECKING:
    from runbook.connections import Connections

PATIENCE = 120
"""Seconds that pods on their way out have to end."""
HOPELESS = {"CrashLoopBackOff", "CreateContainerConfigError", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"}


def newest(connections: Connections, deployment: str, *, known: bool = False) -> list[Manifest]:
    """Return the pods of a Deployment's newest ReplicaSet: as they are, or as `known` since the last change."""
    listed = connections.observed.objects if known else connections.cluster.list
    sets = [s for s in listed("ReplicaSet")
            if any(o["kind"] == "Deployment" and o["name"] == deployment for o in s["metadata"].get("ownerReferences", []))]
    if not sets:
        return []
    newest = max(sets, key=lambda s: int(s["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision", 0)))
    return [p for p in listed("Pod")
            if any(o["name"] == newest["metadata"]["name"] for o in p["metadata"].get("ownerReferences", []))]


def hopeless(connections: Connections, deployment: str) -> str:
    """Return why a Deployment's newest pod cannot start, else ""."""
    for pod in newest(connections, deployment):
        for status in pod.get("status", {}).get("containerStatuses", []):
            again = status.get("restartCount") and not status.get("started")
            # Restarted because of its startup probe: that one's patience is the deadline.
            if again and (seen := unhealthy(connections, pod["metadata"]["name"])):
                return f"pod {pod['metadata']['name']}: {seen}"
            waiting = status.get("state", {}).get("waiting", {})
            if waiting.get("reason") in HOPELESS and (status.get("restartCount", 0) > 1 or "Config" in waiting["reason"]):
                return f"pod {pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def unhealthy(connections: Connections, pod: str) -> str:
    """Return what the startup probe saw last of a pod that the node restarts because of it, else "".

    The log of such a pod does not know why. A pod that ends by itself may have failed a look before, which is no reason.
    """
    events = connections.cluster.list("Event", fieldSelector=f"involvedObject.name={pod}")
    if not any(event.get("reason") == "Killing" and "failed startup probe" in event.get("message", "") for event in events):
        return ""
    said = [event for event in events
            if event.get("reason") == "Unhealthy" and event.get("message", "").startswith("Startup probe")]
    return max(said, key=lambda event: event.get("lastTimestamp") or "")["message"] if said else ""


def ready(connections: Connections, deployment: str, container: str, *, running: bool = False, known: bool = False) -> str:
    """Return the name of a pod of the newest ReplicaSet whose container is ready, or only runs, "" when there is none."""
    def well(pod: Manifest) -> bool:
        return any(c["name"] == container and ("running" in c.get("state", {}) if running else c["ready"])
                   for c in pod.get("status", {}).get("containerStatuses", []))

    return next((pod["metadata"]["name"] for pod in newest(connections, deployment, known=known)
                 if "deletionTimestamp" not in pod["metadata"] and well(pod)), "")


def wait_ended(deployment: Manifest, connections: Connections, tell: Callable[[str], None],
               which: Callable[[Manifest], bool]) -> None:
    """Wait until none of a Deployment's pods is one of those. Raises GuideError naming one that does not end."""
    selector = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())
    deadline = time.monotonic() + PATIENCE
    while left := [pod["metadata"]["name"] for pod in connections.cluster.list("Pod", selector) if which(pod)]:
        if time.monotonic() > deadline:
            raise GuideError(f"pod {left[0]} does not end", "run the same command again")
        tell("waiting for the app's pods to end")
        time.sleep(0.3)


def _required(connections: Connections, deployment: str, container: str) -> str:
    pod = ready(connections, deployment, container)
    if not pod:
        raise GuideError(f"no pod of {deployment} is ready", _missing(connections))
    return pod


def _missing(connections: Connections) -> str:
    return f"`invoke guide.status --build={connections.instance.name}` says what is missing"


def look_inside(action: Inside, connections: Connections, *, known: bool = False) -> str:
    """Run the looking command of a value; return "" when it succeeds and shows what it should, else what is seen."""
    command = action.unless or action.command
    pod = ready(connections, action.deployment, action.container, known=known)
    if not pod and action.unready:
        pod = ready(connections, action.deployment, action.container, running=True, known=known)
    if not pod:
        return f"no pod of {action.deployment} is ready"
    code, said = connections.cluster.execute(pod, action.container, command, action.seconds)
    if code == 124:
        return f"no answer within {action.seconds:g} s"
    if code:
        return last_line(said) or f"exit status {code}"
    contains = "" if action.unless else action.contains
    return "" if contains in said else f"it does not say {contains!r}"


def run_inside(action: Inside, connections: Connections) -> str:
    """Run the command of a value and return what it printed. Raises GuideError when it fails."""
    connections.lease.take()  # What a command changes inside a pod, the cluster does not see as a write.
    pod = _required(connections, action.deployment, action.container)
    line = connections.resolve(action.input).reveal() + "\n" if action.input else ""
    code, said = connections.cluster.execute(pod, action.container, action.command, action.seconds, line)
    if code:
        raise GuideError(f"{action.what}: not so: {last_line(said) or f'exit status {code}'}",
                         f"the pod says why; `invoke app.logs --build={connections.instance.name}` shows the app's own log")
    return said


def last_line(text: str) -> str:
    """Return the last line that says something: of a traceback, the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def print_log(action: Log, connections: Connections) -> None:
    """Print the log of the newest pods, each line after its pod's name when there is more than one."""
    pods = [pod["metadata"]["name"] for pod in newest(connections, action.deployment)]
    if not pods:
        raise GuideError(f"{action.deployment} has no pod", _missing(connections))
    query = {"container": action.container, "tailLines": str(action.lines)}
    query |= {"previous": "true"} if action.previous else {}
    if action.follow:
        pods, query = pods[:1], query | {"follow": "true"}
    for pod in pods:
        path = connections.cluster.path(Object("Pod", pod)) + "/log"
        # A day: somebody who follows a log ends it with Ctrl-C.
        for line in connections.cluster.stream(path, 86400, **query):
            connections.say(f"{pod}  {line}" if len(pods) > 1 else line)


def open_shell(action: Shell, connections: Connections) -> None:
    """Open a terminal in a ready pod and join it with the reader's own until it ends. Raises WrongUse without one."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise WrongUse("a shell needs a terminal", "run it in a terminal")
    pod = _required(connections, action.deployment, action.container)
    connections.say(f"pod {pod}; `exit` leaves it")
    session = connections.cluster.terminal(pod, action.container, action.command)
    join(session)


def join(session: object) -> None:
    """Pass keys and screen between this terminal and a session until it ends; the terminal is left as it was."""
    import select
    import shutil
    import termios
    import tty
    from typing import Any, cast

    remote = cast("Any", session)
    keyboard = sys.stdin.fileno()
    before, size = termios.tcgetattr(keyboard), (0, 0)
    try:
        tty.setraw(keyboard)
        while remote.is_open():
            now = shutil.get_terminal_size()
            if now != size:
                size = now
                remote.write_channel(4, f'{{"Width": {size.columns}, "Height": {size.lines}}}')
            remote.update(timeout=0)
            for channel in (1, 2):
                if text := remote.read_channel(channel):
                    os.write(sys.stdout.fileno(), text.encode())
            readable, _, _ = select.select([keyboard, remote.sock.sock], [], [], 1)
            if keyboard in readable:
                remote.write_stdin(os.read(keyboard, 4096).decode(errors="ignore"))
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def wait_inside(action: Inside, connections: Connections) -> str:
    """Look again and again until the look succeeds or its time is up; return what was seen last, "" when it succeeded."""
    deadline = time.monotonic() + action.retry
    while True:
        note = look_inside(action, connections)
        if not note or time.monotonic() > deadline:
            return note
        time.sleep(1)
