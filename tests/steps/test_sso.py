"""People sign on with a real browser: greeted by name, and told what is wrong when something is."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from procedures import sso
from runbook.clients.web import Portal
from stack.api import wait_until
from tests import browser as browsers
from tests.guide import Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

SECOND = """
from allauth.socialaccount.models import SocialApp
app = SocialApp.objects.create(provider="openid_connect", provider_id="cern", name="second", client_id="x", secret="x")
app.sites.add(2)
"""
NO_SECOND = "from allauth.socialaccount.models import SocialApp\nSocialApp.objects.all().delete()"
NOBODY = "from django.contrib.auth.models import User\nUser.objects.filter(socialaccount__isnull=False).delete()"


SITE_GONE = "from django.contrib.sites.models import Site\nSite.objects.all().delete()"
SITE_BACK = "from django.contrib.sites.models import Site\nSite.objects.create(pk=2, domain='example.com', name='example.com')"


@pytest.fixture
def visitor(site: Site, visitor: BrowserContext) -> Iterator[BrowserContext]:
    """Whoever signed on is nobody again: what a test says of accounts, it says of its own."""
    yield visitor
    django(site, NOBODY)


@pytest.fixture
def newcomer(browser: Browser) -> Iterator[BrowserContext]:
    """A second window. The router ends a connection from before a roll-out only after one more answer, from the former pod."""
    with browsers.visitor(browser) as window:
        yield window


def portal(site: Site) -> Portal:
    return Portal(site.guide.web(), site.guide.facts["portal"], site.guide.stack.state.tokens.member)


def registered(site: Site, **other: Any) -> dict[str, Any]:
    """Fill the form of the registration as the step does, or otherwise."""
    return portal(site).fill("registrations", sso.form(site.instance) | other)


def django(site: Site, lines: str) -> str:
    """Run lines in the app's own shell."""
    return site.inside(f"deployment/{site.instance.app}", "python", "manage.py", "shell", "-c", lines)


def sign_on(window: BrowserContext, site: Site, person: str) -> Page:
    """Go to the site, press its button, and say who one is."""
    page = window.new_page()
    answer = page.goto(f"{site.instance.url}/")
    assert answer and answer.status == 200, page.content()
    page.get_by_role("button", name="Sign on at CERN").click()
    page.get_by_role("button", name=person).click()
    return page


def seen(site: Site, words: str) -> None:
    """See that the step fails for this reason, and that the doctor finds the same by itself and knows the symptom."""
    assert words in site("sso.verify", code=1).stderr
    found = [json.loads(line) for line in site("guide.doctor", "--json", code=3).stdout.splitlines()]
    (standing,) = [one for one in found if one.get("step") == "sso.verify"]
    assert [detail for detail in standing["detail"] if words in detail["note"]], standing
    assert [one for one in found if one.get("command", "").startswith("invoke sso.")], found


@contextmanager
def as_was(site: Site) -> Iterator[None]:
    """Make good whatever a test did to the registration."""
    try:
        yield
    finally:
        registered(site)


def test_who_has_no_role_is_told_so_and_it_is_seen_from_here(site: Site, visitor: BrowserContext) -> None:
    site("sso.verify")
    page = sign_on(visitor, site, "Guest Example")
    assert page.locator("#name").inner_text() == "Guest Example"
    assert "nobody gave you one of the roles" in page.locator("#no-role").inner_text()
    seen(site, "1 signed on and none of them has a role of shifter")


@pytest.mark.fault(5)
def test_a_person_is_greeted_by_name_with_the_role_of_this_application(site: Site, visitor: BrowserContext) -> None:
    page = sign_on(visitor, site, "Shifter Example")
    assert page.url == f"{site.instance.url}/"
    assert page.locator("#name").inner_text() == "Shifter Example"
    assert (page.locator("#roles").inner_text(), page.locator("#no-role").count()) == ("shifter", 0)
    site("sso.verify")
    # Nobody changed the Site that Django makes, and nobody looked its number up.
    assert "example.com 2" in django(site, "from django.contrib.sites.models import Site\nfrom django.conf import settings\n"
                                           "print(*Site.objects.values_list('domain', flat=True), settings.SITE_ID)")
    page.get_by_role("button", name="Sign out").click()
    assert page.get_by_role("button", name="Sign on at CERN").is_visible()


