"""HAProxy's configuration on the compose stack: before MicroShift's API and router, the portal and the database.

The same addresses as on the embedded stack, so that instances, steps and tests need not know which one it is. Who comes
with a token of the stack's is known here and asked for by impersonation, because MicroShift takes no file of tokens; all
others (service accounts, say) come to the API server as they are, and it judges them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from stack.haproxy import BUILDER_PATHS, GLOBAL, PLATFORM_HOSTS
from stack.state import Ports


@dataclass(frozen=True)
class Front:
    """Where everything is."""

    sockets: Mapping[str, int]
    """Sockets opened by the launcher: `api`, `http`, `https`, `database-0` …, and their file descriptors."""
    ports: Ports
    gateway: str
    """This machine's address in the containers' network, where pods find it; empty when there is none to listen on."""
    api: int
    """Ports on the loopback at which the containers are published."""
    router: int
    postgres: int
    name: str
    """The host name that MicroShift's certificate for its API has."""
    ca: str
    """Paths: MicroShift's CA, the administrator's certificate and key in one file, and the users by their tokens."""
    client: str
    users: str
    api_certificate: str
    databases: Collection[int]
    """Ports of the database instances that were requested: nothing answers at the others."""
    certificates: Iterable[str]
    """Paths of the certificates for hosts behind the router."""


def render(of: Front) -> str:
    """Return the whole configuration."""
    crt, hosts = _quoted(of.api_certificate), " ".join(f"crt {_quoted(path)}" for path in of.certificates)
    platform = "{ req.hdr(host),host_only -i " + " ".join(PLATFORM_HOSTS) + " }"
    api = f"127.0.0.1:{of.api} ssl verify required ca-file {_quoted(of.ca)} verifyhost {of.name} sni str({of.name}) alpn http/1.1"

    def outside(port: int) -> str:
        return f"    bind {of.gateway}:{port}" if of.gateway else ""

    parts = [GLOBAL, f"""
frontend api
    bind fd@{of.sockets["api"]} ssl crt {crt} alpn http/1.1
    timeout client 1h
    use_backend builder if {{ path_reg {_quoted(BUILDER_PATHS)} }}
    # Nobody says of himself who he is.
    http-request del-header Impersonate- -m beg
    http-request set-var(txn.user) http_auth_bearer,map_str({_quoted(of.users)})
    use_backend known if {{ var(txn.user) -m found }}
    default_backend api

backend known
    timeout server 1h
    http-request del-header Authorization
    http-request set-header Impersonate-User %[var(txn.user)]
    http-request set-header Impersonate-Group system:masters if {{ var(txn.user) -m str admin }}
    server api {api} crt {_quoted(of.client)}

backend api
    timeout server 1h
    server api {api}

backend builder
    timeout server 1h
    server builder unix@run/builder.sock
""", f"""
frontend http
    bind fd@{of.sockets["http"]}
{outside(of.ports.http)}
    http-request redirect location https://%[req.hdr(host),host_only]:{of.ports.https}%[pathq] code 302

frontend https
    bind fd@{of.sockets["https"]} ssl {hosts} alpn http/1.1
{outside(of.ports.https) + f" ssl {hosts} alpn http/1.1" if of.gateway else ""}
{f"    bind fd@{of.sockets['outside']} accept-proxy ssl {hosts} alpn http/1.1" if "outside" in of.sockets else ""}
    option forwardfor
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend platform if {platform}
    default_backend router

backend platform
    timeout server 1h
    server portal unix@run/portal.sock

backend router
    timeout server 1h
    timeout tunnel 1h
    # MicroShift's router has a certificate of its own for every host: the reader's is the local CA's, made here.
    server router 127.0.0.1:{of.router} ssl verify none sni req.hdr(host),host_only
"""]
    for name, number in sorted(of.sockets.items()):
        if name.startswith("database-"):
            port = of.ports.databases[int(name.removeprefix("database-"))]
            parts.append(f"""
listen {name}
    mode tcp
    bind fd@{number}
{outside(port)}
    no option http-no-delay
    no option idle-close-on-response
    timeout client 24h
    timeout server 24h
    {f"server postgres 127.0.0.1:{of.postgres}" if port in of.databases else "tcp-request connection reject"}
""")
    return "\n".join("\n".join(line for line in part.strip("\n").splitlines() if line.strip()) + "\n" for part in parts)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
