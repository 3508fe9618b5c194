"""Sign-on: a registration of its own for each instance, by one of two ways, and its pair in the project."""

import ast
import base64
import dataclasses

import pytest

from procedures import environment, sso
from runbook.errors import WrongUse
from runbook.instance import load
from runbook.observed import File, Source
from runbook.plan import Accepts, Apply, Ask, Inside, Look, Object, WaitFor


@pytest.fixture
def managed(instance):
    return dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, way="return-uri"))


def only(values, kind):
    (found,) = [value for value in values if isinstance(value, kind)]
    return found


@pytest.mark.fault(3)
def test_the_way_back_is_the_one_that_allauth_serves(plan, instance):
    ask = only(plan(sso.register, instance), Ask)
    assert ask.values["redirect_uris"] == ["https://dev-certhelper.web.cern.ch/accounts/oidc/cern/login/callback/"]


@pytest.mark.fault(3)
def test_the_way_back_of_the_former_guide_is_refused_with_the_reason(plan, instance, unmet):
    former = dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, callback="/accounts/cern/login/callback/"))
    assert unmet(plan(sso.register, former)) == ["/accounts/cern/login/callback/ is answered with 404 since django-allauth 0.60"]


def branch(pin, settings="", error=""):
    return {"source": Source("c", {"requirements.txt": File(pin), "app/settings.py": File(settings)}, error)}


@pytest.mark.fault(3)
@pytest.mark.parametrize(("known", "served"), [
    (branch("django-allauth==64.0.0"), "/accounts/oidc/cern/login/callback/"),
    (branch("Django==5\ndjango-allauth[socialaccount]==65.3.1 \\\n  --hash=x"), "/accounts/oidc/cern/login/callback/"),
    (branch('[[package]]\nname = "django-allauth"\nversion = "0.60.0"'), "/accounts/oidc/cern/login/callback/"),
    (branch("django-allauth==0.59.2"), "/accounts/cern/login/callback/"),
    (branch("django-allauth==64.0.0", 'SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = ""  # as before'), "/accounts/cern/login/callback/"),
    (branch("django-allauth==64.0.0", "SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = 'sso'"), "/accounts/sso/cern/login/callback/"),
    # What does not tell leaves the default: an open version, a prefix from elsewhere, a branch that cannot be read.
    (branch("django-allauth>=0.50"), "/accounts/oidc/cern/login/callback/"),
    (branch("django-allauth==64.0.0", "SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = config('X')"), "/accounts/oidc/cern/login/callback/"),
    (branch("django-allauth==0.59.2", error="no such branch"), "/accounts/oidc/cern/login/callback/"),
])
def test_the_way_back_follows_from_the_branch(plan, instance, unmet, known, served):
    values = plan(sso.register, instance, known)
    assert only(values, Ask).values["redirect_uris"] == [f"https://dev-certhelper.web.cern.ch{served}"]
    assert unmet(values) == []
    (look,) = [value for value in plan(sso.verify, instance, known) if isinstance(value, Look) and value.url == instance.url]
    assert look.path == served


def test_a_way_back_that_the_branch_does_not_serve_is_refused(plan, instance, unmet):
    written = dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, callback="/accounts/x/cern/login/callback/"))
    assert unmet(plan(sso.register, written, branch("django-allauth==64.0.0"))) == [
        "the branch develop serves /accounts/oidc/cern/login/callback/, and not /accounts/x/cern/login/callback/"]
    assert unmet(plan(sso.register, written, branch("django-allauth>=64"))) == []


def test_the_local_way_back_has_the_routers_port(plan, local):
    ask = only(plan(sso.register, local), Ask)
    assert ask.values["redirect_uris"] == ["https://dev-certhelper.localhost:8443/accounts/oidc/cern/login/callback/"]


def test_the_roles_are_exactly_those_that_certhelper_knows(plan, instance):
    assert only(plan(sso.register, instance), Ask).values["roles"] == ["shifter", "shiftleader", "expert", "admin"]


def test_a_registration_is_done_when_the_sign_on_knows_client_and_way_back(plan, instance):
    until = only(plan(sso.register, instance), Ask).until
    assert isinstance(until, Accepts)
    assert until.url == ("https://auth.cern.ch/auth/realms/cern/protocol/openid-connect/auth?client_id=certhelper-dev&redirect_uri="
                         "https%3A%2F%2Fdev-certhelper.web.cern.ch%2Faccounts%2Foidc%2Fcern%2Flogin%2Fcallback%2F"
                         "&response_type=code&scope=openid")


@pytest.mark.fault(39)
def test_an_identifier_belongs_to_one_instance(plan, instance, unmet, tmp_path):
    other = dataclasses.replace(instance, name="training", path=tmp_path / "training.toml")
    found = unmet(plan(sso.register, instance, {"other instances": [other]}))
    assert found == ["certhelper-dev in dev.toml is also the identifier of training.toml"]
    apart = dataclasses.replace(other, sso=dataclasses.replace(other.sso, identifier="certhelper-training"))
    assert unmet(plan(sso.register, instance, {"other instances": [apart]})) == []


@pytest.mark.parametrize(("name", "said"), [("tkdqmdoc", "the owner of the site"), ("jdoe", "you")])
def test_an_identifier_is_no_account(plan, instance, unmet, name, said):
    named = dataclasses.replace(instance, sso=dataclasses.replace(instance.sso, identifier=name))
    assert unmet(plan(sso.register, named, {"user": "jdoe"})) == [f"{name} names an account: {said}"]


