"""Two people at once: the second who has something to do is told who is at work; a holder that is gone holds nobody up."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runbook import lease
from runbook.clients.cluster import Cluster
from stack.api import wait_until
from tests import ready
from tests.guide import ROOT, Site

pytestmark = pytest.mark.needs("cluster", "portal")


def held(site: Site):
    return site.guide.stack.api.get("Lease", "guide", site.instance.project)


HOLD = """
import sys, time
from pathlib import Path
from runbook.clients.cluster import Cluster
from runbook.lease import Lease

cluster = Cluster(sys.argv[1], Path(sys.argv[2]))
Lease(lambda: cluster, "steps", "guide.run", print).take()
time.sleep(600)
"""
"""A run that takes as long as a test needs."""


@contextmanager
def somebody(site: Site, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another person's run, seen to hold the instance; without words it holds it until it is killed."""
    command = [sys.executable, "-m", "runbook", *words, f"--build={site.name}"] if words else [
        sys.executable, "-c", HOLD, site.instance.project, str(site.guide.stack.state.kubeconfig)]
    with subprocess.Popen(command, env=site.guide.environment | site.environment, cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            wait_until(lambda: held(site) or process.poll() is not None, "the other run to begin")
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()


def test_a_second_run_is_refused_and_names_the_holder_and_a_run_without_work_is_not(site: Site) -> None:
    project, api, name = site.instance.project, site.guide.stack.api, "eos-credentials"
    before = api.get("Secret", name, project)["metadata"]["resourceVersion"]
    with somebody(site, "deploy.build", "--again") as other:
        refused = site("eos.credentials", "--rotate", code=1)
        assert f":{other.pid} since 20" in refused.stderr and "deploy.build, last seen" in refused.stderr
        assert "@" in refused.stderr and "Traceback" not in refused.stderr
        undone = site("eos.credentials", "--undo", code=1)
        assert f":{other.pid} since" in undone.stderr
        # Who only looks, or finds nothing to do, disturbs nobody.
        site("guide.status", code=None)
        assert site.outcomes("eos.credentials")["eos.credentials"]["state"] == "unchanged"
        assert other.wait(120) == 0, other.communicate()
    assert held(site) is None
    assert api.get("Secret", name, project)["metadata"]["resourceVersion"] == before


def test_an_unchanged_run_takes_no_lease(site: Site) -> None:
    site("guide.run")
    place = site.guide.audit_end()
    assert {found["state"] for found in site.outcomes("guide.run").values()} <= {"unchanged", "skipped"}
    assert site.guide.writes(place) == []


def test_it_is_released_at_the_end_and_after_an_interrupt(site: Site) -> None:
    place = site.guide.audit_end()
    site("eos.credentials", "--rotate")
    assert [uri.split()[0] for uri in site.guide.writes(place) if "/leases" in uri] == ["create", "delete"]
    assert held(site) is None
    with somebody(site, "deploy.build", "--again") as other:
        other.send_signal(signal.SIGINT)
        assert other.wait(30) == 130
    assert held(site) is None


def test_an_interrupt_before_the_answer_arrives_leaves_none(site: Site) -> None:
    """The server has made the Lease, and nobody here has heard of it."""
    unheard = """
from runbook.lease import Lease
asked = Lease._request
def request(*words):
    asked(*words)
    raise KeyboardInterrupt
Lease._request = request
"""
    place = site.guide.audit_end()
    done = ready.run(("eos.credentials", "--rotate", f"--build={site.name}"), site.guide.environment | site.environment, 60, unheard)
    assert done.returncode == 130, done.stderr
    assert [uri.split()[0] for uri in site.guide.writes(place)] == ["create", "delete"]
    assert held(site) is None


def test_a_killed_holder_of_this_machine_is_followed_at_once(site: Site) -> None:
    with somebody(site) as other:
        other.kill()
        other.wait()
        assert held(site) is not None
        done = site("eos.credentials", "--rotate")
        assert f":{other.pid}, who is gone" in done.stdout
    assert held(site) is None


def test_a_killed_holder_elsewhere_is_followed_when_its_time_is_up(site: Site) -> None:
    project, member = site.instance.project, site.guide.stack.member
    with somebody(site) as other:
        other.kill()
        other.wait()
    left = {"metadata": {"annotations": {lease.MACHINE: "another"}}, "spec": {"leaseDurationSeconds": 600}}
    member.patch("Lease", "guide", left, project)
    assert "last seen" in site("eos.credentials", "--rotate", code=1).stderr
    member.patch("Lease", "guide", {"spec": {"leaseDurationSeconds": 1}}, project)
    wait_until(lambda: site("eos.credentials", "--rotate", code=None).returncode == 0, "the take-over")
    site("guide.run")


def test_a_holder_that_lost_it_writes_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that slept, say: somebody else went on meanwhile, and its next write is refused."""
    monkeypatch.setattr(lease, "SECONDS", 1)
    project, member = site.instance.project, site.guide.stack.member
    cluster = Cluster(project, site.guide.stack.state.kubeconfig)
    sleeper = lease.Lease(lambda: cluster, "steps", "guide.run", lambda _: None)
    cluster.before_write = sleeper.take
    sleeper.take()
    first = held(site)["spec"]["renewTime"]
    wait_until(lambda: held(site)["spec"]["renewTime"] != first, "a sign of life")
    member.delete("Lease", "guide", project)
    with pytest.raises(lease.Held, match="took steps over"):
        wait_until(sleeper.take, "the loss to be seen")
    with pytest.raises(lease.Held):
        cluster.request("DELETE", cluster.collection("Secret") + "/redis")
    sleeper.release()
    assert member.get("Secret", "redis", project)
