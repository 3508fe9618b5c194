"""The configuration of HAProxy, through which everything is reached: the API, Routes, Services, database ports.

Stands for: OpenShift's router (HAProxy too, with the same semantics of a Route), the load balancer in front of the API
with the aggregated build API behind it, kube-proxy, and the network between CERN's services and the cluster.
`render` is a function from values to text; `stack/router.py` finds the values and reloads HAProxy.

Differs: sessions are not sticky and requests go to endpoints by turns; HTTP/2 is not offered; a Route is served with
edge termination or without TLS, with a certificate of the local CA in place of its own, and without weights
(`alternateBackends`). A Service's connections come to the pod from the bridge's address, and UDP is not forwarded.
From the host every client is 127.0.0.1; one more port plays the world outside: its clients say with the PROXY protocol
which address they come from, as behind a load balancer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stack import certificates
from stack.state import API_CLUSTER_ADDRESS, OUTSIDE_ADDRESS, Ports, State

PLATFORM_HOSTS = ("git.localhost", "auth.localhost", "portal.localhost")
"""Hosts behind the router that the portal's process serves."""

MASTER = "run/master.sock"
"""Where the master takes commands, below the stack's folder."""

UNAVAILABLE = ("<html><head><title>Application is not available</title></head><body><h1>Application is not available"
               "</h1><p>The application is currently not serving requests at this endpoint. It may not have been "
               "started or is still starting.</p></body></html>")


@dataclass(frozen=True)
class Endpoint:
    """Where one ready pod listens."""

    address: str
    port: int


@dataclass(frozen=True)
class Web:
    """An admitted Route."""

    name: str
    """`namespace:route`."""
    host: str
    path: str
    endpoints: tuple[Endpoint, ...]
    certificate: str
    """Path of certificate and key, one file; empty for a Route without TLS."""
    insecure: str
    """What happens to plain HTTP: `Redirect`, `Allow` (also of a Route without TLS) or `None` (503)."""
    timeout: str = ""
    """How long the application may take to answer, as HAProxy writes it; empty for the router's 30 s."""
    tunnel: str = ""
    """How long a websocket may be silent; empty for the router's hour."""
    allowed: tuple[str, ...] = ()
    """Client networks; all others are dropped without an answer. Empty lets everybody in."""


@dataclass(frozen=True)
class Address:
    """One port of a Service that has ready endpoints."""

    name: str
    """`namespace:service:port`."""
    address: str
    port: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Frame:
    """What stays the same as long as the stack runs."""

    sockets: Mapping[str, int]
    """Sockets opened in the host's network: `api`, `http`, `https`, `database-0` …, and their file descriptors."""
    ports: Ports
    ca: str
    api_certificate: str
    router_certificate: str


def initial(state: State, sockets: Mapping[str, int]) -> str:
    """Return the configuration to start with, without Routes and Services; makes the two certificates."""
    return render(frame(state, sockets))


def frame(state: State, sockets: Mapping[str, int]) -> Frame:
    """Return the frame of a stack; makes the certificates of the API and of the platform's hosts when missing."""
    certificates.issue(state, "api", ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
                                      "kubernetes.default.svc.cluster.local", "127.0.0.1", API_CLUSTER_ADDRESS])
    certificates.issue(state, "router", ["localhost", *PLATFORM_HOSTS, "127.0.0.1", OUTSIDE_ADDRESS])
    return Frame(sockets, state.ports, str(state.ca), str(state.path("pki", "api.pem")),
                 str(state.path("pki", "router.pem")))


def render(of: Frame, routes: Iterable[Web] = (), services: Iterable[Address] = ()) -> str:
    """Return the whole configuration; the same values give the same text, whatever their order."""
    # The longer path wins; HAProxy takes the first rule that matches.
    webs = sorted(routes, key=lambda web: (web.host, -len(web.path), web.path, web.name))
    addresses = sorted(services, key=lambda one: one.name)
    parts = [GLOBAL, _api(of), _router(of, webs), *(_web(web) for web in webs), _ENDS, _databases(of),
             *(_address(one) for one in addresses)]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


GLOBAL = """
global
    nbthread 2
    maxconn 1000
    no strict-limits
    # Sockets are handed to the new process on a reload; the path is relative because such paths must be short.
    stats socket unix@run/haproxy.sock mode 600 level admin expose-fd listeners
    # After a reload the former process serves its open connections (websockets) this much longer.
    hard-stop-after 1h
    ssl-default-bind-options ssl-min-ver TLSv1.2
    log stdout format raw local0 notice

defaults
    mode http
    # Without it the events of a watch wait for more to be sent, up to 0.2 s each.
    option http-no-delay
    # After a reload a client that still has a connection is answered once more on it, and told to come anew.
    option idle-close-on-response
    option redispatch
    retries 3
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
    timeout http-request 10s
    timeout http-keep-alive 5m
"""

BUILDER_PATHS = (r"^/apis/build\.openshift\.io/v1/namespaces/[^/]+/(buildconfigs/[^/]+/(instantiate|instantiatebinary"
                  r"|webhooks/[^/]+/[^/]+)|builds/[^/]+/log)/?$")


