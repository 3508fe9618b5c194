"""A site as the former guide has people click it together, object by object, taken over while it serves."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from procedures import eos, redis
from runbook.clients.web import Portal
from runbook.errors import Unreachable
from stack import eos as stand_in
from stack.api import collection, wait_until
from tests.guide import Guide, Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

CONSOLE, OC, TEMPLATES = "Mozilla", "oc", "openshift-controller-manager"
"""The field managers of the web console (the browser's name), of oc, and of the platform's own template controller."""
CANARY = {"key": "canary-django-secret-key-0001", "webhook": "canary-webhook-0002", "redis": "canaryredis0003", "oms": "canary-oms-0004"}
OWN_SCRIPT = "canary-script-password-0005"


class Former:
    """The site, and the web console and `oc` in somebody's hands."""

    def __init__(self, site: Site) -> None:
        self.site, self.instance = site, site.instance
        self.member = site.guide.stack.member
        self.name, self.project = self.instance.app, self.instance.project

    def make(self, manifest: dict[str, Any], manager: str = CONSOLE) -> None:
        manifest["metadata"]["namespace"] = self.project
        self.member.request("POST", collection(manifest["kind"], self.project), manifest, query={"fieldManager": manager})

    def get(self, kind: str, name: str = "") -> dict[str, Any]:
        found = self.member.get(kind, name or self.name, self.project)
        assert found, f"{kind} {name}"
        return found

    def secret(self, name: str, type_: str = "Opaque", **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.make({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": type_, "data": data}, "kubectl-create")

    def set(self, part: dict[str, Any]) -> None:
        """Do what `oc set` does."""
        self.member.patch("Deployment", self.name, {"spec": {"template": {"spec": part}}}, self.project, manager=OC,
                          content="application/strategic-merge-patch+json")

    def redis(self) -> None:
        """Make what the template of 2022 made. No controller makes pods of a DeploymentConfig here: a ReplicaSet is its pods."""
        template = self.site.guide.stack.api.get("Template", "redis-ephemeral", "openshift")
        for manifest in redis.filled(template, {"DATABASE_SERVICE_NAME": "redis", "REDIS_VERSION": self.instance.redis.version,
                                                "REDIS_PASSWORD": CANARY["redis"]}):
            if manifest["kind"] != "Deployment":
                self.make(manifest, TEMPLATES)
                continue
            spec = manifest["spec"]
            stream = self.site.guide.stack.api.get("ImageStream", "redis", "openshift")
            spec["template"]["spec"]["containers"][0]["image"] = redis.tagged(stream, self.instance.redis.version)
            self.make({"apiVersion": "apps.openshift.io/v1", "kind": "DeploymentConfig", "metadata": {"name": "redis"}, "spec": {
                "replicas": 1, "selector": spec["selector"]["matchLabels"], "template": spec["template"]}}, TEMPLATES)
            self.make({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "redis-1"}, "spec": {
                "replicas": 1, "selector": spec["selector"], "template": spec["template"]}}, TEMPLATES)

    def eos(self) -> None:
        """Make what the five commands of the former guide make: a typed Secret, a claim of one byte, a volume, two probes."""
        account, guide = eos.account(self.instance), self.site.guide
        portal = Portal(guide.web(), guide.facts["portal"], guide.stack.state.tokens.member)
        self.secret("eos-credentials", "eos.cern.ch/credentials",
                    **{"keytab-user": account, "keytab-pwd": portal.fill("accounts", {"name": account})["password"]})
        self.make({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "eos-volume"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}, "storageClassName": "eos"}}, OC)
        self.member.patch("Deployment", self.name, {"spec": {"template": {"metadata": {"annotations": {
            eos.ANNOTATION: "eos-credentials"}}}}}, self.project, manager=OC)
        self.set({"volumes": [{"name": "eos", "persistentVolumeClaim": {"claimName": "eos-volume"}}],
                  "containers": [{"name": self.name, "volumeMounts": [{"name": "eos", "mountPath": "/eos"}]}]})
        # The default of one second is too short on a machine that is busy: such a site is down by itself now and then.
        probe = {"exec": {"command": ["stat", self.instance.eos.path]}, "timeoutSeconds": 20}
        self.set({"containers": [{"name": self.name, "livenessProbe": probe | {"initialDelaySeconds": 30}, "readinessProbe": probe}]})

    def value(self, secret: str, key: str) -> str:
        return base64.b64decode(self.get("Secret", secret)["data"][key]).decode()

    def meta(self, name: str = "") -> dict[str, Any]:
        name = name or self.name
        return {"name": name, "labels": {"app": name, "app.kubernetes.io/component": name, "app.kubernetes.io/instance": name,
                                         "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "certhelper-app",
                                         "app.openshift.io/runtime": "python", "app.openshift.io/runtime-version": "3.8-ubi8"},
                "annotations": {"app.openshift.io/vcs-uri": self.instance.source.repository, "app.openshift.io/vcs-ref": "develop",
                                "openshift.io/generated-by": "OpenShiftWebConsole"}}

    def import_from_git(self, client_id: str, client_secret: str) -> None:
        """Make what the console's form "Import from Git" makes, and the variables that the former guide lists."""
        name, instance = self.name, self.instance
        pods = {"app": name, "deployment": name}
        for kind in ("generic", "github"):
            self.make({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-{kind}-webhook-secret"},
                       "stringData": {"WebHookSecretKey": CANARY["webhook"]}})
        self.make({"apiVersion": "image.openshift.io/v1", "kind": "ImageStream", "metadata": self.meta()})

        def key(variable: str, secret: str, key: str) -> dict[str, Any]:
            return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}

        db = instance.database
        plain = {"DJANGO_ALLOWED_HOSTS": instance.host, "DJANGO_DEBUG": "False",
                 "DJANGO_DATABASE_ENGINE": "django.db.backends.postgresql", "DJANGO_DATABASE_NAME": db.name,
                 "DJANGO_DATABASE_HOST": db.host, "DJANGO_DATABASE_PORT": str(db.port), "DJANGO_EMAIL_HOST": "smtp.cern.ch",
                 "REDIS_HOST": "redis", "CSRF_TRUSTED_ORIGINS": instance.url, "CERN_SSO_REGISTRATION_CLIENT_ID": client_id,
                 "CERN_SSO_REGISTRATION_CLIENT_SECRET": client_secret, "OMS_CLIENT_ID": "oms", "OMS_CLIENT_SECRET": CANARY["oms"],
                 "SCRIPT_PASSWORD": OWN_SCRIPT, "CERN_GITLAB_USER": "somebody", **instance.environment}
        env = [key("DJANGO_SECRET_KEY", "django", "key"), key("DJANGO_DATABASE_USER", "dbod", "user"),
               key("DJANGO_DATABASE_PASSWORD", "dbod", "password"), key("REDIS_PASSWORD", "redis", "database-password"),
               *({"name": variable, "value": value} for variable, value in plain.items())]
        self.make({"apiVersion": "build.openshift.io/v1", "kind": "BuildConfig", "metadata": self.meta(), "spec": {
            "output": {"to": {"kind": "ImageStreamTag", "name": f"{name}:latest"}}, "runPolicy": "Serial",
            "source": {"type": "Git", "contextDir": "/", "git": {"uri": instance.source.repository, "ref": instance.source.branch}},
            "strategy": {"type": "Source", "sourceStrategy": {
                "from": {"kind": "ImageStreamTag", "name": instance.source.builder, "namespace": "openshift"}, "env": env}},
            "triggers": [{"type": "Generic", "generic": {"secretReference": {"name": f"{name}-generic-webhook-secret"}}},
                         {"type": "GitHub", "github": {"secretReference": {"name": f"{name}-github-webhook-secret"}}},
                         {"type": "ImageChange", "imageChange": {}}, {"type": "ConfigChange"}]}})
        trigger = [{"from": {"kind": "ImageStreamTag", "name": f"{name}:latest", "namespace": self.project}, "paused": False,
                    "fieldPath": f'spec.template.spec.containers[?(@.name=="{name}")].image'}]
        meta = self.meta()
        meta["annotations"] |= {"alpha.image.policy.openshift.io/resolve-names": "*", "image.openshift.io/triggers": json.dumps(trigger)}
        container = {"name": name, "image": f"{name}:latest", "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                     "env": [], "resources": {},
                     # The former start script is a shell that does not hear SIGTERM: its pods serve until their grace is over.
                     "command": ["bash", "-c", "/usr/libexec/s2i/run; exit $?"]}
        self.make({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
            "replicas": 1, "selector": {"matchLabels": pods},
            "template": {"metadata": {"labels": pods}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 10}}}})
        self.make({"apiVersion": "v1", "kind": "Service", "metadata": self.meta(), "spec": {
            "selector": pods, "ports": [{"name": "8080-tcp", "port": 8080, "protocol": "TCP", "targetPort": 8080}]}})
        self.make({"apiVersion": "route.openshift.io/v1", "kind": "Route", "metadata": self.meta(), "spec": {
            "host": instance.host, "to": {"kind": "Service", "name": name, "weight": 100}, "port": {"targetPort": "8080-tcp"},
            "tls": {"termination": "edge", "insecureEdgeTerminationPolicy": "Redirect"}, "wildcardPolicy": "None"}})

    def build(self) -> None:
        config = f"{collection('BuildConfig', self.project)}/{self.name}"
        made = self.member.request("POST", f"{config}/instantiate", {
            "apiVersion": "build.openshift.io/v1", "kind": "BuildRequest", "metadata": {"name": self.name}})
        name = made["metadata"]["name"]
        ended = wait_until(lambda: (b := self.get("Build", name)).get("status", {}).get("phase") in ("Complete", "Failed", "Error") and b,
                           "the build", 180)
        assert ended["status"]["phase"] == "Complete", ended["status"]

    def schedule(self) -> None:
        url = (f"https://api.paas.okd.cern.ch:443/apis/build.openshift.io/v1/namespaces/{self.project}/buildconfigs/{self.name}"
               f"/webhooks/{CANARY['webhook']}/generic")
        pod = {"containers": [{"name": "curl", "image": "curlimages/curl", "args": ["curl", "-X", "POST", "-k", url]}],
               "restartPolicy": "OnFailure"}
        self.make({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "scheduled-deployment"}, "spec": {
            "schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": {"spec": pod}}}}})

    def sql(self, statement: str) -> None:
        """Execute a statement as the administrator, with the password that the reader's file holds."""
        db, state = self.instance.database, self.site.guide.stack.state
        connection = psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=db.administrator, dbname="postgres",
                                      passfile=str(state.pgpass), sslmode="verify-full", sslrootcert=str(state.ca))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
        connection.close()

    def status(self) -> int:
        return self.site.guide.web().request("GET", f"{self.instance.url}/database/")[0]


