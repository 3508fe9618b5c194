"""Adopting: what a set-up by hand left running."""

from procedures import adopt, database
from runbook.plan import Execute, Object, Patch

CRON = Object("CronJob", "*")


def cronjob(name, *args):
    pod = {"spec": {"containers": [{"name": "c", "image": "curlimages/curl", "args": list(args)}]}}
    return {"metadata": {"name": name}, "spec": {"jobTemplate": {"spec": {"template": pod}}}}


def test_the_cronjob_that_calls_the_webhook_is_suspended_and_no_other(plan, instance):
    url = "https://api/apis/build.openshift.io/v1/namespaces/x/buildconfigs/certification-helper/webhooks/s3cret/generic"
    known = {CRON: [cronjob("scheduled-deployment", "curl", "-X", "POST", "-k", url), cronjob("other", "curl", "https://cern.ch")]}
    (value,) = plan(adopt.suspend, instance, known)
    assert isinstance(value, Patch) and value.foreign
    assert value.object.name == "scheduled-deployment" and value.fields == {"spec": {"suspend": True}}
    assert "s3cret" not in repr(value)


def test_the_administrators_password_stays_where_an_app_set_up_by_hand_may_log_in_with_it(plan, instance):
    env = [{"name": "DJANGO_DATABASE_USER", "valueFrom": {"secretKeyRef": {"name": "database", "key": "user"}}}]
    config = {"spec": {"strategy": {"sourceStrategy": {"env": env}}}}
    (value,) = plan(database.password, instance, {Object("BuildConfig", instance.app): config})
    assert isinstance(value, Execute) and value.credential is None and "PASSWORD" not in value.statement
    (value,) = plan(database.password, instance)
    assert value.credential is not None