def test_a_role_inside_another_word_is_seen(site: Site, visitor: BrowserContext) -> None:
    """Certhelper would make its members administrators."""
    sign_on(visitor, site, "Shifter Example")
    site("sso.verify")
    with as_was(site):
        django(site, "from allauth.socialaccount.models import SocialAccount\n"
                     "one = SocialAccount.objects.get(user__first_name='Shifter')\n"
                     "one.extra_data['userinfo']['cern_roles'].append('ad')\none.save()")
        seen(site, "the role ad gives rights by accident")


@pytest.mark.fault(3)
def test_a_wrong_way_back_is_refused_seen_and_mended(site: Site, visitor: BrowserContext) -> None:
    with as_was(site):
        registered(site, redirect_uris=[site.instance.url + sso.FORMER_CALLBACK])
        page = visitor.new_page()
        page.goto(f"{site.instance.url}/")
        page.get_by_role("button", name="Sign on at CERN").click()
        assert "Invalid parameter: redirect_uri" in page.locator("body").inner_text()
        seen(site, f"does not know {site.instance.sso.identifier} with the way back")
        assert site.outcomes("guide.status", code=3)["sso.register"]["state"] == "waiting"
        assert site.outcomes("sso.register")["sso.register"]["state"] == "changed"
        assert sign_on(visitor, site, "Expert Example").locator("#name").inner_text() == "Expert Example"
    assert site.outcomes("sso.register")["sso.register"]["state"] == "unchanged"


def test_another_secret_is_refused_seen_and_given_anew_while_the_site_answers(
        site: Site, visitor: BrowserContext, newcomer: BrowserContext) -> None:
    identifier = site.instance.sso.identifier
    renewed = portal(site).fill("client-secrets", {"identifier": identifier})["client_secret"]
    page = sign_on(visitor, site, "Shifter Example")
    assert "Login Failure" in page.locator("body").inner_text()
    seen(site, "the sign-on refuses the app's pair")
    said = site("sso.verify", code=1)
    assert "sso.secret --rotate" in said.stderr
    with site.visited() as answers:
        assert site.outcomes("sso.secret", "--rotate")["sso.secret"]["state"] == "changed"
        assert site.outcomes("environment.set")["environment.set"]["state"] == "changed"
    assert set(answers) == {200}
    site("sso.verify")
    assert sign_on(newcomer, site, "Shifter Example").locator("#name").inner_text() == "Shifter Example"
    assert renewed not in said.stdout + said.stderr


@pytest.mark.fault(4)
def test_a_second_provider_in_the_admin_pages_breaks_the_home_page_and_is_named(site: Site) -> None:
    django(site, SECOND)
    try:
        assert site.guide.web().request("GET", f"{site.instance.url}/")[0] == 500
        seen(site, "a second SocialApp for cern stands in the admin pages")
    finally:
        django(site, NO_SECOND)
    site("sso.verify")


@pytest.mark.parametrize(("line", "words"), [
    ("ACCOUNT_EMAIL_VERIFICATION = 'mandatory'", "ACCOUNT_EMAIL_VERIFICATION is not none"),
    ("SOCIALACCOUNT_PROVIDERS = {}", "the settings have no provider cern"),
    ("SOCIALACCOUNT_PROVIDERS['openid_connect']['APPS'][0]['settings']['server_url'] += '-of-others'",
     "the app does not send the browser to"),
    ("SOCIALACCOUNT_PROVIDERS['openid_connect']['APPS'][0]['client_id'] = 'another'", "the app does not send the browser to"),
])
def test_a_setting_of_the_app_that_breaks_the_sign_on_is_named(site: Site, line: str, words: str) -> None:
    with site.settings(line):
        seen(site, words)
    site("sso.verify")


def test_an_app_without_a_site_is_named(site: Site) -> None:
    django(site, SITE_GONE)
    try:
        seen(site, "there is no Site with the SITE_ID 2")
    finally:
        django(site, SITE_BACK)
    site("sso.verify")