@pytest.fixture(scope="module")
def former(guide: Guide) -> Iterator[Former]:
    """The site, deployed by hand."""
    site = Site.written(guide, "byhand", port=6)
    site("guide.run", "--to=database.access")
    made = Former(site)
    web, facts, state, db = guide.web(), guide.facts, guide.stack.state, made.instance.database
    token = {"Authorization": f"Bearer {state.tokens.member}"}
    filled = {"identifier": made.instance.sso.identifier, "name": "By hand",
              "redirect_uris": [made.instance.url + made.instance.sso.callback]}
    pair = json.loads(web.request("POST", f"{facts['portal']}/registrations", filled, token)[1])
    (line,) = [line for line in state.pgpass.read_text().splitlines() if f":{db.port}:" in line and ":admin:" in line]
    made.secret("django", key=CANARY["key"])
    made.secret("dbod", user="admin", password=line.rpartition(":")[2])
    made.sql(f'CREATE DATABASE "{db.name}"')
    made.redis()
    made.import_from_git(pair["client_id"], pair["client_secret"])
    made.build()
    made.make({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}, "spec": {
        "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1"}}, "storageClassName": "cephfs-no-backup"}}, OC)
    made.set({"volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}],
              "containers": [{"name": made.name, "volumeMounts": [{"name": "shared", "mountPath": "/sock"}]}]})
    made.eos()
    made.schedule()
    wait_until(lambda: made.status() == 200, "the site that was set up by hand", 90, pause=0.5)
    made.client_secret = pair["client_secret"]
    made.administrator = line.rpartition(":")[2]
    yield made
    web.request("DELETE", f"{facts['portal']}/databases/{db.instance}", headers=token)
    web.request("DELETE", f"{facts['portal']}/registrations/{made.instance.sso.identifier}", headers=token)
    site.remove()


