"""What a fresh API server needs to look like CERN's: OpenShift's kinds and roles, CERN's storage classes and policies.

Stands for: the parts of OKD and of CERN PaaS that a project finds ready. OpenShift's kinds (`stack/openshift/make.py`)
are added to the roles admin, edit and view with the verbs of OpenShift's own roles. Every user who is logged in may
read the storage classes and, in the namespace `openshift`, image streams and templates; nobody but the stack may list
namespaces. A Route gets the host `<route>-<project>.localhost` when it names none, and the address list of its
namespace's annotation `custom-ingress.okd.cern.ch/default-route-ip-whitelist` when it has none; an empty list is
respected. Hosts of the platform itself are reserved.

Differs: at CERN these are webhooks and operators, here admission policies with the same effect. Which names CERN
reserves is not published: here they are the platform's own hosts and some of CERN's. A project is exempt with the
annotation `paas.okd.cern.ch/block-reserved-hostnames: "false"`. There are no security context constraints. A project's
quota comes with its request (`stack/portal/forms.py`). Storage classes have CERN's names; `stack/storage.py` says what
stands behind them.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stack import eos
from stack.api import Api, ApiError, Manifest, wait_until
from stack.errors import StackError
from stack.state import POD_NETWORK, State

MANAGER = "stack"
MARKER = "stack-content"
WHITELIST = "haproxy.router.openshift.io/ip_whitelist"
DEFAULT_WHITELIST = "custom-ingress.okd.cern.ch/default-route-ip-whitelist"
RESERVED_SWITCH = "paas.okd.cern.ch/block-reserved-hostnames"
RESERVED = ("localhost", "git.localhost", "auth.localhost", "portal.localhost", "cern.ch", "www.cern.ch", "home.cern",
            "auth.cern.ch", "paas.cern.ch", "webservices.web.cern.ch")

READ = ["get", "list", "watch"]
WRITE = ["create", "delete", "deletecollection", "patch", "update"]


def prepare(state: State) -> None:
    """Bring the cluster to what the stack promises; one look when it is there already.

    Speaks to the API server itself, because HAProxy in front of it may not run yet. Raises StackError when the server
    does not carry out mutating admission policies, ApiError when it refuses an object.
    """
    apply_content(Api("https://127.0.0.1:6443", state.tokens.admin, state.ca))


def apply_content(api: Api) -> None:
    """Apply what `content` returns as the cluster's administrator, unless its mark is there; see `prepare`."""
    manifests = content()
    version = hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
    marker = api.get("ConfigMap", MARKER, "kube-system")
    if marker is not None and marker["data"].get("version") == version:
        return
    apply_all(api, manifests)
    prove_mutation(api)
    # The mark comes last: what it marks has been seen to work.
    api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MARKER, "namespace": "kube-system"},
               "data": {"version": version}}, MANAGER)


def prove_mutation(api: Api, seconds: float = 20) -> None:
    """Create a Route by dry run and see that the policy changed it.

    Without its feature gate the server takes such policies and does nothing. Raises StackError then.
    """
    route = {"apiVersion": "route.openshift.io/v1", "kind": "Route",
             "metadata": {"name": "proof", "namespace": "openshift"},
             "spec": {"to": {"kind": "Service", "name": "any"}}}

    def mutated() -> bool:
        try:
            made = api.request("POST", "/apis/route.openshift.io/v1/namespaces/openshift/routes", route,
                               query={"dryRun": "All"})
        except ApiError as error:
            if error.status in (404, 429, 503):  # the server is still loading kinds and policies
                return False
            raise
        return WHITELIST in made["metadata"].get("annotations", {})

    try:
        wait_until(mutated, "the Route policy to act", seconds)
    except TimeoutError as error:
        raise StackError(
            "the API server does not carry out mutating admission policies; start it with both "
            "--feature-gates=MutatingAdmissionPolicy=true and "
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true") from error


def content() -> list[Manifest]:
    """Return all objects of the stack's own, definitions of kinds included."""
    files = sorted(Path(__file__).with_name("openshift").glob("*.json"))
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "openshift", "annotations": {DEFAULT_WHITELIST: f"127.0.0.0/8 {POD_NETWORK}"}}},
        *(json.loads(file.read_text()) for file in files), *roles(), *storage_classes(), *policies(), *eos.policies()]


