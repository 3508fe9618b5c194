"""EOS: what one plan holds, so that nobody has to run four commands, and run them again."""

import dataclasses

import pytest

from procedures import eos
from runbook.observed import File, Source
from runbook.plan import Apply, Ask, Inside, Object, Require, Revision, WaitFor


def wanting(instance, **changes):
    return dataclasses.replace(instance, eos=dataclasses.replace(instance.eos, **changes))


def requirement(values, word):
    return next(v for v in values if isinstance(v, Require) and word in v.what)


CLAIM, SECRET = Object("PersistentVolumeClaim", "eos-volume"), Object("Secret", "eos-credentials")
SPEC = {"accessModes": ["ReadWriteOnce"], "storageClassName": "eos", "resources": {"requests": {"storage": "1"}}}


@pytest.mark.fault(22)
def test_the_secret_has_both_forms_of_the_keys_and_no_value(plan, instance, named):
    secret = named(plan(eos.credentials, instance), "Secret")
    hidden = eos.password(instance)
    assert secret["stringData"] == {"keytab-user": "tkdqmdoc", "keytab-pwd": hidden, "KEYTAB_USER": "tkdqmdoc", "KEYTAB_PWD": hidden}
    assert secret["type"] == "Opaque"
    assert hidden.variable == "RUNBOOK_EOS_PASSWORD"


def test_one_form_of_the_keys_is_enough_for_who_says_so(plan, instance, named):
    secret = named(plan(eos.credentials, wanting(instance, keys="KEYTAB_USER")), "Secret")
    assert set(secret["stringData"]) == {"KEYTAB_USER", "KEYTAB_PWD"}


def test_the_password_that_is_there_is_found_under_either_key(plan, instance):
    kept = {SECRET: {"type": "Opaque", "data": {"KEYTAB_PWD": "eA=="}}}
    (ask,) = [v for v in plan(eos.credentials, instance, kept) if isinstance(v, Ask)]
    assert ask.until.key == "KEYTAB_PWD"


def test_the_type_of_a_secret_stays(plan, instance, named, unmet):
    kept = {SECRET: {"type": "eos.cern.ch/credentials", "data": {}}}
    assert named(plan(eos.credentials, instance, kept), "Secret")["type"] == "eos.cern.ch/credentials"
    assert unmet(plan(eos.credentials, wanting(instance, secret_type="Opaque"), kept)) == [
        "it is of the type eos.cern.ch/credentials, and that cannot be changed"]


def deployment(plan, instance, known=None):
    (part,) = [v.manifest for v in plan(eos.mount, instance, known) if isinstance(v, Apply) and v.part]
    return part["spec"]["template"]


@pytest.mark.fault(18, 21)
def test_annotation_volume_and_mount_are_one_part(plan, instance):
    template = deployment(plan, instance)
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["annotations"][eos.ANNOTATION] == "eos-credentials"
    assert container["volumeMounts"] == [{"name": "eos", "mountPath": "/eos", "mountPropagation": "HostToContainer"}]
    assert template["spec"]["volumes"] == [{"name": "eos", "persistentVolumeClaim": {"claimName": "eos-volume"}}]


@pytest.mark.fault(20)
def test_a_startup_probe_waits_and_nothing_kills_for_eos(plan, instance):
    (container,) = deployment(plan, wanting(instance, patience=60))["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["exec"]["command"] == ["stat", "/eos/project/t/tkdqmdoc"]
    assert probe["timeoutSeconds"] >= 5
    assert probe["periodSeconds"] * probe["failureThreshold"] == 60
    assert "livenessProbe" not in container and "readinessProbe" not in container


def test_another_password_makes_other_pods(plan, instance):
    assert deployment(plan, instance)["metadata"]["annotations"][eos.REVISION] == Revision((SECRET,))


def test_reading_only_is_a_setting(plan, instance):
    (container,) = deployment(plan, wanting(instance, read_only=True))["spec"]["containers"]
    assert container["volumeMounts"][0]["readOnly"] is True


@pytest.mark.fault(19)
def test_what_cannot_be_changed_of_a_claim_is_kept(plan, instance, named):
    assert named(plan(eos.mount, instance, {CLAIM: {"metadata": {}, "spec": SPEC}}), "PersistentVolumeClaim")["spec"] == SPEC


@pytest.mark.fault(23)
def test_a_claim_on_its_way_out_is_no_place_to_mount(plan, instance, unmet):
    going = {CLAIM: {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": SPEC}}
    assert unmet(plan(eos.mount, instance, going)) == ["it hangs in Terminating"]
    assert "invoke eos.unmount --build=dev" in requirement(plan(eos.mount, instance, going), "to stay").cure


def test_a_script_below_tmp_would_be_hidden(plan, instance, unmet):
    files = {".s2i/bin/run": File("#!/bin/sh", executable=True)}
    assert "over which CERN mounts" in unmet(plan(eos.mount, instance, {"source": Source("c", files)}))[0]
    assert unmet(plan(eos.mount, instance, {"source": Source("c", {})})) == []


def test_the_storage_class_is_checked_where_it_may_be_read(plan, instance, unmet):
    assert unmet(plan(eos.mount, instance, {"storage classes": ["standard"]})) == ["the cluster offers standard"]
    assert unmet(plan(eos.mount, instance, {"storage classes": ["eos"]})) == []
    blind = plan(eos.mount, instance, {"source": None})
    assert unmet(blind) == [] and "not checked" in requirement(blind, "storage class").what


def test_only_an_app_that_ran_well_is_waited_for(plan, instance):
    def state(ready):
        return {Object("Deployment", instance.app): {
            "metadata": {"generation": 1}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1, "readyReplicas": ready}}}
    (wait,) = [v for v in plan(eos.mount, instance, state(1)) if isinstance(v, WaitFor)]
    assert wait.seconds > instance.eos.patience
    assert not [v for v in plan(eos.mount, instance, state(0)) if isinstance(v, WaitFor)]


def test_verifying_reads_a_file_or_lists_the_folder(plan, instance, local):
    (look,) = plan(eos.verify, local)
    assert isinstance(look, Inside) and look.command[-1] == "/eos/project/t/tkdqmdoc/welcome.txt"
    assert look.retry == local.eos.patience
    (look,) = plan(eos.verify, instance)
    assert look.command == ("ls", "-f", "/eos/project/t/tkdqmdoc")


def test_an_instance_without_a_path_wants_no_eos(instance):
    bare = wanting(instance, path="")
    assert not any(step.wanted(bare) for step in (eos.credentials, eos.mount, eos.verify, eos.unmount))