@contextmanager
def watched(former: Former) -> Iterator[list[Any]]:
    """Ask the site again and again; yield every answer."""
    answers: list[Any] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.2):
            try:
                # A connection of its own each time: a kept one may end unanswered, and then a browser asks again by itself.
                status, text = former.site.guide.web().request("GET", f"{former.instance.url}/database/")
                answers.append(200 if status == 200 else f"{time.strftime('%H:%M:%S')} {status} {text[:200]}")
            except Unreachable as error:
                answers.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


def versions(former: Former) -> dict[str, str]:
    """Return the state of what people made; Redis is the platform's own template, to which a run only adds its labels."""
    return {f"{kind} {item['metadata']['name']}": item["metadata"].get("generation", item["metadata"]["resourceVersion"])
            for kind in ("Secret", "Service", "Deployment", "BuildConfig", "Route", "ImageStream", "CronJob")
            for item in former.member.list(kind, former.project) if not item["metadata"]["name"].endswith(("-database", "-sso", "redis"))}


def test_status_says_what_matches_what_differs_and_whose_it_is(former: Former) -> None:
    before = versions(former)
    done = former.site("guide.status", "--json", code=3)
    found = {step["step"]: step for step in map(json.loads, done.stdout.splitlines())}
    assert found["project.request"]["state"] == found["database.request"]["state"] == "done"
    notes = {detail["what"]: detail for detail in found["app.create"]["detail"]}
    deployment = notes[f"Deployment {former.name}"]
    assert re.search(r"Mozilla, oc set it; \d+ of \d+ of the step's fields are as wanted", deployment["note"])
    owners = {field["path"].rpartition(".")[2]: field["manager"] for field in deployment["fields"]}
    assert owners["exec"] == "oc"
    triggers = [f for f in notes[f"BuildConfig {former.name}"]["fields"] if f["path"].startswith("spec.triggers")]
    assert {(field["manager"], field["wanted"]) for field in triggers} == {(CONSOLE, None)}
    assert any("scheduled-deployment" in detail["what"] for detail in found["adopt.suspend"]["detail"])
    assert any("SCRIPT_PASSWORD" in detail["note"] for detail in found["environment.set"]["detail"])
    leaks = [value for value in (*CANARY.values(), OWN_SCRIPT, former.client_secret) if value in done.stdout]
    assert leaks == []
    assert versions(former) == before


