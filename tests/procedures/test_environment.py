"""The environment: one table, references for what is secret, and the code's own word on what it needs."""

import dataclasses

import pytest

from procedures import database, environment, redis, source, sso
from runbook.observed import File, Source
from runbook.plan import Apply, Credential, Former, Object, Require, WaitFor

PLAIN = {"DJANGO_ALLOWED_HOSTS": "dev-certhelper.web.cern.ch", "CSRF_TRUSTED_ORIGINS": "https://dev-certhelper.web.cern.ch",
         "DJANGO_DEBUG": "False", "PGSSLMODE": "require", "REDIS_HOST": "redis"}
DEPLOYMENT = Object("Deployment", "certification-helper")


def env(values, named):
    (container,) = named(values, "Deployment")["spec"]["template"]["spec"]["containers"]
    return container["env"]


def with_file(text, path="settings.py", requirements=""):
    return {"source": Source("a" * 40, {path: File(text), source.LOCK: File(requirements)})}


def test_plain_values(plan, instance, named):
    found = {one["name"]: one["value"] for one in env(plan(environment.set, instance), named) if "value" in one}
    assert found == PLAIN


@pytest.mark.fault(9)
def test_no_secret_stands_in_the_deployment(plan, instance, named):
    secret = {v.name for v in environment.VARIABLES if v.kind == "secret"}
    for one in env(plan(environment.set, instance), named):
        if one["name"] in secret:
            assert "value" not in one


def test_every_reference_is_to_a_key_that_a_step_applies(instance, plan, named):
    applied = {}
    for step in (database.role, redis.add, sso.secret, environment.set):
        for value in plan(step, instance):
            if isinstance(value, Apply) and value.manifest["kind"] == "Secret":
                applied[value.manifest["metadata"]["name"]] = value.manifest["stringData"].keys()
    for one in env(plan(environment.set, instance), named):
        if "valueFrom" in one:
            reference = one["valueFrom"]["secretKeyRef"]
            assert reference["key"] in applied[reference["name"]], one["name"]


def test_the_list_is_sorted_so_that_it_never_moves(plan, instance, named):
    names = [one["name"] for one in env(plan(environment.set, instance), named)]
    assert names == sorted(names)


