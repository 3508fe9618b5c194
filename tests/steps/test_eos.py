"""EOS on the stack, end to end: mounted by one command, waited for, refused with a reason, taken back."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from procedures import eos as procedure
from runbook.clients.web import Portal
from runbook.plan import rolled_out
from stack import eos as stand_in
from stack.api import ApiError, wait_until
from stack.eos import SIDECAR, WELCOME
from tests.guide import Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router", "eos")

PAGE = f"/eos/{WELCOME}"
PATH = "/eos/project/t/tkdqmdoc"
PATIENCE = 10


def project(site: Site) -> str:
    return site.instance.project


def page(site: Site, path: str = PAGE) -> tuple[int, str]:
    return site.guide.web().request("GET", f"{site.instance.url}{path}")


def pods(site: Site) -> list[dict[str, Any]]:
    """Return the app's pods that are not on their way out."""
    return [pod for pod in site.guide.stack.api.list("Pod", project(site), labelSelector=f"app={site.instance.app}")
            if "deletionTimestamp" not in pod["metadata"]]


def claim(site: Site) -> dict[str, Any] | None:
    return site.guide.stack.api.get("PersistentVolumeClaim", "eos-volume", project(site))


def template(site: Site) -> dict[str, Any]:
    return site.guide.stack.api.get("Deployment", site.instance.app, project(site))["spec"]["template"]


def state(site: Site, step: str = "eos.mount") -> str:
    return str(site.outcomes("guide.status", code=None)[step]["state"])


def settle(site: Site) -> None:
    """Wait until one pod runs, the newest, and shows EOS: an app that did not run well is not waited for by the step."""
    def settled() -> bool:
        found = site.guide.stack.api.get("Deployment", site.instance.app, project(site))
        return not rolled_out.test(found) and len(pods(site)) == 1 and page(site)[0] == 200

    wait_until(settled, "the app to be well again", 90, pause=0.3)


@pytest.fixture
def behaves(site: Site) -> Iterator[Any]:
    """Return a function that makes EOS behave badly; afterwards it is well, and every pod sees it."""
    def make(**how: Any) -> None:
        site.guide.stack.state.write_json("eos.json", how)

    yield make
    site.guide.stack.state.path("eos.json").unlink(missing_ok=True)
    # As patient as the pods that serve: what did not roll out is then gone without another roll-out.
    (probe,) = [pod["spec"]["containers"][0]["startupProbe"] for pod in pods(site)
                if all(each["ready"] for each in pod["status"]["containerStatuses"])]
    site.change({"eos": {"patience": probe["failureThreshold"] * probe["periodSeconds"]}})
    site("eos.mount")
    settle(site)


def test_the_app_shows_a_file_from_eos(site: Site) -> None:
    wait_until(lambda: page(site) == (200, "This file lies in EOS.\n"), "the file on the page")
    (pod,) = pods(site)
    assert [each["name"] for each in pod["spec"]["containers"]] == [site.instance.app, SIDECAR]
    assert state(site, "eos.verify") == "done"


def test_a_second_run_changes_nothing(site: Site) -> None:
    site("eos.mount")
    place = site.guide.audit_end()
    for step in ("eos.credentials", "eos.mount", "eos.verify"):
        assert site.outcomes(step)[step]["state"] == "unchanged"
    assert site.guide.writes(place) == []


def test_the_password_is_in_the_secret_and_nowhere_else(site: Site) -> None:
    password = stand_in.accounts(site.guide.stack.state)[procedure.account(site.instance)]
    kept = site.guide.stack.api.get("Secret", "eos-credentials", project(site))["data"]
    assert {base64.b64decode(kept[key]).decode() for key in ("keytab-pwd", "KEYTAB_PWD")} == {password}
    shown = site("eos.credentials", "--dry", "--json", code=None)
    assert password not in shown.stdout + shown.stderr
    assert password not in str(template(site)) + str(pods(site))
    for log in site.guide.stack.state.logs.rglob("*.log"):
        assert password not in log.read_text(errors="replace"), log


def test_a_change_by_hand_is_named_and_repaired(site: Site) -> None:
    api = site.guide.stack.member
    api.patch("Deployment", site.instance.app, {"spec": {"template": {"metadata": {"annotations": {
        procedure.ANNOTATION: "other"}}}}}, project(site))
    found = site.outcomes("guide.status", code=3)["eos.mount"]
    assert found["state"] == "drifted"
    assert any(procedure.ANNOTATION in field["path"] for detail in found["detail"] for field in detail["fields"])
    assert site.outcomes("eos.mount")["eos.mount"]["state"] == "changed"
    assert template(site)["metadata"]["annotations"][procedure.ANNOTATION] == "eos-credentials"