def test_an_issuer_that_gives_another_name_is_seen(site: Site) -> None:
    """A token names its issuer letter by letter, so an address that answers is not enough."""
    issuer = site.instance.sso.issuer
    scheme, _, rest = issuer.partition("://")
    host, _, path = rest.partition("/")
    site.change({"local": {"sso": {"issuer": f"{scheme}://{host.upper()}/{path}"}}})
    try:
        seen(site, "gives another issuer")
    finally:
        site.change({"local": {"sso": {"issuer": "{issuer}"}}})
    site("sso.verify")


def test_a_page_that_the_app_does_not_have_is_named(site: Site) -> None:
    """The registration knows the way, the app does not."""
    with as_was(site):
        site.change({"sso": {"callback": "/accounts/elsewhere/login/callback/"}})
        try:
            registered(site)
            seen(site, "the app has no page for the way back /accounts/elsewhere/login/callback/")
        finally:
            site.change({"sso": {"callback": "/accounts/oidc/cern/login/callback/"}})


@pytest.mark.fault(3)
def test_the_way_back_is_that_of_the_branch(site: Site, tmp_path: Path) -> None:
    """A branch whose settings take `oidc` out of the address is registered without it."""
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], check=True, capture_output=True, cwd=tmp_path)

    def known() -> Any:
        token = {"Authorization": f"Bearer {site.guide.stack.state.tokens.member}"}
        answer = site.guide.web().request("GET", f"{site.guide.facts['portal']}/registrations/{site.instance.sso.identifier}", headers=token)
        return json.loads(answer[1])["redirect_uris"]

    git("clone", "--quiet", "--branch=develop", str(site.guide.stack.state.git / "example.git"), ".")
    with (tmp_path / "shiftbook" / "settings.py").open("a") as file:
        file.write('SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = ""\n')
    git("commit", "--quiet", "--all", "--message=Take oidc out of the address")
    git("push", "--quiet", "--force", "origin", "HEAD:refs/heads/without-oidc")
    assert site.outcomes("sso.register")["sso.register"]["state"] == "unchanged"
    with as_was(site):
        site.change({"local": {"source": {"branch": "without-oidc"}}})
        try:
            assert site.outcomes("sso.register")["sso.register"]["state"] == "changed"
            assert known() == [site.instance.url + sso.FORMER_CALLBACK]
        finally:
            site.change({"local": {"source": {"branch": None}}})
    assert known() == [sso.way_back(site.instance)]


def test_the_platforms_own_application_serves_without_a_form(
        site: Site, visitor: BrowserContext, newcomer: BrowserContext) -> None:
    """By an OidcReturnURI, there and back."""
    site.change({"sso": {"way": "return-uri"}})
    try:
        first = site.outcomes("guide.run")
        assert (first["sso.register"]["state"], first["environment.set"]["state"]) == ("changed", "changed")
        assert first["sso.secret"]["state"] == "skipped"
        assert {found["state"] for found in site.outcomes("guide.run").values()} <= {"unchanged", "skipped"}
        assert site.outcomes("sso.register", "--force")["sso.register"]["state"] == "unchanged"
        portal(site).fill("roles", {"identifier": sso.application(site.instance), "roles": list(sso.ROLES)})
        page = sign_on(visitor, site, "Shifter Example")
        assert (page.locator("#name").inner_text(), page.locator("#roles").inner_text()) == ("Shifter Example", "shifter")
        site("sso.verify")
        # What a person changes in the platform's Secret is put back.
        api, place = site.guide.stack.api, (sso.MANAGED, site.instance.project)
        before = api.get("Secret", *place)
        edited = {"data": {"clientSecret": base64.b64encode(b"of-a-person").decode()}}
        changed = site.guide.stack.member.patch("Secret", sso.MANAGED, edited, site.instance.project)
        assert changed["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]
        wait_until(lambda: api.get("Secret", *place)["data"] == before["data"], "the platform to put its Secret back")
        site("sso.register", "--undo", "--yes")
        assert site.guide.stack.api.get("OidcReturnURI", f"{site.instance.app}-return-uri", site.instance.project) is None
        assert site.outcomes("guide.status", code=3)["sso.register"]["state"] != "done"
    finally:
        site.change({"sso": {"way": "portal"}})
        site("guide.run")
    assert sign_on(newcomer, site, "Shifter Example").locator("#name").inner_text() == "Shifter Example"
    site("sso.verify")