def test_a_redis_of_2022_gets_no_second_one_beside_it(former: Former) -> None:
    def serving() -> int:
        return len(former.member.list("Pod", former.project, labelSelector="name=redis"))

    assert serving() == 1
    refused = former.site("redis.add", "--force", code=1)
    assert "a DeploymentConfig redis runs 1" in refused.stderr and "oc scale dc/redis --replicas=0" in refused.stderr
    assert former.member.get("Deployment", "redis", former.project) is None and serving() == 1
    done = former.site.guide.stack.run("kubectl", "-n", former.project, "scale", "dc/redis", "--replicas=0")
    assert done.returncode == 0, done.stderr
    former.member.patch("ReplicaSet", "redis-1", {"spec": {"replicas": 0}}, former.project)  # as its controller does
    wait_until(lambda: serving() == 0, "the former server to end")


def test_without_force_nothing_of_others_is_touched(former: Former) -> None:
    before = versions(former)
    refused = former.site("guide.run", code=1)
    assert "--force" in refused.stderr and CONSOLE in refused.stderr
    after = versions(former)
    assert {name: after[name] for name in before} == before


def test_what_the_guide_does_not_know_stops_it_before_anything_is_lost(former: Former) -> None:
    refused = former.site("guide.run", "--force", "--to=environment.set", code=1)
    assert "SCRIPT_PASSWORD" in refused.stderr and OWN_SCRIPT not in refused.stderr
    env = former.get("BuildConfig")["spec"]["strategy"]["sourceStrategy"]["env"]
    assert {"SCRIPT_PASSWORD", "DJANGO_SECRET_KEY"} <= {entry["name"] for entry in env}
    former.site.change({"secrets": {"SCRIPT_PASSWORD": "password of a remote script"}})


