"""A container's environment as the kubelet puts it together: services, then `envFrom`, then `env`, each over the last."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping

from stack.api import Manifest

Fetch = Callable[[str, str], Manifest | None]
"""Returns a Secret or ConfigMap (kind, name) of the pod's own namespace."""

_SUFFIXES = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "Ki": 2.0**10, "Mi": 2.0**20,
             "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


class ConfigError(Exception):
    """A container cannot be configured; the text is the kubelet's message (CreateContainerConfigError)."""


def environment(pod: Manifest, container: Manifest, services: Iterable[Manifest], fetch: Fetch) -> dict[str, str]:
    """Return what Kubernetes adds to the environment of a container's image.

    `services` are those of the pod's namespace and `kubernetes` of the namespace default. Raises ConfigError when a
    Secret, a ConfigMap or a key in one is missing and not optional.
    """
    found = service_links(pod, services)
    for source in container.get("envFrom", []):
        kind = "Secret" if "secretRef" in source else "ConfigMap"
        data = values(kind, source.get("secretRef") or source["configMapRef"], fetch)
        found |= {source.get("prefix", "") + key: value.decode(errors="replace") for key, value in data.items()}
    for entry in container.get("env", []):
        value = _value(pod, container, entry, found, fetch)
        if value is not None:
            found[entry["name"]] = value
    return found


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace $(NAME) by the value of a known name; $$ is a dollar sign."""
    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])
    return re.sub(r"\$\$|\$\(([^()]+)\)", replace, text)


def values(kind: str, reference: Manifest, fetch: Fetch) -> dict[str, bytes]:
    """Return all of a Secret's or ConfigMap's data; nothing when it is missing and optional."""
    name = reference["name"]
    found = fetch(kind, name)
    if found is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    texts = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return texts | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def field(pod: Manifest, path: str) -> str:
    """Return the value of a `fieldRef`; raises ConfigError for a path that the downward API has not."""
    metadata, status = pod["metadata"], pod.get("status", {})
    known = {"metadata.name": metadata["name"], "metadata.namespace": metadata["namespace"],
             "metadata.uid": metadata["uid"], "spec.nodeName": pod["spec"].get("nodeName", ""),
             "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
             "status.podIP": status.get("podIP", ""), "status.podIPs": status.get("podIP", ""),
             "status.hostIP": status.get("hostIP", ""), "status.hostIPs": status.get("hostIP", "")}
    if path in known:
        return str(known[path])
    if one := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str(metadata.get(one[1], {}).get(one[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        items = sorted((metadata.get(path.partition(".")[2]) or {}).items())
        return "\n".join(f'{key}="{value}"' for key, value in items)
    raise ConfigError(f"unsupported fieldPath: {path}")


def resource(container: Manifest, reference: Manifest) -> str:
    """Return the value of a `resourceFieldRef`, 0 where nothing is set, rounded up to whole divisors."""
    section, _, name = reference["resource"].partition(".")
    amount = container.get("resources", {}).get(section, {}).get(name, "0")
    divisor = quantity(str(reference.get("divisor") or "1")) or 1
    return str(math.ceil(quantity(str(amount)) / divisor))


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number: `500m` is 0.5, `1Ki` is 1024."""
    parts = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]*)", text)
    if not parts or parts[2] not in _SUFFIXES:
        raise ConfigError(f"not a quantity: {text}")
    return float(parts[1]) * _SUFFIXES[parts[2]]


def service_links(pod: Manifest, services: Iterable[Manifest]) -> dict[str, str]:
    """Return the variables that announce services, as `REDIS_SERVICE_HOST` and `REDIS_PORT=tcp://…`."""
    found: dict[str, str] = {}
    own = pod["metadata"]["namespace"] if pod["spec"].get("enableServiceLinks", True) else None
    for service in services:
        about, spec = service["metadata"], service["spec"]
        address, ports = spec.get("clusterIP"), spec.get("ports")
        master = (about["namespace"], about["name"]) == ("default", "kubernetes")
        if not address or address == "None" or not ports or not (master or about["namespace"] == own):
            continue
        name = about["name"].upper().replace("-", "_")
        found |= {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(ports[0]["port"])}
        for number, port in enumerate(ports):
            protocol = port.get("protocol", "TCP")
            if port.get("name"):
                found[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
            url = f"{protocol.lower()}://{address}:{port['port']}"
            if number == 0:
                found[f"{name}_PORT"] = url
            prefix = f"{name}_PORT_{port['port']}_{protocol}"
            found |= {prefix: url, f"{prefix}_PROTO": protocol.lower(), f"{prefix}_PORT": str(port["port"]),
                      f"{prefix}_ADDR": address}
    return found


def _value(pod: Manifest, container: Manifest, entry: Manifest, known: Mapping[str, str], fetch: Fetch) -> str | None:
    """Return the value of one `env` entry, or None when it is optional and missing."""
    source = entry.get("valueFrom")
    if not source:
        return expand(entry.get("value", ""), known)
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource(container, source["resourceFieldRef"])
    kind = "Secret" if "secretKeyRef" in source else "ConfigMap"
    reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
    if not reference:
        raise ConfigError(f"the source of variable {entry['name']} is not known here: {', '.join(source)}")
    data = values(kind, reference, fetch)
    if reference["key"] not in data:
        if reference.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {reference['key']} in {kind} {pod['metadata']['namespace']}/"
                          f"{reference['name']}")
    return data[reference["key"]].decode(errors="replace")