def imported() -> list[str]:
    """Return the images that the image streams of the namespace `openshift` import."""
    return [tag["from"]["name"] for manifest in content() if manifest["kind"] == "ImageStream"
            for tag in manifest["spec"]["tags"] if tag["from"]["kind"] == "DockerImage"]


def roles() -> list[Manifest]:
    """Return OpenShift's part of the roles admin, edit and view, and what every user may read."""
    full: list[tuple[str, list[str], list[str]]] = [
        ("build.openshift.io", ["buildconfigs", "buildconfigs/webhooks", "builds"], READ + WRITE),
        ("build.openshift.io", ["buildconfigs/instantiate", "buildconfigs/instantiatebinary", "builds/clone"],
         ["create"]),
        ("build.openshift.io", ["builds/details"], ["update"]),
        # Not OpenShift's: there a build is cancelled by a change of the Build; here its status is a subresource.
        ("build.openshift.io", ["builds/status"], ["patch", "update"]),
        ("image.openshift.io", ["imagestreamimages", "imagestreammappings", "imagestreams", "imagestreams/secrets",
                                "imagestreamtags", "imagetags"], READ + WRITE),
        ("image.openshift.io", ["imagestreamimports"], ["create"]),
        ("image.openshift.io", ["imagestreams/layers"], ["get", "update"]),
        ("route.openshift.io", ["routes"], READ + WRITE),
        ("route.openshift.io", ["routes/custom-host"], ["create", "patch", "update"]),
        ("template.openshift.io", ["processedtemplates", "templateconfigs", "templateinstances", "templates"],
         READ + WRITE),
        ("webservices.cern.ch", ["oidcreturnuris"], READ + WRITE),
        ("apps.openshift.io", ["deploymentconfigs", "deploymentconfigs/scale"], READ + WRITE),
    ]
    read: list[tuple[str, list[str], list[str]]] = [
        ("build.openshift.io", ["buildconfigs", "buildconfigs/webhooks", "builds", "builds/log"], READ),
        ("image.openshift.io", ["imagestreamimages", "imagestreammappings", "imagestreams", "imagestreamtags",
                                "imagetags"], READ),
        ("image.openshift.io", ["imagestreams/status", "imagestreams/layers"], ["get"]),
        ("route.openshift.io", ["routes", "routes/status"], READ),
        ("template.openshift.io", ["processedtemplates", "templateconfigs", "templateinstances", "templates"], READ),
        ("webservices.cern.ch", ["oidcreturnuris"], READ),
        ("apps.openshift.io", ["deploymentconfigs", "deploymentconfigs/scale"], READ),
    ]

    def rules(of: list[tuple[str, list[str], list[str]]]) -> list[Manifest]:
        return [{"apiGroups": [group], "resources": resources, "verbs": verbs} for group, resources, verbs in of]

    rbac = "rbac.authorization.k8s.io/v1"
    everybody = [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}]
    aggregated = [{"apiVersion": rbac, "kind": "ClusterRole", "rules": rules(of), "metadata": {
        "name": f"openshift-aggregate-to-{role}",
        "labels": {f"rbac.authorization.k8s.io/aggregate-to-{role}": "true"}}}
        for role, of in (("admin", full), ("edit", full), ("view", read))]
    return [
        *aggregated,
        # The names are OpenShift's own.
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "basic-user"},
         "rules": rules([("storage.k8s.io", ["storageclasses"], READ)])},
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": "basic-users"}, "subjects": everybody,
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "basic-user"}},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "system:image-puller"},
         "rules": rules([("image.openshift.io", ["imagestreams/layers"], ["get"])])},
        {"apiVersion": rbac, "kind": "Role", "metadata": {"name": "shared-resource-viewer", "namespace": "openshift"},
         "rules": rules([("template.openshift.io", ["templates"], READ),
                         ("image.openshift.io", ["imagestreamimages", "imagestreams", "imagestreamtags", "imagetags"],
                          READ),
                         ("image.openshift.io", ["imagestreams/layers"], ["get"])])},
        {"apiVersion": rbac, "kind": "RoleBinding", "subjects": everybody,
         "metadata": {"name": "shared-resource-viewers", "namespace": "openshift"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "shared-resource-viewer"}},
    ]