def test_a_forced_run_takes_it_over_while_it_serves(former: Former) -> None:
    selector = former.get("Deployment")["spec"]["selector"]
    with watched(former) as answers:
        done = former.site("guide.run", "--force")
        wait_until(lambda: len(former.member.list("Pod", former.project, labelSelector=f"app={former.name}")) == 1, "the old pods' end", 90)
    assert len(answers) > 20 and [answer for answer in answers if answer != 200] == []
    for value in (*CANARY.values(), OWN_SCRIPT, former.client_secret, former.administrator):
        assert value not in done.stdout + done.stderr
    assert former.get("Deployment")["spec"]["selector"] == selector
    config = former.get("BuildConfig")["spec"]
    assert not config["strategy"]["sourceStrategy"].get("env") and not config["triggers"]
    assert "contextDir" not in config["source"]
    pod = former.get("Deployment")["spec"]["template"]["spec"]
    assert "command" not in pod["containers"][0]
    assert "exec" not in pod["containers"][0]["readinessProbe"] and "exec" not in pod["containers"][0]["livenessProbe"]
    assert [volume["name"] for volume in pod["volumes"]] == ["eos"]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "eos", "mountPath": "/eos", "mountPropagation": "HostToContainer"}]
    assert pod["containers"][0]["startupProbe"]["exec"]["command"] == ["stat", former.instance.eos.path]
    assert former.get("PersistentVolumeClaim", "shared")["spec"]["storageClassName"] == "cephfs-no-backup"
    assert former.get("CronJob", "scheduled-deployment")["spec"]["suspend"] is True
    assert former.get("Deployment", "redis")["status"]["readyReplicas"] == 1


def test_eos_is_taken_over_with_the_claim_and_the_type_that_cannot_change(former: Former) -> None:
    claim = former.get("PersistentVolumeClaim", "eos-volume")["spec"]
    assert (claim["accessModes"], claim["resources"]["requests"]["storage"]) == (["ReadWriteOnce"], "1")
    secret = former.get("Secret", "eos-credentials")
    assert secret["type"] == "eos.cern.ch/credentials" and {*eos.KEYS, *eos.KEYS.values()} <= set(secret["data"])
    assert former.value("eos-credentials", "KEYTAB_PWD") == former.value("eos-credentials", "keytab-pwd")
    status, text = former.site.guide.web().request("GET", f"{former.instance.url}/eos/{stand_in.WELCOME}")
    assert (status, text) == (200, "This file lies in EOS.\n")


def test_credentials_are_kept(former: Former) -> None:
    own = f"{former.name}-environment"
    assert former.value(own, "DJANGO_SECRET_KEY") == CANARY["key"]
    assert former.value(own, "OMS_CLIENT_SECRET") == CANARY["oms"]
    assert former.value(own, "SCRIPT_PASSWORD") == OWN_SCRIPT
    assert former.value("redis", "database-password") == CANARY["redis"]
    assert former.value(f"{former.name}-sso", "CERN_SSO_REGISTRATION_CLIENT_SECRET") == former.client_secret
    former.sql("SELECT 1")  # with the administrator's password of before
    text = former.site.guide.web().request("GET", f"{former.instance.url}/database/")[1]
    assert json.loads(text)["role"] == former.instance.database.role


def test_no_field_of_the_former_tools_stays_and_the_image_holds_no_variable(former: Former) -> None:
    for kind in ("ImageStream", "BuildConfig", "Service", "Route", "Deployment"):
        meta = former.get(kind)["metadata"]
        managers = {entry["manager"] for entry in meta["managedFields"]}
        assert not managers & {CONSOLE, OC}, (kind, managers)
        assert "app.openshift.io/vcs-uri" not in meta.get("annotations", {})
        assert "app.openshift.io/runtime" not in meta["labels"]
    digest = former.get("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]
    images = former.site.guide.stack.state.images
    texts = [path.read_text(errors="replace") for path in images.glob(f"*{digest}*/*.json")]
    assert texts and not [value for value in CANARY.values() for text in texts if value in text]


def test_afterwards_it_is_a_site_like_any_other(former: Former) -> None:
    place = former.site.guide.audit_end()
    assert {step["state"] for step in former.site.outcomes("guide.run").values()} <= {"unchanged", "skipped"}
    assert former.site.guide.writes(place) == []
    assert {step["state"] for step in former.site.outcomes("guide.status").values()} <= {"done", "not wanted"}


def test_the_schedule_is_let_go_and_suspended_again_by_a_step_of_its_own(former: Former) -> None:
    def suspended() -> bool:
        found: bool = former.get("CronJob", "scheduled-deployment")["spec"]["suspend"]
        return found

    former.site("adopt.suspend", "--undo")
    assert suspended() is False
    refused = former.site("adopt.suspend", code=1)
    assert "--force" in refused.stderr and suspended() is False
    assert former.site.outcomes("adopt.suspend", "--force")["adopt.suspend"]["state"] == "changed"
    assert suspended() is True
    assert former.site.outcomes("adopt.suspend")["adopt.suspend"]["state"] == "unchanged"
