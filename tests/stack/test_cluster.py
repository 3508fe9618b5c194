"""The cluster is what a project at CERN finds: kinds, roles, templates, policies, and no more rights than given there."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from stack import cluster
from stack.api import APPLY, Api, ApiError, Manifest, collection, wait_until
from stack.cluster import DEFAULT_WHITELIST, RESERVED_SWITCH, WHITELIST
from stack.errors import StackError
from stack.openshift import make
from stack.state import MEMBER

pytestmark = pytest.mark.needs("cluster", "defaults")


@pytest.fixture
def admin(stack: Any) -> Api:
    return Api(stack.state.server, stack.state.tokens.admin, stack.state.ca)


@pytest.fixture
def member(stack: Any) -> Api:
    return Api(stack.state.server, stack.state.tokens.member, stack.state.ca)


@pytest.fixture
def stranger(stack: Any) -> Api:
    return Api(stack.state.server, stack.state.tokens.stranger, stack.state.ca)


@pytest.fixture
def project(admin: Api) -> Iterator[str]:
    """Return a namespace in which the member has the role that CERN gives."""
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name, "annotations": {DEFAULT_WHITELIST: "10.0.0.0/8 127.0.0.1"}}})
    admin.create({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                  "metadata": {"name": "admin", "namespace": name},
                  "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
                  "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": MEMBER}]})
    yield name
    admin.delete("Namespace", name)


def build_config(project: str, **spec: Any) -> Manifest:
    return {"apiVersion": "build.openshift.io/v1", "kind": "BuildConfig", "metadata": {"name": "app", "namespace": project},
            "spec": {"source": {"type": "Git", "git": {"uri": "https://git.localhost/example.git", "ref": "develop"}},
                     "strategy": {"type": "Source", "sourceStrategy": {"from": {
                         "kind": "ImageStreamTag", "namespace": "openshift", "name": "python:3.12-ubi9"}}},
                     "output": {"to": {"kind": "ImageStreamTag", "name": "app:latest"}}} | spec}


def route(project: str, name: str = "app", annotations: dict[str, str] | None = None, **spec: Any) -> Manifest:
    return {"apiVersion": "route.openshift.io/v1", "kind": "Route",
            "metadata": {"name": name, "namespace": project} | ({"annotations": annotations} if annotations else {}),
            "spec": {"to": {"kind": "Service", "name": "app", "weight": 100}} | spec}


def server_apply(api: Api, manifest: Manifest, **query: str) -> Manifest:
    about = manifest["metadata"]
    path = f"{collection(manifest['kind'], about.get('namespace'))}/{about['name']}"
    applied: Manifest = api.request("PATCH", path, manifest, content=APPLY,
                                    query={"fieldManager": "guide/test", "fieldValidation": "Strict"} | query)
    return applied


# --- the generated files

def test_the_library_is_what_the_script_makes() -> None:
    for name, content in make.library().items():
        assert (make.FOLDER / name).read_text() == make.render(content), f"run python -m stack.openshift.make: {name}"


def test_the_kinds_are_what_the_script_makes_of_the_published_module() -> None:
    try:
        module = make.download()
    except (FileNotFoundError, RuntimeError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the Go module cannot be fetched here: {error}")
    made = make.definitions(module)
    for name, content in made.items():
        assert (make.FOLDER / name).read_text() == make.render(content), f"run python -m stack.openshift.make: {name}"
    assert {path.name for path in make.FOLDER.glob("*.json")} == {*made, *make.library()}


def test_a_changed_file_would_be_seen(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(make.FOLDER, tmp_path / "openshift", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(make, "FOLDER", tmp_path / "openshift")
    (make.FOLDER / "stream-redis.json").write_text("{}\n")
    with pytest.raises(AssertionError, match=r"stream-redis\.json"):
        test_the_library_is_what_the_script_makes()


def test_a_schema_addition_to_a_field_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        make.merge({"properties": {"runPolicy": {}}}, {"properties": {"runPolcy": {"default": "Serial"}}})


# --- kinds

def test_a_build_config_gets_openshifts_defaults(member: Api, project: str) -> None:
    made = member.create(build_config(project, nodeSelector=None))
    assert made["spec"]["runPolicy"] == "Serial"
    assert (made["spec"]["successfulBuildsHistoryLimit"], made["spec"]["failedBuildsHistoryLimit"]) == (5, 5)


def test_an_exported_build_config_can_be_applied_again(member: Api, project: str) -> None:
    wanted = build_config(project, nodeSelector=None, triggers=[
        {"type": "Generic", "generic": {"secretReference": {"name": "hook"}}}], resources={"limits": {"cpu": "1"}})
    first = server_apply(member, wanted)
    again = server_apply(member, wanted)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


@pytest.mark.parametrize(("spec", "said"), [
    ({"runPolicy": "Serrrial"}, 'Unsupported value: "Serrrial"'),
    ({"strategy": {"type": "Sourc"}}, 'Unsupported value: "Sourc"'),
    ({"strategy": {"type": "Source"}}, "must provide a value for one of sourceStrategy"),
    ({"strategy": {"type": "Docker", "sourceStrategy": {"from": {"kind": "DockerImage", "name": "x"}}}},
     "strategy type Docker needs dockerStrategy"),
    ({"source": {"type": "Gti"}}, 'Unsupported value: "Gti"'),
    ({"triggers": [{"type": "Hourly"}]}, 'Unsupported value: "Hourly"'),
    ({"output": {"to": {"kind": "ImageStream", "name": "app"}}}, 'Unsupported value: "ImageStream"'),
])
def test_a_wrong_build_config_is_refused(member: Api, project: str, spec: Manifest, said: str) -> None:
    with pytest.raises(ApiError, match=re.escape(said)) as refused:
        member.create(build_config(project, **spec))
    assert refused.value.status == 422


def test_a_mistyped_field_is_refused_by_name(member: Api, project: str) -> None:
    with pytest.raises(ApiError, match="runPolcy: field not declared in schema"):
        server_apply(member, build_config(project, runPolcy="Serial"))


def test_the_status_of_a_build_is_written_beside_it(admin: Api, project: str) -> None:
    build = {"apiVersion": "build.openshift.io/v1", "kind": "Build", "metadata": {"name": "app-1", "namespace": project},
             "spec": build_config(project)["spec"], "status": {"phase": "Complete"}}
    assert "status" not in admin.create(build)
    admin.patch("Build", "app-1", {"status": {"phase": "Running", "startTimestamp": None}}, project, subresource="status")
    kept = admin.get("Build", "app-1", project)
    assert kept is not None
    assert kept["status"]["phase"] == "Running"
    with pytest.raises(ApiError, match="Unsupported value"):
        admin.patch("Build", "app-1", {"status": {"phase": "Finished"}}, project, subresource="status")


def test_image_streams_take_what_oc_exports(member: Api, project: str) -> None:
    stream = {"apiVersion": "image.openshift.io/v1", "kind": "ImageStream",
              "metadata": {"name": "app", "namespace": project, "creationTimestamp": None},
              "spec": {"lookupPolicy": {"local": True}, "tags": [
                  {"name": "latest", "annotations": None, "from": None, "generation": None, "importPolicy": {},
                   "referencePolicy": {"type": "Source"}}]}}
    assert member.create(stream)["spec"]["tags"][0]["name"] == "latest"


def test_a_return_uri_must_be_one(member: Api, project: str) -> None:
    uri = {"apiVersion": "webservices.cern.ch/v1alpha1", "kind": "OidcReturnURI",
           "metadata": {"name": "app", "namespace": project}, "spec": {"redirectURI": "https://app.localhost/callback/"}}
    member.create(uri)
    with pytest.raises(ApiError, match="redirectURI"):
        member.create(uri | {"metadata": {"name": "b", "namespace": project}, "spec": {"redirectURI": "app.localhost"}})


# --- the namespace openshift

@pytest.mark.parametrize("name", ["redis-ephemeral", "redis-persistent"])
def test_a_redis_template_becomes_objects_that_the_cluster_takes(member: Api, project: str, name: str) -> None:
    template = member.get("Template", name, "openshift")
    assert template is not None
    values = {one["name"]: one.get("value", "generatedPass16") for one in template["parameters"]}
    assert values["REDIS_VERSION"] == "7-el9"
    text = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], json.dumps(template["objects"]))
    for manifest in json.loads(text):
        manifest["metadata"] |= {"namespace": project, "labels": template["labels"]}
        manifest.pop("status", None)
        server_apply(member, manifest, dryRun="All")


def test_the_templates_version_is_a_tag_of_the_image_stream(member: Api) -> None:
    stream = member.get("ImageStream", "redis", "openshift")
    assert stream is not None
    assert {one["name"]: one["from"]["name"] for one in stream["spec"]["tags"]} == {
        "6-el9": "quay.io/sclorg/redis-6-c9s:latest", "7-el9": "quay.io/sclorg/redis-7-c9s:latest", "latest": "6-el9"}


def test_the_builder_imports_the_image_that_the_template_uses(member: Api) -> None:
    def imported() -> bool:
        stream = member.get("ImageStream", "redis", "openshift")
        assert stream is not None
        return any(one["tag"] == "7-el9" and one["items"] for one in (stream.get("status") or {}).get("tags", []))

    wait_until(imported, "openshift/redis:7-el9 to be imported")


# --- rights

def test_a_member_may_what_a_project_admin_may(member: Api, project: str) -> None:
    def may(verb: str, group: str, resource: str, subresource: str = "", namespace: str = project) -> bool:
        review = member.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource,
                                            "subresource": subresource, "namespace": namespace}}})
        return bool(review["status"]["allowed"])

    build, image = "build.openshift.io", "image.openshift.io"

    def granted() -> bool:  # the controller aggregates the roles a moment after they were made
        return (may("create", build, "buildconfigs", "instantiate") and may("get", build, "builds", "log")
                and may("patch", image, "imagestreams") and may("create", "route.openshift.io", "routes")
                and may("create", "webservices.cern.ch", "oidcreturnuris"))

    wait_until(granted, "the aggregated roles")
    assert may("patch", build, "builds", "status")  # cancels a build
    assert not may("create", image, "imagestreams", namespace="openshift")
    assert not may("get", "", "secrets", namespace="openshift")
    assert not may("create", build, "buildconfigs", "instantiate", namespace="default")


def test_everybody_reads_the_catalogue_and_the_storage_classes(stranger: Api) -> None:
    assert {one["metadata"]["name"] for one in stranger.list("Template", "openshift")} >= {"redis-ephemeral"}
    assert stranger.list("ImageStream", "openshift")
    classes = {one["metadata"]["name"]: one for one in stranger.list("StorageClass")}
    assert {"standard", "cephfs", "cephfs-no-backup", "eos"} <= set(classes)
    assert classes["eos"]["provisioner"] == "eosxd.csi.cern.ch"


@pytest.mark.parametrize("kind", ["Namespace", "Node", "PersistentVolume", "ClusterRole", "CustomResourceDefinition",
                                  "MutatingAdmissionPolicy", "Pod", "Route"])
def test_nobody_reads_the_cluster(member: Api, kind: str) -> None:
    with pytest.raises(ApiError) as refused:
        member.list(kind)
    assert refused.value.status == 403


def test_a_stranger_sees_nothing_of_a_project(stranger: Api, project: str) -> None:
    for kind in ("Secret", "BuildConfig", "Route", "Pod"):
        with pytest.raises(ApiError) as refused:
            stranger.list(kind, project)
        assert refused.value.status == 403


# --- policies

def test_a_route_gets_the_projects_address_list(member: Api, project: str) -> None:
    made = server_apply(member, route(project, host="a.localhost"))
    assert made["metadata"]["annotations"][WHITELIST] == "10.0.0.0/8 127.0.0.1"
    owned = json.dumps([entry["fieldsV1"] for entry in made["metadata"]["managedFields"]])
    assert "ip_whitelist" not in owned, "nobody owns the added annotation, so applying again changes nothing"
    again = server_apply(member, route(project, host="a.localhost"))
    assert again["metadata"]["generation"] == made["metadata"]["generation"]
    assert again["metadata"]["annotations"] == made["metadata"]["annotations"]


def test_an_empty_address_list_is_respected_and_a_removed_one_comes_back(member: Api, project: str) -> None:
    made = member.create(route(project, host="b.localhost", annotations={WHITELIST: "", "other": "kept"}))
    assert made["metadata"]["annotations"] == {WHITELIST: "", "other": "kept"}
    changed = member.patch("Route", "app", {"metadata": {"annotations": {WHITELIST: None}}}, project)
    assert changed["metadata"]["annotations"] == {WHITELIST: "10.0.0.0/8 127.0.0.1", "other": "kept"}


def test_a_project_without_a_list_gets_none(admin: Api, project: str) -> None:
    admin.patch("Namespace", project, {"metadata": {"annotations": {DEFAULT_WHITELIST: None}}})

    def open_route() -> bool:  # admission sees the namespace through a cache
        made = server_apply(admin, route(project, host="c.localhost"), dryRun="All")
        return WHITELIST not in made["metadata"].get("annotations", {})

    wait_until(open_route, "the removed default to be seen")


def test_a_route_without_a_host_gets_one(member: Api, project: str) -> None:
    assert member.create(route(project))["spec"]["host"] == f"app-{project}.localhost"


def test_a_reserved_host_is_refused_unless_the_project_is_exempt(admin: Api, member: Api, project: str) -> None:
    with pytest.raises(ApiError, match=r"the host git\.localhost is reserved") as refused:
        member.create(route(project, host="git.localhost"))
    assert refused.value.status == 403
    admin.patch("Namespace", project, {"metadata": {"annotations": {RESERVED_SWITCH: "false"}}})

    def taken() -> bool:
        try:
            server_apply(member, route(project, host="git.localhost"), dryRun="All")
        except ApiError:
            return False
        return True

    wait_until(taken, "the exemption to be seen")


def test_a_wrong_route_is_refused(member: Api, project: str) -> None:
    with pytest.raises(ApiError, match="insecureEdgeTerminationPolicy"):
        member.create(route(project, tls={"termination": "edge", "insecureEdgeTerminationPolicy": "Redirekt"}))


# --- preparing

def test_preparing_again_changes_nothing(admin: Api) -> None:
    kinds = ("CustomResourceDefinition", "ClusterRole", "StorageClass", "MutatingAdmissionPolicy")

    def versions() -> list[tuple[str, str]]:
        return [(one["metadata"]["name"], one["metadata"]["resourceVersion"])
                for kind in kinds for one in admin.list(kind)]

    before = versions()
    cluster.apply_content(admin)
    assert versions() == before
    admin.delete("ConfigMap", cluster.MARKER, "kube-system")
    cluster.apply_content(admin)
    assert versions() == before, "applied in full, and still nothing to change"


def test_a_server_that_does_not_mutate_is_noticed(admin: Api) -> None:
    name = "route-defaults.okd.cern.ch"
    binding = admin.get("MutatingAdmissionPolicyBinding", name)
    assert binding is not None
    cluster.prove_mutation(admin)
    admin.delete("MutatingAdmissionPolicyBinding", name)
    try:
        def noticed() -> bool:
            try:
                cluster.prove_mutation(admin, 0.2)
            except StackError as error:
                assert "--feature-gates=MutatingAdmissionPolicy=true" in str(error)
                return True
            return False
        wait_until(noticed, "the proof to fail")
    finally:
        admin.create({"apiVersion": binding["apiVersion"], "kind": binding["kind"],
                      "metadata": {"name": name}, "spec": binding["spec"]})
    cluster.prove_mutation(admin)
