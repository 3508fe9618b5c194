"""Sign-on: a registration of its own for each instance, and its secret in the project."""

import pytest

from procedures import sso
from runbook.plan import Apply, Ask


@pytest.mark.fault(3)
def test_the_way_back_is_the_one_that_allauth_serves(plan, instance):
    ask = next(value for value in plan(sso.secret, instance) if isinstance(value, Ask))
    assert ask.values["redirect_uris"] == ["https://dev-certhelper.web.cern.ch/accounts/oidc/cern/login/callback/"]


def test_the_local_way_back_has_the_routers_port(plan, local):
    ask = next(value for value in plan(sso.secret, local) if isinstance(value, Ask))
    assert ask.values["redirect_uris"] == ["https://dev-certhelper.localhost:8443/accounts/oidc/cern/login/callback/"]


def test_what_the_person_learns_becomes_the_secret(plan, instance):
    values = plan(sso.secret, instance)
    ask = next(value for value in values if isinstance(value, Ask))
    (apply,) = [value for value in values if isinstance(value, Apply)]
    assert set(apply.manifest["stringData"].values()) == set(ask.gives.values())
    assert apply.manifest["metadata"]["name"] == "certification-helper-sso"


def test_nothing_of_it_can_be_made_up(instance):
    assert not sso.client_id(instance).generated
    assert not sso.client_secret(instance).generated
