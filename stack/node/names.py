"""The names that resolve inside pods: services of the cluster, and what lies outside it, as an /etc/hosts per pod."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from stack.api import Manifest
from stack.state import OUTSIDE_ADDRESS, State

PLATFORM = ("git.localhost", "auth.localhost", "portal.localhost")
_DOMAIN = "svc.cluster.local"


class Names:
    """What every pod can find by name."""

    def __init__(self, state: State) -> None:
        self.services: dict[str, Manifest] = {}
        self.routes: dict[str, Manifest] = {}
        self._state = state
        self._lock = threading.Lock()

    def keep(self, kept: dict[str, Manifest], event: str, item: Manifest) -> bool:
        """Take over one event of a watch into `services` or `routes`; return whether it can change a name."""
        with self._lock:
            uid = item["metadata"]["uid"]
            before = kept.pop(uid, None) if event == "DELETED" else kept.get(uid)
            if event != "DELETED":
                kept[uid] = item
            return before is None or event == "DELETED" or before["spec"] != item["spec"]

    def of_services(self) -> list[Manifest]:
        """Return all services known now."""
        with self._lock:
            return list(self.services.values())

    def outside(self) -> list[str]:
        """Return the names of what lies outside the cluster: platform, databases, the router's hosts."""
        databases = self._state.databases
        found = [f"dbod-{path.name}.localhost" for path in sorted(databases.iterdir())] if databases.is_dir() else []
        with self._lock:
            routes = sorted({str(route["spec"]["host"]) for route in self.routes.values() if route["spec"].get("host")})
        return list(dict.fromkeys([*PLATFORM, *found, *routes]))

    def hosts(self, namespace: str, hostname: str, address: str, aliases: Iterable[Manifest] = ()) -> str:
        """Return the text of a pod's /etc/hosts."""
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", f"{address} {hostname}"]
        for service in sorted(self.of_services(), key=lambda each: (each["metadata"]["namespace"],
                                                                    each["metadata"]["name"])):
            name, project = service["metadata"]["name"], service["metadata"]["namespace"]
            if service["spec"].get("clusterIP", "None") not in ("", "None"):
                short = [name] if project == namespace else []
                known = [*short, f"{name}.{project}", f"{name}.{project}.svc", f"{name}.{project}.{_DOMAIN}"]
                lines.append(f"{service['spec']['clusterIP']} {' '.join(known)}")
        # One name a line: some resolvers stop reading a line that is too long.
        lines += [f"{OUTSIDE_ADDRESS} {name}" for name in self.outside()]
        extra: dict[str, list[str]] = defaultdict(list)
        for alias in aliases:
            extra[alias["ip"]] += alias.get("hostnames", [])
        lines += [f"{ip} {' '.join(names)}" for ip, names in extra.items()]
        return "\n".join(lines) + "\n"


def write_hosts(path: Path, text: str) -> None:
    """Change a hosts file in place: running pods have this very file mounted, and would not see another one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = text.encode()
    if not path.exists() or path.read_bytes() != content:
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(content)
            file.truncate()