@pytest.mark.fault(19)
def test_a_late_eos_is_waited_for(site: Site, behaves: Any) -> None:
    behaves(late=8)
    site.change({"eos": {"patience": 100}})
    assert site.outcomes("eos.mount")["eos.mount"]["state"] == "changed"
    (pod,) = pods(site)
    events = site.guide.stack.api.list("Event", project(site), fieldSelector=f"involvedObject.name={pod['metadata']['name']}")
    assert any("Startup probe failed: stat:" in event["message"] for event in events), "EOS was not late"
    assert not any(each["restartCount"] for each in pod["status"]["containerStatuses"])
    assert site.outcomes("eos.verify")["eos.verify"]["state"] == "unchanged"


def test_an_absent_eos_ends_at_the_deadline_and_the_old_pod_serves(site: Site, behaves: Any) -> None:
    before = {pod["metadata"]["name"] for pod in pods(site)}
    behaves(absent=True)
    site.change({"eos": {"patience": PATIENCE}})
    done = site("eos.mount", code=1)
    assert "Startup probe failed: stat:" in done.stderr and f"'{PATH}': No such file or directory" in done.stderr
    assert "EOS did not show the path in time" in done.stderr and "docs/eos.md:" in done.stderr
    assert before & {pod["metadata"]["name"] for pod in pods(site)}
    assert page(site, "/")[0] == 200


def test_a_slow_eos_is_waited_for_and_one_that_hangs_is_said(site: Site, behaves: Any) -> None:
    behaves(slow=3)
    site.change({"eos": {"patience": 110}})
    assert site.outcomes("eos.mount")["eos.mount"]["state"] == "changed"
    assert site.outcomes("eos.verify")["eos.verify"]["state"] == "unchanged"
    behaves(slow=40)
    site.change({"eos": {"patience": 1}})
    hangs = site("eos.verify", code=1)
    assert "no answer within 30 s" in hangs.stderr and "EOS is slow or gone" in hangs.stderr
    assert page(site, "/")[0] == 200
    behaves(slow=15)  # longer than the probe waits for one answer
    before = {pod["metadata"]["name"] for pod in pods(site)}
    site.change({"eos": {"patience": PATIENCE}})
    refused = site("eos.mount", code=1)
    assert "Startup probe failed" in refused.stderr and "timed out" in refused.stderr and "EOS hangs" in refused.stderr
    assert before & {pod["metadata"]["name"] for pod in pods(site)}
    assert page(site, "/")[0] == 200


def test_an_eos_that_goes_is_noticed_by_the_verification(site: Site, behaves: Any) -> None:
    site.change({"eos": {"patience": 2}})
    with site.visited(PAGE) as answers:  # Visitors notice, so that others who notice nothing mean something.
        behaves(absent=True)
        wait_until(lambda: 404 in answers, "EOS to go")
    failed = site("eos.verify", code=1)
    assert "No such file or directory" in failed.stderr
    verify = site.outcomes("guide.status", code=3)["eos.verify"]
    assert verify["state"] == "waiting"
    assert [each["what"] in each["note"] for each in verify["detail"]] == [False]
    assert page(site, "/")[0] == 200, "nothing kills an app whose EOS stalls"


def test_a_wrong_password_is_told_from_a_late_eos(site: Site, behaves: Any) -> None:
    site.change({"eos": {"patience": PATIENCE}})
    site("eos.credentials", "--rotate", RUNBOOK_EOS_PASSWORD="wrong-canary")
    done = site("eos.mount", code=1)
    assert f"'{PATH}': No such file or directory" in done.stderr and "eos.credentials --rotate" in done.stderr
    assert "wrong-canary" not in done.stdout + done.stderr
    newest = max(pods(site), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))["metadata"]["name"]
    logs = site.guide.stack.state.logs.glob(f"pods/{project(site)}_{newest}_*/{SIDECAR}/*.log")
    assert any("Preauthentication failed" in log.read_text() for log in logs)
    assert page(site)[0] == 200, "the old pod does not serve any more"
    site("eos.credentials", "--rotate")
    assert site.outcomes("eos.mount")["eos.mount"]["state"] == "changed"
    settle(site)


