"""A real nginx before the app: pages, static files, websockets and sign-on go through it, and no request is lost on the way."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from procedures import app, nginx
from stack.api import wait_until
from tests.guide import Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def proxied(site: Site) -> Iterator[Site]:
    """The site with nginx before it, added while somebody visits it all the time."""
    site.change({"nginx": {"wanted": True}})
    site("deploy.build")  # what the tests before this one changed may still be rolling out
    with site.visited() as answers:
        assert site.outcomes("nginx.add")["nginx.add"]["state"] == "changed"
    assert set(answers) == {200}
    yield site
    site("nginx.remove", "--yes")
    site.change({"nginx": None})


def leads_to(site: Site) -> str:
    instance = site.instance
    return str(site.guide.stack.api.get("Route", instance.app, instance.project)["spec"]["to"]["name"])


@pytest.mark.fault(16, 17)
def test_the_site_is_served_through_nginx(proxied: Site) -> None:
    instance, web = proxied.instance, proxied.guide.web()
    assert leads_to(proxied) == app.proxy(instance)
    assert web.request("GET", f"{instance.url}/")[0] == 200
    assert web.request("GET", instance.url + instance.deploy.static)[0] == 200
    assert "hello" in web.echo(instance.url + instance.deploy.websocket, "hello")


def test_the_second_run_changes_nothing(proxied: Site) -> None:
    assert proxied.outcomes("nginx.add")["nginx.add"]["state"] == "unchanged"
    assert {found["state"] for found in proxied.outcomes("guide.status").values()} <= {"done", "not wanted"}


def sign_on(site: Site) -> tuple[int, str]:
    """Press the sign-on button; return status and the address to which the browser is sent."""
    instance, state = site.instance, site.guide.stack.state
    connection = http.client.HTTPSConnection("127.0.0.1", instance.port, timeout=60)
    context = ssl.create_default_context(cafile=str(state.ca))
    connection.sock = context.wrap_socket(_opened(instance.port), server_hostname=instance.host)
    host = {"Host": instance.url.removeprefix("https://")}
    connection.request("GET", "/accounts/oidc/cern/login/", headers=host)
    page = connection.getresponse()
    cookie = str(page.headers["Set-Cookie"]).partition(";")[0]
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.read().decode())
    assert token
    connection.request("POST", "/accounts/oidc/cern/login/", urlencode({"csrfmiddlewaretoken": token[1]}), host | {
        "Cookie": cookie, "Origin": instance.url, "Content-Type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    return answer.status, str(answer.headers.get("Location", ""))


def _opened(port: int) -> object:
    import socket

    return socket.create_connection(("127.0.0.1", port), timeout=60)


def test_the_app_hears_which_scheme_the_browser_spoke(proxied: Site) -> None:
    status, location = sign_on(proxied)
    assert status == 302
    assert urlencode({"redirect_uri": proxied.instance.url + proxied.instance.sso.callback}) in location


def test_a_configuration_changed_by_hand_breaks_what_is_looked_at_and_is_repaired(proxied: Site) -> None:
    instance, member = proxied.instance, proxied.guide.stack.member
    name = app.proxy(instance)
    broken = re.sub(r"proxy_set_header (Upgrade|Connection) .*;\n", "", nginx.configuration(instance))
    member.patch("ConfigMap", name, {"data": {"nginx.conf": broken}}, instance.project, manager="kubectl-edit", content=MERGE)
    # A pod reads it at its start.
    before = pods(proxied)
    for pod in before:
        member.delete("Pod", pod, instance.project)
    wait_until(lambda: pods(proxied) and not pods(proxied) & before, "another pod of nginx")
    status = proxied.outcomes("guide.status", code=3)
    assert status["nginx.add"]["state"] == "drifted"
    assert any("nginx.conf" in field["path"] and field["manager"] == "kubectl-edit"
               for difference in status["nginx.add"]["detail"] for field in difference["fields"])
    assert "websocket" in str(status["nginx.add"]["detail"])
    assert proxied.outcomes("nginx.add")["nginx.add"]["state"] == "changed"
    assert "hello" in proxied.guide.web().echo(instance.url + instance.deploy.websocket, "hello")


def pods(site: Site) -> set[str]:
    """Return the ready pods of nginx."""
    name = app.proxy(site.instance)
    return {pod["metadata"]["name"] for pod in site.guide.stack.api.list("Pod", site.instance.project)
            if pod["metadata"]["labels"].get("app") == name
            and all(status["ready"] for status in pod.get("status", {}).get("containerStatuses", [{"ready": False}]))}


def test_a_version_that_is_not_offered_is_named(proxied: Site) -> None:
    proxied.change({"nginx": {"version": "1.8"}})
    try:
        assert "the image stream nginx has 1.22-ubi8" in proxied("nginx.add", code=1).stderr
    finally:
        proxied.change({"nginx": {"version": "1.26-ubi9"}})


def test_it_is_removed_without_a_lost_request(proxied: Site) -> None:
    instance = proxied.instance
    with proxied.visited() as answers:
        proxied("nginx.remove", "--yes")
    assert set(answers) == {200}
    assert leads_to(proxied) == instance.app
    left = [kind for kind in ("ConfigMap", "Deployment", "Service")
            if any(found["metadata"]["name"] == app.proxy(instance) for found in proxied.guide.stack.api.list(kind, instance.project))]
    assert left == []