def test_only_the_environment_is_applied_to_the_deployment(plan, instance, named):
    values = plan(environment.set, instance)
    assert named(values, "Deployment").keys() == {"apiVersion", "kind", "metadata", "spec"}
    (container,) = named(values, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container.keys() == {"name", "env"}
    assert [value.part for value in values if isinstance(value, Apply)] == [False, True, True]


def test_no_variable_stays_on_the_build_config_and_that_comes_last(plan, instance):
    """What a set-up by hand keeps there is copied into a Secret first."""
    last = [value for value in plan(environment.set, instance) if isinstance(value, Apply)][-1]
    assert last.manifest["kind"] == "BuildConfig" and last.manifest["spec"] == {"strategy": {"sourceStrategy": {"env": []}}}


def former(**entries):
    env = [{"name": name, "value": value} for name, value in entries.items()]
    return {Object("BuildConfig", "certification-helper"): {"spec": {"strategy": {"sourceStrategy": {"env": env}}}}, "source": None}


def test_a_variable_that_nothing_here_sets_is_not_lost_without_a_word(plan, instance, unmet):
    known = former(SITE_ID="3", DJANGO_EMAIL_HOST="smtp.cern.ch", CERN_GITLAB_USER="me", DJANGO_DEBUG="False")
    assert unmet(plan(environment.set, instance, known)) == ["SITE_ID stands there and nothing here sets it"]
    assert unmet(plan(environment.set, dataclasses.replace(instance, environment={"SITE_ID": "3"}), known)) == []


def test_the_app_is_not_moved_to_another_database_without_a_word(plan, instance, unmet):
    (found,) = unmet(plan(environment.set, instance, former(DJANGO_DATABASE_HOST="dbod-other.cern.ch", DJANGO_DATABASE_PORT="6611")))
    assert found == "DJANGO_DATABASE_HOST is dbod-other.cern.ch, the instance file wants dbod-devcertdb.cern.ch"


def test_what_may_be_missing_is_left_out_of_the_pod(plan, instance, named):
    optional = {one["name"] for one in env(plan(environment.set, instance), named)
                if one.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")}
    assert optional == {"SSO_CLIENT_ID", "SSO_CLIENT_SECRET", "DJANGO_SECRET_ACC", "DJANGO_SECRET_PASS"}


def test_secrets_for_remote_scripts_are_asked_for(plan, instance, named):
    instance = dataclasses.replace(instance, secrets={"VOCMS_PASSWORD": "password at vocms"})
    values = plan(environment.set, instance)
    kept = named(values, "Secret")["stringData"]["VOCMS_PASSWORD"]
    assert kept == Credential("vocms-password", "password at vocms", "certification-helper-environment", "VOCMS_PASSWORD",
                              former=Former("VOCMS_PASSWORD"))
    assert {"name": "VOCMS_PASSWORD", "valueFrom": {"secretKeyRef": {
        "name": "certification-helper-environment", "key": "VOCMS_PASSWORD"}}} in env(values, named)


def test_on_the_local_stack_nobody_has_to_type(plan, local, named):
    kept = named(plan(environment.set, local), "Secret")["stringData"]
    assert all(value.generated or value.optional for value in kept.values())


def test_at_cern_only_the_secret_key_is_made_up(plan, instance, named):
    kept = named(plan(environment.set, instance), "Secret")["stringData"]
    assert [key for key, value in kept.items() if value.generated] == ["DJANGO_SECRET_KEY"]


def test_the_instance_file_has_the_last_word(plan, instance, named):
    instance = dataclasses.replace(instance, environment={"SITE_ID": "1", "DJANGO_DEBUG": "True"})
    found = {one["name"]: one.get("value") for one in env(plan(environment.set, instance), named)}
    assert (found["SITE_ID"], found["DJANGO_DEBUG"]) == ("1", "True")


@pytest.mark.parametrize(("name", "value", "said"), [
    ("DJANGO_SECRET_KEY", "abc", "DJANGO_SECRET_KEY is secret: take it out"),
    ("DJANGO_EMAIL_HOST_PASSWORD", "abc", 'describe it below [secrets]: DJANGO_EMAIL_HOST_PASSWORD = "what it is"'),
    ("CERN_GITLAB_TOKEN", "abc", "CERN_GITLAB_TOKEN is for builds only"),
    ("ENVIRONMENT", "qa", "ENVIRONMENT is 'qa', but runregistry accepts only production or development"),
])
def test_what_must_not_stand_in_the_instance_file(name, value, said, plan, instance, *, unmet):
    (found,) = unmet(plan(environment.set, dataclasses.replace(instance, environment={name: value})))
    assert said in found
    assert "abc" not in found


@pytest.mark.parametrize("given", [{"ENVIRONMENT": "development"}, {"DJANGO_EMAIL_HOST": "smtp.cern.ch"}, {"ANY": "thing"}])
def test_what_may_stand_in_the_instance_file(given, plan, instance, unmet):
    assert unmet(plan(environment.set, dataclasses.replace(instance, environment=given))) == []


def test_a_changed_secret_changes_the_pod_template(plan, instance, named):
    values = plan(environment.set, instance)
    annotation = named(values, "Deployment")["spec"]["template"]["metadata"]["annotations"]["guide/secrets"]
    referred = {v["valueFrom"]["secretKeyRef"]["name"]
                for v in named(values, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"] if "valueFrom" in v}
    assert {each.name for each in annotation.objects} == referred


def state(*, ready):
    return {"metadata": {"generation": 1}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": ready, "replicas": 1}}


@pytest.mark.parametrize(("deployed", "waits"), [(state(ready=1), True), (state(ready=0), False), (None, True)],
                         ids=["runs", "crashes", "absent"])
def test_only_an_app_that_ran_is_waited_for(deployed, waits, plan, instance):
    """One that did not run may need the new build that comes after this step."""
    values = plan(environment.set, instance, {DEPLOYMENT: deployed, "source": None})
    assert any(isinstance(value, WaitFor) for value in values) == waits


USELESS = {"DJANGO_EMAIL_HOST", "DJANGO_EMAIL_PORT", "DJANGO_EMAIL_HOST_USER", "DJANGO_EMAIL_HOST_PASSWORD", "DJANGO_EMAIL_USE_TLS",
           "DJANGO_SERVER_EMAIL", "CERN_CERTIFICATE_PATH"}


@pytest.mark.fault(2)
def test_what_has_no_effect_is_neither_set_nor_asked_for(plan, instance, local, monkeypatch):
    assert {v.name for v in environment.VARIABLES if v.need == "obsolete"} >= USELESS
    for one in (instance, local):
        assert not USELESS & set_by(plan(environment.set, one))
    useful = [dataclasses.replace(v, value=lambda _: "x") if v.name == "CERN_CERTIFICATE_PATH" else v for v in environment.VARIABLES]
    monkeypatch.setattr(environment, "VARIABLES", tuple(useful))
    assert USELESS & set_by(plan(environment.set, instance)) == {"CERN_CERTIFICATE_PATH"}, "a set one would be seen"


def set_by(values):
    """Return every variable that a plan sets, and every one that it asks the reader for."""
    manifests = [value.manifest for value in values if isinstance(value, Apply)]
    containers = [c for m in manifests if m["kind"] == "Deployment" for c in m["spec"]["template"]["spec"]["containers"]]
    return {entry["name"] for c in containers for entry in c["env"]} | {
        key for m in manifests if m["kind"] == "Secret" for key in m["stringData"]}


def test_every_variable_has_all_its_words():
    names = [variable.name for variable in environment.VARIABLES]
    assert len(names) == len(frozenset(names))
    for variable in environment.VARIABLES:
        assert variable.meaning.endswith(".")
        assert variable.read
        assert variable.source
        if variable.need == "required":
            assert variable.value, f"{variable.name} is required, and nothing sets it"


@pytest.mark.fault(1)
def test_the_examples_code_needs_nothing_more(plan, instance, local, example, unmet):
    for one in (instance, local):
        assert unmet(plan(environment.check, one, {"source": Source("a" * 40, example)})) == []


@pytest.mark.fault(1)
@pytest.mark.parametrize("name", ["DJANGO_SECRET_KEY", "OMS_CLIENT_ID", "CERN_SSO_REGISTRATION_CLIENT_SECRET"])
def test_a_variable_taken_from_the_table_is_missed(name, plan, instance, example, *, unmet, monkeypatch):
    monkeypatch.setattr(environment, "VARIABLES", tuple(v for v in environment.VARIABLES if v.name != name))
    (found,) = unmet(plan(environment.check, instance, {"source": Source("a" * 40, example)}))
    assert found.startswith(f"{name} is read in ")
    path, line = found.split(" ")[4].rstrip(",").split(":")
    assert name in example[path].text.splitlines()[int(line) - 1]


READS = [
    ('from decouple import config\nX = config("NEW")', True),
    ('from decouple import config as env\nX = env("NEW", cast=int)', True),
    ('import decouple\nX = decouple.config("NEW")', True),
    ('from decouple import config\ndef f():\n    return config("NEW")', True),
    ('import os\nX = os.environ["NEW"]', True),
    ('from os import environ\nX = environ["NEW"]', True),
    ('import os\nclass A:\n    x = os.environ["NEW"]', True),
    ('from decouple import config\nX = config("NEW", default="")', False),
    ('from decouple import config\nX = config("NEW", "")', False),
    ('X = config("NEW")', False),
    ('import os\nX = os.environ.get("NEW")', False),
    ('import os\nX = os.getenv("NEW")', False),
    ('import os\nos.environ["NEW"] = "x"', False),
    ('import os\nos.environ.setdefault("NEW", "x")', False),
    ('import os\ndef f():\n    return os.environ["NEW"]', False),
    ('import os\ntry:\n    X = os.environ["NEW"]\nexcept KeyError:\n    X = 1', False),
    ('import os\nX = os.environ["HOME"]', False),
    ('print "a Python 2 file"', False),
]


@pytest.mark.parametrize(("text", "needed"), READS, ids=[text.replace("\n", "; ") for text, _ in READS])
def test_reads_in_code(text, needed, plan, instance, unmet):
    found = unmet(plan(environment.check, instance, with_file(text)))
    assert bool(found) == needed
    assert all("NEW is read in settings.py:" in one for one in found)


@pytest.mark.parametrize("path", ["tests/settings.py", "app/test_ci_settings.py", "docs/conf.py", "conftest.py", "a.txt"])
def test_what_no_pod_runs_is_not_read(path, plan, instance, unmet):
    assert unmet(plan(environment.check, instance, with_file('import os\nos.environ["NEW"]', path))) == []


def test_what_the_instance_file_or_the_image_sets_is_not_missing(plan, instance, unmet):
    code = 'import os\nos.environ["NEW"]'
    wanted = dataclasses.replace(instance, environment={"NEW": "x"})
    assert unmet(plan(environment.check, wanted, with_file(code))) == []
    known = {"source": Source("a" * 40, {"a.py": File(code), source.ENVIRONMENT: File("NEW=x\n")})}
    assert unmet(plan(environment.check, instance, known)) == []


def test_a_librarys_own_variables_are_asked_for_when_it_is_installed(plan, instance, unmet):
    known = with_file("", requirements="runregistry==3.1.1\n")
    assert unmet(plan(environment.check, instance, known)) == [
        "SSO_CLIENT_ID is needed by runregistry, and nobody gave it",
        "SSO_CLIENT_SECRET is needed by runregistry, and nobody gave it"]
    kept = {"data": {"SSO_CLIENT_ID": "YQ==", "SSO_CLIENT_SECRET": "YQ=="}}
    known[Object("Secret", "certification-helper-environment")] = kept
    assert unmet(plan(environment.check, instance, known)) == []
    assert unmet(plan(environment.check, instance, with_file("", requirements="Django==5.2\n"))) == []


def test_an_empty_value_is_no_value(plan, instance, unmet):
    known = with_file("", requirements="runregistry==3.1.1\n")
    known[Object("Secret", "certification-helper-environment")] = {"data": {"SSO_CLIENT_ID": "", "SSO_CLIENT_SECRET": ""}}
    assert len(unmet(plan(environment.check, instance, known))) == 2


def test_the_cure_names_the_command(plan, instance):
    values = plan(environment.check, instance, with_file('import os\nos.environ["NEW"]'))
    (wrong,) = [value for value in values if isinstance(value, Require) and value.found]
    assert "invoke environment.set --build=dev" in wrong.cure


def test_code_that_cannot_be_read_is_said(plan, instance, unmet):
    assert unmet(plan(environment.check, instance, {"source": Source("", error="no such branch")})) == ["no such branch"]


def test_plans_hold_no_value_of_a_secret(plan, instance):
    assert "Credential(" in repr(plan(environment.set, instance))
    parts = [v.manifest for v in plan(environment.set, instance) if isinstance(v, Apply) and v.part]
    assert "Credential(" not in repr(parts)