def _api(of: Frame) -> str:
    crt = _quoted(of.api_certificate)
    return f"""
frontend api
    # No HTTP/2: its connections end at a reload, and kubectl cannot send again what it was sending.
    bind fd@{of.sockets["api"]} ssl crt {crt} alpn http/1.1
    bind {API_CLUSTER_ADDRESS}:443 ssl crt {crt} alpn http/1.1
    timeout client 1h
    use_backend builder if {{ path_reg {_quoted(BUILDER_PATHS)} }}
    default_backend api

backend api
    timeout server 1h
    # Exec and port-forward upgrade the connection, which HTTP/2 cannot carry.
    server api 127.0.0.1:6443 ssl verify required ca-file {_quoted(of.ca)} alpn http/1.1

backend builder
    timeout server 1h
    server builder unix@run/builder.sock
"""


def _router(of: Frame, webs: list[Web]) -> str:
    certificates_of = dict.fromkeys([of.router_certificate, *(web.certificate for web in webs if web.certificate)])
    crt = " ".join(f"crt {_quoted(path)}" for path in certificates_of)
    platform = "{ req.hdr(host),host_only -i " + " ".join(PLATFORM_HOSTS) + " }"
    port = "" if of.ports.https == 443 else f":{of.ports.https}"

    def forwarded(scheme: str) -> list[str]:
        return ["option forwardfor",
                "http-request del-header Proxy",
                f"http-request set-header X-Forwarded-Proto {scheme}",
                "http-request set-header X-Forwarded-Host %[req.hdr(host)]",
                "http-request set-header X-Forwarded-Port %[dst_port]"]

    # `redirect scheme` would keep the port of plain HTTP.
    redirect = f"http-request redirect location https://%[req.hdr(host),host_only]{port}%[pathq] code 302 if"
    plain = [f"bind fd@{of.sockets['http']}", f"bind {OUTSIDE_ADDRESS}:{of.ports.http}", *forwarded("http"),
             f"{redirect} {platform}"]
    outside = [f"bind fd@{of.sockets['outside']} accept-proxy ssl {crt} alpn http/1.1"] if "outside" in of.sockets else []
    secure = [f"bind fd@{of.sockets['https']} ssl {crt} alpn http/1.1", *outside,
              f"bind {OUTSIDE_ADDRESS}:{of.ports.https} ssl {crt} alpn http/1.1", *forwarded("https"),
              f"use_backend platform if {platform}"]
    for web in webs:
        condition = "{ req.hdr(host),host_only -i " + web.host + " }"
        if web.path.rstrip("/"):
            path = web.path.rstrip("/")
            condition = (f"{condition} {{ path {_quoted(path)} }} || "
                         f"{condition} {{ path_beg {_quoted(path + '/')} }}")
        plain += {"Redirect": [f"use_backend redirect if {condition}"],
                  "Allow": [f"use_backend route:{web.name} if {condition}"]}.get(web.insecure, [])
        if web.certificate:
            secure += [f"use_backend route:{web.name} if {condition}"]
    lines = ["frontend http", *(f"    {line}" for line in [*plain, "default_backend unavailable"]), "",
             "frontend https", *(f"    {line}" for line in [*secure, "default_backend unavailable"]), "",
             "backend redirect", f"    {redirect.removesuffix(' if')}"]
    return "\n".join(lines)


def _web(web: Web) -> str:
    lines = [f"backend route:{web.name}"]
    if web.allowed:
        lines += [f"tcp-request content reject if !{{ src {' '.join(web.allowed)} }}"]
    lines += [f"timeout server {web.timeout}"] if web.timeout else []
    lines += [f"timeout tunnel {web.tunnel}"] if web.tunnel else []
    lines += [_server(endpoint) for endpoint in web.endpoints] or [_RETURN_503]
    return "\n    ".join(lines)


_RETURN_503 = f"http-request return status 503 content-type text/html string {UNAVAILABLE!r} hdr Cache-Control no-cache"

_ENDS = f"""
backend unavailable
    {_RETURN_503}

backend platform
    timeout server 1h
    server portal unix@run/portal.sock
"""


def _databases(of: Frame) -> str:
    names = sorted(name for name in of.sockets if name.startswith("database-"))
    return "\n".join(_stream(name, f"fd@{of.sockets[name]}",
                             [Endpoint("127.0.0.1", of.ports.databases[int(name.removeprefix("database-"))])])
                     for name in names)


def _address(one: Address) -> str:
    return _stream(f"service:{one.name}", f"{one.address}:{one.port}", one.endpoints)


def _stream(name: str, bind: str, endpoints: Iterable[Endpoint]) -> str:
    return "\n    ".join([f"listen {name}", "mode tcp", f"bind {bind}", "no option http-no-delay",
                          "no option idle-close-on-response", "retries 0", "option clitcpka",
                          "option srvtcpka", "timeout client 24h", "timeout server 24h",
                          *(_server(one) for one in endpoints)]) + "\n"


def _server(endpoint: Endpoint) -> str:
    where = f"{endpoint.address}:{endpoint.port}"
    return f"server {where} {where}"


def _quoted(text: str) -> str:
    """Quote a word so that HAProxy takes every sign of it as it is."""
    return "'" + text.replace("'", "'\\''") + "'"
