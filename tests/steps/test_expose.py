"""From outside CERN the site answers when it is exposed, and only then."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from procedures import expose, prerequisites
from runbook.clients.web import Web
from runbook.errors import Unreachable
from stack.api import wait_until
from tests.guide import Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router", "addresses")


@pytest.fixture(scope="module")
def closed(site: Site) -> Iterator[Site]:
    yield site
    site("expose.close", "--yes")
    site.change({"expose": None, "site": {"category": "Official"}})


def from_outside(site: Site) -> int:
    """Return what a visitor outside CERN gets; 0 for no answer at all."""
    return answered(site, Web(site.guide.stack.state.ca, site.guide.facts["outside_port"]))


def answered(site: Site, web: Web) -> int:
    try:
        return web.request("GET", f"{site.instance.url}/")[0]
    except Unreachable:
        return 0


def networks(site: Site) -> str | None:
    route = site.guide.stack.api.get("Route", site.instance.app, site.instance.project)
    found: str | None = route["metadata"]["annotations"].get(expose.WHITELIST)
    return found


def default(site: Site) -> str:
    project = site.guide.stack.api.get("Namespace", site.instance.project)
    found: str = project["metadata"]["annotations"][expose.DEFAULT]
    return found


def managed(site: Site) -> str:
    """Return the fields that the step manages, as the server writes them."""
    route = site.guide.stack.api.get("Route", site.instance.app, site.instance.project)
    return json.dumps([entry["fieldsV1"] for entry in route["metadata"]["managedFields"] if entry["manager"] == "guide/expose.open"])


def annotate(site: Site, kind: str, name: str, key: str, value: str | None) -> None:
    """Set or take off an annotation, as the platform's administrator."""
    namespace = None if kind == "Namespace" else site.instance.project
    site.guide.stack.api.patch(kind, name, {"metadata": {"annotations": {key: value}}}, namespace)


@pytest.mark.fault(38)
def test_outside_is_refused_before_and_answered_after(closed: Site) -> None:
    assert from_outside(closed) == 0
    assert closed.guide.web().request("GET", f"{closed.instance.url}/")[0] == 200
    closed("expose.verify")
    closed.change({"expose": {"internet": True}})
    assert "expose.open" in closed("expose.verify", code=1).stderr
    assert closed.outcomes("expose.open")["expose.open"]["state"] == "changed"
    assert networks(closed) == ""
    wait_until(lambda: from_outside(closed) == 200, "an answer outside")
    closed("expose.verify")
    assert closed.outcomes("expose.open")["expose.open"]["state"] == "unchanged"
    assert closed.outcomes("app.create")["app.create"]["state"] == "unchanged"


def test_a_list_put_back_by_hand_is_seen(closed: Site) -> None:
    closed.guide.stack.member.patch("Route", closed.instance.app, {"metadata": {"annotations": {expose.WHITELIST: "10.0.0.0/8"}}},
                                    closed.instance.project, manager="kubectl-annotate", content="application/merge-patch+json")
    assert closed.outcomes("guide.status", code=3)["expose.open"]["state"] == "drifted"
    assert "its list of networks is 10.0.0.0/8" in closed("expose.verify", code=1).stderr
    closed("expose.open")
    wait_until(lambda: from_outside(closed) == 200, "an answer outside")


def test_open_although_the_setting_says_otherwise_is_seen_and_closed(closed: Site) -> None:
    closed.change({"expose": {"internet": False}})
    assert "everybody may come" in closed("expose.verify", code=1).stderr
    assert closed.outcomes("expose.close", "--yes")["expose.close"]["state"] == "changed"
    assert networks(closed) == default(closed)
    assert closed.outcomes("expose.close", "--yes")["expose.close"]["state"] == "unchanged"
    # The step wrote it: a list that the platform filled in would have no manager.
    assert expose.WHITELIST in managed(closed)
    wait_until(lambda: from_outside(closed) == 0, "no answer outside")
    closed("expose.verify")


def test_a_list_that_nobody_fills_in_again_is_seen_and_put_there(closed: Site) -> None:
    """A platform that leaves a Route without a list as it is: what the step must not rely on."""
    api, project = closed.guide.stack.api, closed.instance.project
    before = default(closed)
    annotate(closed, "Namespace", project, expose.DEFAULT, None)
    try:
        annotate(closed, "Route", closed.instance.app, expose.WHITELIST, None)
        assert networks(closed) is None
        assert "there is no list of networks" in closed("expose.verify", code=1).stderr
        closed("expose.close", "--yes")
        assert networks(closed) == prerequisites.NETWORKS
        wait_until(lambda: from_outside(closed) == 0, "no answer outside")
    finally:
        annotate(closed, "Namespace", project, expose.DEFAULT, before)
    closed("expose.close", "--yes")
    assert networks(closed) == before == api.get("Namespace", project)["metadata"]["annotations"][expose.DEFAULT]
    wait_until(lambda: answered(closed, closed.guide.web()) == 200, "an answer inside")
    closed("expose.verify")


def test_a_test_site_is_not_exposed(closed: Site) -> None:
    closed.change({"expose": {"internet": True}, "site": {"category": "Test"}})
    assert "sites of the category Test cannot be exposed" in closed("expose.open", code=1).stderr
    assert from_outside(closed) == 0
    closed.change({"expose": {"internet": False}, "site": {"category": "Official"}})