def storage_classes() -> list[Manifest]:
    """Return the storage classes that CERN offers, `standard` being the default."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    classes = {"standard": "cinder.csi.openstack.org", "cephfs": "cephfs.manila.csi.openstack.org",
               "cephfs-no-backup": "cephfs.manila.csi.openstack.org", "eos": "eosxd.csi.cern.ch"}
    return [{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": provisioner,
             "metadata": {"name": name, "annotations": default if name == "standard" else {}},
             "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate", "allowVolumeExpansion": name != "eos"}
            for name, provisioner in classes.items()]


def policies() -> list[Manifest]:
    """Return the admission policies, each with its binding."""
    admission = "admissionregistration.k8s.io"
    routes = {"resourceRules": [{"apiGroups": ["route.openshift.io"], "apiVersions": ["v1"],
                                 "operations": ["CREATE", "UPDATE"], "resources": ["routes"]}]}
    annotation = f"namespaceObject.metadata.?annotations[?'{DEFAULT_WHITELIST}']"
    key = WHITELIST.replace("/", "~1")
    whitelist = f"""
        !{annotation}.hasValue() || '{WHITELIST}' in object.metadata.?annotations.orValue({{}}) ? [] :
        has(object.metadata.annotations)
        ? [JSONPatch{{op: "add", path: "/metadata/annotations/{key}", value: {annotation}.value()}}]
        : [JSONPatch{{op: "add", path: "/metadata/annotations", value: {{"{WHITELIST}": {annotation}.value()}}}}]
        """
    host = """
        object.spec.?host.orValue("") != "" ? [] :
        [JSONPatch{op: "add", path: "/spec/host", value: object.metadata.name + "-" + request.namespace + ".localhost"}]
        """
    # For its first seconds an API server answers 503 to what such a policy matches, until it knows the kind's schema:
    # the condition keeps that away from Routes that have all they need.
    lacking = {"name": "lacks-a-default", "expression":
               f"!('{WHITELIST}' in object.metadata.?annotations.orValue({{}})) || object.spec.?host.orValue('') == ''"}
    mutating = {"matchConstraints": routes, "matchConditions": [lacking],
                "failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression": " ".join(text.split())}} for text in (whitelist, host)]}
    reserved = json.dumps(list(RESERVED))
    validating = {"matchConstraints": routes, "failurePolicy": "Fail", "validations": [{
        "expression": f"!(object.spec.?host.orValue('') in {reserved}) || "
                      f"namespaceObject.metadata.?annotations[?'{RESERVED_SWITCH}'].orValue('true') == 'false'",
        "messageExpression": "'the host ' + object.spec.host + ' is reserved; choose another spec.host'",
        "reason": "Forbidden"}]}
    return [
        {"apiVersion": f"{admission}/v1beta1", "kind": "MutatingAdmissionPolicy",
         "metadata": {"name": "route-defaults.okd.cern.ch"}, "spec": mutating},
        {"apiVersion": f"{admission}/v1beta1", "kind": "MutatingAdmissionPolicyBinding",
         "metadata": {"name": "route-defaults.okd.cern.ch"}, "spec": {"policyName": "route-defaults.okd.cern.ch"}},
        {"apiVersion": f"{admission}/v1", "kind": "ValidatingAdmissionPolicy",
         "metadata": {"name": "reserved-hostnames.okd.cern.ch"}, "spec": validating},
        {"apiVersion": f"{admission}/v1", "kind": "ValidatingAdmissionPolicyBinding",
         "metadata": {"name": "reserved-hostnames.okd.cern.ch"},
         "spec": {"policyName": "reserved-hostnames.okd.cern.ch", "validationActions": ["Deny"]}},
    ]


def apply_all(api: Api, manifests: list[Manifest]) -> None:
    """Apply in parallel, as the cluster's administrator: first what others need, then the rest."""
    custom = ("ImageStream", "Template", "Role", "RoleBinding")  # these wait for kinds and for the namespace
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda manifest: _apply(api, manifest), [m for m in manifests if m["kind"] not in custom]))
        list(pool.map(lambda manifest: _apply(api, manifest), [m for m in manifests if m["kind"] in custom]))


def _apply(api: Api, manifest: Manifest) -> None:
    """Apply one object, patiently: a new kind is served a moment after its definition."""
    what = f"{manifest['kind']} {manifest['metadata']['name']}"

    def applied() -> bool:
        try:
            api.apply(manifest, MANAGER)
        except ApiError as error:
            if error.status in (404, 429, 503):
                return False
            raise StackError(f"the API server refuses the stack's own {what}: {error}") from error
        return True

    wait_until(applied, f"the API server to take {what}", 30)