@pytest.mark.parametrize("wrong", ["Certhelper", "1certhelper", "ce", "certhelper.dev", "c" * 33, "cert helper", ""])
def test_an_identifier_that_the_portal_would_refuse(tmp_path, instance, wrong):
    path = tmp_path / "dev.toml"
    path.write_text(instance.path.read_text().replace('"certhelper-dev"', f'"{wrong}"'))
    with pytest.raises(WrongUse, match=r"dev.toml:\d+: sso.identifier must begin with a lower case letter and have 3 to 32 of"):
        load(path)


@pytest.mark.parametrize("right", ["abc", "a-1", "c" * 32, "a_b"])
def test_an_identifier_that_the_portal_takes(tmp_path, instance, right):
    path = tmp_path / "dev.toml"
    path.write_text(instance.path.read_text().replace('"certhelper-dev"', f'"{right}"'))
    assert load(path).sso.identifier == right


# The pair


def test_what_the_person_learns_becomes_the_secret(plan, instance):
    values = plan(sso.secret, instance)
    manifest = only(values, Apply).manifest
    assert set(manifest["stringData"].values()) == set(only(values, Ask).gives.values())
    assert manifest["metadata"]["name"] == "certification-helper-sso"
    assert manifest["metadata"]["annotations"] == {"guide/registration": "certhelper-dev"}


def test_nothing_of_it_can_be_made_up(instance):
    assert not sso.client_id(instance).generated
    assert not sso.client_secret(instance).generated


def kept(identifier):
    data = {"CERN_SSO_REGISTRATION_CLIENT_ID": base64.b64encode(identifier.encode()).decode()}
    return {Object("Secret", "certification-helper-sso"): {"data": data}}


@pytest.mark.fault(39)
def test_the_pair_of_another_instance_is_refused(plan, instance, unmet, tmp_path):
    other = dataclasses.replace(instance, name="training", path=tmp_path / "training.toml",
                                sso=dataclasses.replace(instance.sso, identifier="certhelper-training"))
    assert unmet(plan(sso.secret, instance, kept("certhelper-dev"))) == []
    assert unmet(plan(sso.secret, instance, kept("certhelper-training") | {"other instances": [other]})) == [
        "the Secret certification-helper-sso has the Client ID certhelper-training, which is the registration of training.toml, "
        "and not certhelper-dev"]


def test_a_client_id_that_was_set_by_hand_is_compared_too(plan, instance, unmet):
    former = {Object("BuildConfig", instance.app): {"spec": {"strategy": {"sourceStrategy": {"env": [
        {"name": "CERN_SSO_REGISTRATION_CLIENT_ID", "value": "certhelper"}]}}}}}
    assert unmet(plan(sso.secret, instance, former)) == ["the build config has the Client ID certhelper, and not certhelper-dev"]


def test_a_client_id_that_somebody_gives_must_be_the_instances_own(instance):
    assert sso.client_id(instance).must == "certhelper-dev"


# The platform's own application


def test_the_scriptable_way_asks_nobody(plan, managed):
    values = plan(sso.register, managed)
    assert not [value for value in values if isinstance(value, Ask)]
    assert only(values, Apply).manifest == {
        "apiVersion": "webservices.cern.ch/v1alpha1", "kind": "OidcReturnURI",
        "metadata": {"name": "certification-helper-return-uri"},
        "spec": {"redirectURI": "https://dev-certhelper.web.cern.ch/accounts/oidc/cern/login/callback/"}}
    assert only(values, WaitFor).object == Object("Secret", "oidc-client-secret")
    assert not sso.secret.wanted(managed)


def test_the_variables_then_refer_to_the_platforms_secret_key_by_key(plan, managed, instance):
    def references(one):
        part = [value.manifest for value in plan(environment.set, one) if isinstance(value, Apply) and value.part
                and value.manifest["kind"] == "Deployment"]
        env = part[0]["spec"]["template"]["spec"]["containers"][0]["env"]
        return {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in env if entry["name"].startswith("CERN_SSO_REG")}

    assert references(managed) == {
        "CERN_SSO_REGISTRATION_CLIENT_ID": {"name": "oidc-client-secret", "key": "clientID"},
        "CERN_SSO_REGISTRATION_CLIENT_SECRET": {"name": "oidc-client-secret", "key": "clientSecret"}}
    assert references(instance)["CERN_SSO_REGISTRATION_CLIENT_ID"] == {
        "name": "certification-helper-sso", "key": "CERN_SSO_REGISTRATION_CLIENT_ID"}


def test_the_application_is_the_one_that_the_platform_names(managed, instance):
    assert sso.application(instance) == "certhelper-dev"
    assert sso.application(managed) == "webframeworks-paas-dev-certhelper"


# Looking


@pytest.mark.fault(4)
def test_the_app_itself_is_asked_without_changing_anything(plan, instance):
    look = only(plan(sso.verify, instance), Inside)
    assert not look.unless
    script = look.command[-1]
    ast.parse(script)
    assert "client = 'certhelper-dev'" in script
    assert "login = '/accounts/oidc/cern/login/'" in script
    assert "provider = 'cern'" in script
    assert not [word for word in ("save(", "create(", "delete(", "update(") if word in script]


def test_the_issuer_and_the_way_back_are_looked_at(plan, instance):
    looks = [value.url + value.path for value in plan(sso.verify, instance) if isinstance(value, Look)]
    assert looks == ["https://auth.cern.ch/auth/realms/cern/.well-known/openid-configuration", sso.authorization(instance),
                     "https://dev-certhelper.web.cern.ch/accounts/oidc/cern/login/callback/"]