def test_a_changed_password_comes_to_the_pods_without_a_break(site: Site) -> None:
    guide = site.guide
    state_ = guide.stack.state
    portal = Portal(guide.web(), f"https://portal.localhost:{state_.ports.https}", state_.tokens.member)
    name = procedure.account(site.instance)
    settle(site)
    canary = f"canary-{secrets.token_hex(4)}"
    before, was = {pod["metadata"]["name"] for pod in pods(site)}, stand_in.accounts(state_)[name]
    with site.visited(PAGE) as answers:
        portal.fill("accounts", {"name": name, "password": canary})
        site("eos.credentials", "--rotate")
        kept = guide.stack.api.get("Secret", "eos-credentials", project(site))["data"]["KEYTAB_PWD"]
        assert base64.b64decode(kept).decode() == canary
        assert state(site) == "drifted", "nobody sees that the pods run with the former password"
        assert site.outcomes("eos.mount")["eos.mount"]["state"] == "changed"
        assert not before & {pod["metadata"]["name"] for pod in pods(site)}
    assert len(answers) > 10 and set(answers) == {200}
    portal.fill("accounts", {"name": name, "password": was})
    site("eos.credentials", "--rotate")
    site("eos.mount")


def test_a_type_that_cannot_be_is_said(site: Site) -> None:
    site.change({"eos": {"secret_type": "eos.cern.ch/credentials"}})
    done = site("eos.credentials", code=1)
    assert "it is of the type Opaque, and that cannot be changed" in done.stderr
    site.change({"eos": {"secret_type": None}})


def test_a_class_that_is_not_offered_is_said(site: Site) -> None:
    site.change({"eos": {"storage_class": "eoss"}})
    done = site("eos.mount", code=1)
    assert "the cluster offers cephfs, cephfs-no-backup, eos, standard" in done.stderr
    site.change({"eos": {"storage_class": None}})


def test_unmounting_gives_everything_back_and_keeps_the_files(site: Site) -> None:
    site("eos.unmount")
    assert claim(site) is None
    assert procedure.ANNOTATION not in template(site)["metadata"].get("annotations", {})
    assert "startupProbe" not in template(site)["spec"]["containers"][0]
    wait_until(lambda: page(site)[0] == 404, "the app without EOS")
    (pod,) = pods(site)
    assert [each["name"] for each in pod["spec"]["containers"]] == [site.instance.app]
    assert (site.guide.stack.state.eos / WELCOME).exists()
    assert state(site) == "missing"
    assert site.outcomes("eos.unmount")["eos.unmount"]["state"] == "unchanged"
    done = site("eos.verify", code=1)
    assert "eos.verify needs eos.mount first (PersistentVolumeClaim eos-volume: is not there)" in done.stderr and "--to=eos.verify" in done.stderr
    assert site.outcomes("eos.mount")["eos.mount"]["state"] == "changed"
    wait_until(lambda: page(site)[0] == 200, "the app with EOS")  # rolled out is not yet known to the router


@pytest.mark.fault(23)
def test_who_uses_a_claim_is_named_before_it_goes(site: Site) -> None:
    site.guide.stack.member.create({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "holder", "namespace": project(site)},
        "spec": {"terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "eos-volume"}}],
                 "containers": [{"name": "c", "image": "quay.io/sclorg/python-312-c9s:latest", "command": ["sleep", "600"],
                                 "volumeMounts": [{"name": "v", "mountPath": "/eos"}]}]}})
    done = site("eos.unmount", code=1)
    assert "is used by Pod holder" in done.stderr and "oc delete pod holder" in done.stderr
    assert "deletionTimestamp" not in claim(site)["metadata"]
    # Somebody deletes the claim all the same: it hangs, and the next mount says so.
    site.guide.stack.member.delete("PersistentVolumeClaim", "eos-volume", project(site))
    done = site("eos.mount", code=1)
    assert "hangs in Terminating" in done.stderr and "eos.unmount" in done.stderr
    site.guide.stack.member.delete("Pod", "holder", project(site))
    site("eos.unmount")
    assert claim(site) is None
    site("eos.mount")
    wait_until(lambda: page(site)[0] == 200, "the app with EOS")  # rolled out is not yet known to the router


@pytest.mark.fault(23)
def test_a_finalizer_goes_by_force_only(site: Site) -> None:
    site.guide.stack.member.patch("PersistentVolumeClaim", "eos-volume", {"metadata": {"finalizers": [
        "kubernetes.io/pvc-protection", "example.org/hold"]}}, project(site))
    done = site("eos.unmount", code=1)
    assert "hangs in Terminating" in done.stderr and "example.org/hold" in done.stderr and "may be lost" in done.stderr
    assert "deletionTimestamp" in claim(site)["metadata"]
    done = site("eos.unmount", "--force")
    assert "example.org/hold" in done.stdout
    wait_until(lambda: claim(site) is None, "the claim to go")
    with pytest.raises(ApiError):
        site.guide.stack.member.request("GET", f"/api/v1/namespaces/{project(site)}/persistentvolumeclaims/eos-volume")
    site("eos.mount")
    wait_until(lambda: page(site)[0] == 200, "the app with EOS")  # rolled out is not yet known to the router
