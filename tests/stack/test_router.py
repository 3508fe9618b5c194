"""The way in: HAProxy as configured by the stack serves the API, Routes and Services as OpenShift does."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websocket

from stack import binaries, cluster, commands, haproxy, router, services
from stack.api import Api, ApiError, Manifest, wait_until
from stack.haproxy import Address, Endpoint, Frame, Web
from stack.state import API_CLUSTER_ADDRESS, NODE_ADDRESS, OUTSIDE_ADDRESS, POD_NETWORK, Ports, State

pytestmark = pytest.mark.needs("cluster", "node", "router", "addresses")

GOLDEN = Path(__file__).with_name("haproxy.golden.cfg")
FRAME = Frame({"api": 5, "http": 6, "https": 7, "outside": 9, "database-0": 8}, Ports(6443, 8080, 8443, 8444, [5501]),
              "/state/pki/ca.crt", "/state/pki/api.pem", "/state/pki/router.pem")
WEBS = [
    Web("dev:app", "app.localhost", "", (Endpoint("10.244.0.5", 8080), Endpoint("10.244.0.6", 8080)),
        "/state/pki/route-app.localhost.pem", "Redirect", timeout="5m", tunnel="2h",
        allowed=("127.0.0.0/8", "10.244.0.0/24")),
    Web("dev:docs", "app.localhost", "/it's docs/", (Endpoint("10.244.0.7", 80),),
        "/state/pki/route-app.localhost.pem", "None"),
    Web("dev:plain", "plain.localhost", "", (), "", "Allow"),
]
ADDRESSES = [Address("dev:redis:6379", "10.96.4.4", 6379, (Endpoint("10.244.0.9", 6379),))]


# --- values to text

def test_the_configuration_is_as_written_down() -> None:
    text = haproxy.render(FRAME, WEBS, ADDRESSES)
    if os.environ.get("RENEW_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_order_of_routes_and_services_does_not_matter() -> None:
    more = [*ADDRESSES, Address("a:b:1", "10.96.4.5", 1, (Endpoint("10.244.0.9", 1),))]
    assert haproxy.render(FRAME, WEBS[::-1], more) == haproxy.render(FRAME, WEBS, more[::-1])


def about(name: str, namespace: str, host: str, second: int, path: str = "", **spec: Any) -> Manifest:
    return {"metadata": {"name": name, "namespace": namespace, "uid": f"{namespace}/{name}",
                         "creationTimestamp": f"2026-01-01T00:00:{second:02}Z"},
            "spec": {"host": host, "path": path, "to": {"kind": "Service", "name": "app"}} | spec}


@pytest.mark.parametrize(("routes", "refused"), [
    ([about("a", "x", "h.localhost", 1), about("b", "y", "h.localhost", 2)],
     {"y/b": "a route in another namespace holds h.localhost and is older than b"}),
    ([about("a", "x", "h.localhost", 3), about("b", "y", "H.localhost", 2)],
     {"x/a": "a route in another namespace holds h.localhost and is older than a"}),
    ([about("a", "x", "h.localhost", 1), about("b", "y", "h.localhost", 2, "/docs")],
     {"y/b": "a route in another namespace holds h.localhost and is older than b"}),
    ([about("a", "x", "h.localhost", 1), about("b", "x", "h.localhost", 2, "/docs")], {}),
    ([about("a", "x", "h.localhost", 1, "/docs/"), about("b", "x", "h.localhost", 2, "/docs")],
     {"x/b": "route a already exposes h.localhost/docs and is older"}),
    ([about("a", "x", "", 1)], {"x/a": "no host value was defined for the route"}),
    ([about("a", "x", "h\n  stats enable", 1)], {"x/a": "is not valid"}),
    ([about("a", "x", "h.localhost", 1, "/a b")], {"x/a": "is not valid"}),
    ([about("a", "x", "git.localhost", 1)], {"x/a": "the platform itself holds git.localhost"}),
    ([about("a", "x", "h.localhost", 1, tls={"termination": "passthrough"})], {"x/a": "use edge"}),
    ([about("a", "x", "h.localhost", 1, wildcardPolicy="Subdomain")], {"x/a": "wildcard"}),
])
def test_the_oldest_route_wins(routes: list[Manifest], refused: dict[str, str]) -> None:
    verdicts = router.admit(routes)
    assert {uid for uid, verdict in verdicts.items() if not verdict.admitted} == set(refused)
    for uid, message in refused.items():
        assert message in verdicts[uid].message


SLICE = {"metadata": {"namespace": "x", "labels": {"kubernetes.io/service-name": "app"}}, "addressType": "IPv4",
         "ports": [{"name": "8080-tcp", "port": 8080}, {"name": "metrics", "port": 9090}],
         "endpoints": [{"addresses": ["10.244.0.5"], "conditions": {"ready": True}},
                       {"addresses": ["10.244.0.6"], "conditions": {"ready": False}}]}


@pytest.mark.parametrize(("port", "found"), [
    ("8080-tcp", [("10.244.0.5", 8080)]), (9090, [("10.244.0.5", 9090)]), (None, [("10.244.0.5", 8080)]), ("web", [])])
def test_traffic_goes_to_ready_endpoints_of_the_named_port(port: Any, found: list[tuple[str, int]]) -> None:
    assert [(one.address, one.port) for one in router._endpoints([SLICE], port)] == found


@pytest.mark.parametrize(("value", "taken"), [
    ("5m", "5m"), ("3000", "3000"), ("400d", "2147483647ms"), ("5 m", ""), ("", ""), ("0s", ""), ("1s\nx", "")])
def test_times_are_taken_as_openshift_takes_them(value: str, taken: str) -> None:
    assert router._time(value) == taken


@pytest.mark.parametrize(("value", "taken"), [
    ("", ()), ("10.0.0.0/8  127.0.0.1", ("10.0.0.0/8", "127.0.0.1/32")), ("0.0.0.0/0 ::/0", ("0.0.0.0/0", "::/0")),
    ("10.0.0.0/8 cern.ch", ())])
def test_an_address_list_with_a_fault_counts_for_nothing(value: str, taken: tuple[str, ...]) -> None:
    assert router._networks(value) == taken


def test_services_without_address_or_endpoints_have_no_listener() -> None:
    def service(name: str, address: str, port: str = "8080-tcp") -> Manifest:
        return {"metadata": {"namespace": "x", "name": name},
                "spec": {"clusterIP": address, "ports": [{"name": port, "port": 80}]}}

    other = SLICE | {"metadata": {"namespace": "x", "labels": {"kubernetes.io/service-name": "kubernetes"}}}
    found = router.addresses([service("app", "10.96.1.1"), service("app", "None"), service("app", "10.96.1.2", "web"),
                              service("none", "10.96.1.3"), service("kubernetes", API_CLUSTER_ADDRESS)], [SLICE, other])
    assert found == [Address("x:app:80", "10.96.1.1", 80, (Endpoint("10.244.0.5", 8080),))]


# --- the real thing

UPSTREAM = """
import http, json, sys, time
from websockets.sync.server import serve
from websockets.http11 import Response
from websockets.datastructures import Headers

def request(connection, asked):
    if asked.headers.get("Upgrade", "").lower() == "websocket":
        return None
    if asked.path.startswith("/slow"):
        time.sleep(3)
    told = json.dumps({"name": sys.argv[2], "path": asked.path, "headers": dict(asked.headers.raw_items()),
                       "from": connection.socket.getpeername()[0]}).encode()
    return Response(200, "OK", Headers({"Content-Length": str(len(told)), "Connection": "close"}), told)

def echo(connection):
    for message in connection:
        connection.send(message)

with serve(echo, "10.244.0.1", int(sys.argv[1]), process_request=request) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


@dataclass
class Site:
    """A namespace whose Service leads to a small server inside the stack's network, and ways to ask it."""

    state: State
    api: Api
    namespace: str

    def inside(self, *argv: str) -> list[str]:
        """Return a command that runs in the stack's network, which HAProxy's master is in: its workers come and go."""
        master = next(row["pid"] for row in commands.status(self.state)["parts"] if row["part"] == "haproxy")
        user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        return ["nsenter", "-t", str(master), *user, "-n", *argv]

    @contextlib.contextmanager
    def upstream(self, port: int, name: str = "one") -> Iterator[None]:
        """Run a server on the bridge's address that tells what it was asked, and echoes websockets."""
        process = subprocess.Popen(self.inside(sys.executable, "-c", UPSTREAM, str(port), name), text=True,
                                   stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.terminate()
            process.wait(10)

    def service(self, name: str = "app") -> str:
        """Make a Service without selector; return its address."""
        made = self.api.create({"apiVersion": "v1", "kind": "Service", "metadata": {
            "name": name, "namespace": self.namespace}, "spec": {"ports": [{"name": "web", "port": 80}]}})
        return str(made["spec"]["clusterIP"])

    def endpoints(self, port: int, *, name: str = "app", ready: bool = True) -> None:
        """Say that a pod at the bridge's address serves the Service."""
        self.api.apply({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                        "metadata": {"name": name, "namespace": self.namespace,
                                     "labels": {"kubernetes.io/service-name": name}},
                        "ports": [{"name": "web", "port": port, "protocol": "TCP"}],
                        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": ready}}]}, "test")

    def route(self, host: str, annotations: dict[str, str] | None = None, name: str = "app",
              service: str = "app") -> None:
        """Make an edge Route to the Service."""
        self.api.create({
            "apiVersion": "route.openshift.io/v1", "kind": "Route",
            "metadata": {"name": name, "namespace": self.namespace, "annotations": annotations or {}},
            "spec": {"host": host, "to": {"kind": "Service", "name": service}, "port": {"targetPort": "web"},
                     "tls": {"termination": "edge", "insecureEdgeTerminationPolicy": "Redirect"}}})

    def admitted(self, name: str = "app") -> dict[str, Any]:
        """Return the Admitted condition, when the router has written one."""
        found = self.api.get("Route", name, self.namespace)
        assert found is not None
        for ingress in (found.get("status") or {}).get("ingress", []):
            return dict(ingress["conditions"][0]) | {"canonical": ingress["routerCanonicalHostname"]}
        return {}

    def get(self, host: str, path: str = "/", *, plain: bool = False) -> tuple[int, dict[str, str], str]:
        """Ask as a browser does, the certificate checked for the host; return status, headers and text."""
        ports = self.state.ports
        raw = socket.create_connection(("127.0.0.1", ports.http if plain else ports.https), timeout=60)
        context = ssl.create_default_context(cafile=str(self.state.ca))
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.sock = raw if plain else context.wrap_socket(raw, server_hostname=host)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read().decode()
        finally:
            connection.close()
            raw.close()

    def answers(self, host: str, status: int, seconds: float = 60) -> str:
        """Wait until the router gives this status for the host; return the text."""
        def asked() -> tuple[str] | None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                found, _, text = self.get(host)
                return (text,) if found == status else None
            return None
        return str(wait_until(asked, f"{status} from {host}", seconds, 0.02)[0])


@pytest.fixture
def site(stack: Any) -> Iterator[Site]:
    api = Api(stack.state.server, stack.state.tokens.admin, stack.state.ca)
    cluster.prove_mutation(api)  # a server that has just started answers 503 to new Routes
    name = f"router-{uuid.uuid4().hex[:8]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield Site(stack.state, api, name)
    api.delete("Namespace", name)


@pytest.fixture
def host(site: Site) -> str:
    return f"{site.namespace}.localhost"


def test_a_route_answers_over_https_with_the_local_authority(site: Site, host: str) -> None:
    site.service()
    site.route(host)
    assert "Application is not available" in site.answers(host, 503)
    with site.upstream(18101):
        site.endpoints(18101)
        told = json.loads(site.answers(host, 200))
    sent = {name.lower(): value for name, value in told["headers"].items()}
    assert (sent["x-forwarded-proto"], sent["x-forwarded-for"]) == ("https", "127.0.0.1")
    assert (sent["x-forwarded-host"], sent["x-forwarded-port"]) == (host, str(site.state.ports.https))
    condition = wait_until(site.admitted, "the Route's status")
    assert (condition["status"], condition["canonical"]) == ("True", "router-default.localhost")


def test_plain_http_is_sent_to_the_https_port(site: Site, host: str) -> None:
    site.service()
    site.route(host)
    site.answers(host, 503)
    status, headers, _ = site.get(host, "/a?b=1", plain=True)
    assert (status, headers["location"]) == (302, f"https://{host}:{site.state.ports.https}/a?b=1")
    status, headers, _ = site.get("git.localhost", "/x", plain=True)
    assert (status, headers["location"]) == (302, f"https://git.localhost:{site.state.ports.https}/x")


def test_an_unknown_host_is_not_available(site: Site, host: str) -> None:
    raw = socket.create_connection(("127.0.0.1", site.state.ports.http), timeout=60)
    with raw:
        raw.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        assert b"503" in raw.recv(100)
    with pytest.raises(ssl.SSLCertVerificationError):
        site.get(host)


def test_the_router_follows_the_endpoints_there_and_back(site: Site, host: str) -> None:
    site.service()
    site.route(host)
    site.answers(host, 503)
    with site.upstream(18102, "first"), site.upstream(18110, "second"):
        site.endpoints(18102)
        assert json.loads(site.answers(host, 200))["name"] == "first"
        site.endpoints(18110)
        wait_until(lambda: json.loads(site.answers(host, 200))["name"] == "second", "the other endpoint to answer")
        site.endpoints(18110, ready=False)
        site.answers(host, 503)


def test_a_client_that_is_not_listed_gets_no_answer(site: Site, host: str) -> None:
    site.service()
    site.endpoints(18103)
    site.route(host, {"haproxy.router.openshift.io/ip_whitelist": POD_NETWORK})
    with site.upstream(18103):
        wait_until(site.admitted, "the Route's status")

        def dropped() -> bool:
            try:
                site.get(host)
            except (http.client.RemoteDisconnected, ConnectionResetError, ssl.SSLEOFError):
                return True
            except ssl.SSLError:  # not known yet: another host's certificate
                return False
            return False
        wait_until(dropped, "an empty reply")
        # From inside, through the bridge's address, the same request is let in.
        curl = ["curl", "-sS", "--cacert", str(site.state.ca), "--interface", NODE_ADDRESS, "--resolve",
                f"{host}:{site.state.ports.https}:{OUTSIDE_ADDRESS}", site.state.url(host)]
        told = json.loads(subprocess.run(site.inside(*curl), capture_output=True, check=True, timeout=60).stdout)
        assert {name.lower(): value for name, value in told["headers"].items()}["x-forwarded-for"] == NODE_ADDRESS
        site.api.patch("Route", "app", {"metadata": {"annotations": {
            "haproxy.router.openshift.io/ip_whitelist": f"{POD_NETWORK} 127.0.0.1"}}}, site.namespace)
        site.answers(host, 200)


@pytest.mark.fault(36)
def test_the_timeout_of_a_route_is_kept(site: Site, host: str) -> None:
    site.service()
    site.endpoints(18104)
    site.route(host, {"haproxy.router.openshift.io/timeout": "1s"})
    with site.upstream(18104):
        site.answers(host, 200)
        assert site.get(host, "/slow")[0] == 504
        site.api.patch("Route", "app", {"metadata": {"annotations": {"haproxy.router.openshift.io/timeout": "9s"}}},
                       site.namespace)
        wait_until(lambda: site.get(host, "/slow")[0] == 200, "the longer timeout")


def test_a_host_belongs_to_the_older_route(site: Site, stack: Any, host: str) -> None:
    other = Site(stack.state, site.api, f"{site.namespace}-b")
    site.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}})
    try:
        with site.upstream(18105, "older"), other.upstream(18106, "younger"):
            site.service()
            site.endpoints(18105)
            site.route(host)
            other.service()
            other.endpoints(18106)
            created = site.api.get("Route", "app", site.namespace)
            assert created is not None
            # Timestamps have whole seconds; the younger must be younger by one.
            wait_until(lambda: int(time.time()) > _seconds(created), "the next second")
            other.route(host)
            claimed = wait_until(other.admitted, "the younger Route's status")
            assert (claimed["status"], claimed["reason"]) == ("False", "HostAlreadyClaimed")
            assert host in claimed["message"]
            assert json.loads(site.answers(host, 200))["name"] == "older"
            site.api.delete("Route", "app", site.namespace)
            wait_until(lambda: other.admitted()["status"] == "True", "the younger Route to be admitted")
            wait_until(lambda: json.loads(site.answers(host, 200))["name"] == "younger", "the younger to answer")
    finally:
        site.api.delete("Namespace", other.namespace)


def _seconds(created: Manifest) -> int:
    stamp = time.strptime(created["metadata"]["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ")
    return int(time.mktime(stamp) - time.timezone)


def test_a_websocket_survives_changes_of_the_router(site: Site, host: str) -> None:
    def open_websocket() -> websocket.WebSocket:
        """Connect by a client of one thread: one that reads in a second thread loses an answer in 700 to TLS 1.3."""
        raw = socket.create_connection(("127.0.0.1", site.state.ports.https), timeout=60)
        secure = ssl.create_default_context(cafile=str(site.state.ca)).wrap_socket(raw, server_hostname=host)
        return websocket.create_connection(site.state.url(host).replace("https:", "wss:") + "/ws", socket=secure)

    site.service()
    site.endpoints(18107)
    site.route(host)
    with site.upstream(18107):
        site.answers(host, 200)
        with contextlib.closing(open_websocket()) as opened:
            opened.send("before")
            assert opened.recv() == "before"
            site.route(f"other-{host}", name="other")
            site.answers(f"other-{host}", 200)
            opened.send("after")
            assert opened.recv() == "after"


def test_no_request_fails_while_the_router_changes(site: Site, host: str) -> None:
    site.service()
    site.endpoints(18108)
    site.route(host)
    failed: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.005):
            try:
                status = site.get(host)[0]
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
            else:
                if status != 200:
                    failed.append(str(status))

    def ask_the_api() -> None:
        """Ask on one connection that is kept: a reload must not close it under the next request."""
        api = Api(site.state.server, site.state.tokens.admin, site.state.ca)
        while not over.wait(random.random() / 100):
            try:
                api.get("ConfigMap", "none", site.namespace)
            except ApiError as error:
                failed.append(str(error))

    with site.upstream(18108):
        site.answers(host, 200)
        asking = [threading.Thread(target=ask), *(threading.Thread(target=ask_the_api) for _ in range(8))]
        for thread in asking:
            thread.start()
        try:
            for number in range(5):
                site.route(f"more-{number}-{host}", name=f"more-{number}")
                site.answers(f"more-{number}-{host}", 200)
        finally:
            over.set()
            for thread in asking:
                thread.join()
    assert not failed


def test_a_service_answers_at_its_address_while_it_has_endpoints(site: Site) -> None:
    address = site.service()
    curl = site.inside("curl", "-sS", "--max-time", "5", f"http://{address}/")

    def answered(status: int) -> bool:
        done = subprocess.run(curl, capture_output=True, check=False, timeout=60)
        assert done.returncode != 1, done.stderr  # nsenter's own
        return done.returncode == status

    assert answered(7), "refused, not silent"
    with site.upstream(18109):
        site.endpoints(18109)
        wait_until(lambda: answered(0), "the Service to answer")
    site.endpoints(18109, ready=False)
    wait_until(lambda: answered(7), "the Service to refuse")


def test_haproxy_has_taken_a_configuration_over_when_the_router_says_so(tmp_path: Path) -> None:
    """As fast as they come: a signal that arrives while HAProxy starts anew would be forgotten."""
    state = State(tmp_path)
    (tmp_path / "run").mkdir()

    def answering(number: int) -> str:
        return ("global\n stats socket unix@run/haproxy.sock mode 600 level admin expose-fd listeners\n"
                "defaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 5s\n"
                f"frontend one\n bind fd@{listening.fileno()}\n"
                f" http-request return status 200 string it-is-{number} content-type text/plain\n")

    def asked() -> str:
        connection = http.client.HTTPConnection(*listening.getsockname(), timeout=60)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        state.write("run/haproxy.cfg", answering(0))
        process = subprocess.Popen(services.proxy(state), cwd=tmp_path, pass_fds=[listening.fileno()],
                                   stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            for number in range(1, 30):
                assert router.load(state, answering(number))
                assert asked() == f"it-is-{number}"
                if number % 10 == 0:  # one it cannot take is no way into a corner
                    assert not router.load(state, answering(number).replace("fd@", "unix@/nowhere/"))
                    assert asked() == f"it-is-{number}"
        finally:
            process.terminate()
            process.wait(10)


def test_events_of_a_watch_come_at_once_through_the_front(site: Site) -> None:
    seen: dict[str, float] = {}
    stop, synced = threading.Event(), threading.Event()

    def watch() -> None:
        for event, item in site.api.watch("ConfigMap", site.namespace, stop=stop):
            if event == "SYNCED":
                synced.set()
            elif item["metadata"]["name"].startswith("mark-"):
                seen[item["metadata"]["name"]] = time.monotonic()
                if len(seen) == 5:
                    return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    assert synced.wait(10)
    sent = {}
    for number in range(5):
        site.api.create({"apiVersion": "v1", "kind": "ConfigMap",
                         "metadata": {"name": f"mark-{number}", "namespace": site.namespace}})
        sent[f"mark-{number}"] = time.monotonic()
    watching.join(10)
    stop.set()
    assert sorted(seen[name] - sent[name] for name in sent)[2] < 0.1, "http-no-delay is off"


def test_the_api_asks_for_a_token_and_passes_it_on(site: Site) -> None:
    with pytest.raises(Exception, match="401"):
        Api(site.state.server, "wrong", site.state.ca).list("Pod", site.namespace)
    curl = site.inside("curl", "-sS", "--cacert", str(site.state.ca), f"https://{API_CLUSTER_ADDRESS}/version")
    assert "gitVersion" in subprocess.run(curl, capture_output=True, check=True, timeout=60, text=True).stdout


@pytest.mark.parametrize(("path", "builder"), [
    ("/apis/build.openshift.io/v1/namespaces/n/buildconfigs/app/instantiate", True),
    ("/apis/build.openshift.io/v1/namespaces/n/buildconfigs/app/webhooks/secret/generic", True),
    ("/apis/build.openshift.io/v1/namespaces/n/builds/app-1/log", True),
    ("/apis/build.openshift.io/v1/namespaces/n/builds/app-1", False),
    ("/apis/build.openshift.io/v1/namespaces/n/builds/app-1/status", False),
    ("/api/v1/namespaces/n/pods/app/log", False),
])
def test_builds_are_started_and_read_at_the_builder(tmp_path: Path, path: str, builder: bool) -> None:
    """A HAProxy of its own, with two answering backends in place of builder and API server."""
    config = haproxy._api(Frame({"api": 0}, Ports(), "ca", "crt", "crt"))
    rule = next(line for line in config.splitlines() if "use_backend builder" in line)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        (tmp_path / "cfg").write_text(
            f"defaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 5s\n"
            f"frontend api\n bind fd@{listening.fileno()}\n{rule}\n default_backend api\n"
            "backend api\n http-request return status 200 string api content-type text/plain\n"
            "backend builder\n http-request return status 200 string builder content-type text/plain\n")
        process = subprocess.Popen([str(binaries.find("haproxy").path), "-f", str(tmp_path / "cfg")],
                                   pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL)
        try:
            connection = http.client.HTTPConnection(*listening.getsockname(), timeout=60)
            connection.request("POST", path)
            assert connection.getresponse().read() == (b"builder" if builder else b"api")
        finally:
            process.terminate()
            process.wait(10)


def test_a_configuration_that_haproxy_refuses_is_not_taken_over(stack: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def refused() -> bool:  # The stack's own router may write at the same moment, and its configuration is a good one.
        text = stack.state.path("run", "haproxy.cfg").read_text()
        return not router.load(stack.state, text + "\nnonsense here\n")

    assert any(refused() for _ in range(5))
    assert "nonsense" not in stack.state.path("run", "haproxy.cfg").read_text()
    assert "HAProxy refuses the configuration" in capfd.readouterr().err


def test_a_part_behind_haproxy_does_not_close_a_connection_that_is_kept_for_the_next_request(stack: Any) -> None:
    with contextlib.ExitStack() as opened:
        kept = []
        for path in (stack.state.builder_socket, stack.state.portal_socket):
            connection = opened.enter_context(contextlib.closing(http.client.HTTPConnection("portal.localhost")))
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("GET", "/")
            connection.getresponse().read()
            kept.append(connection.sock)
        # A server that is not told otherwise closes it after five seconds.
        assert select.select(kept, [], [], 7)[0] == []


def test_a_watch_that_ends_by_whatever_error_is_not_gone_on_without() -> None:
    class Broken:
        def watch(self, *_words: Any, **_options: Any) -> Iterator[Any]:
            raise ValueError("nobody expected it")

    changed = threading.Event()
    follow = router.Follow(Broken(), "Service", changed, threading.Event())  # type: ignore[arg-type]
    assert changed.wait(10)
    assert isinstance(follow.failed, ValueError), "run raises it, and the supervisor starts a router that sees"


def test_what_was_refused_is_tried_again_by_itself(site: Site) -> None:
    hosts = [f"refused-{number}-{site.namespace}.localhost" for number in (1, 2)]
    site.service()
    site.route(hosts[0], name="first")
    site.answers(hosts[0], 503)
    certificate = site.state.path("pki", f"route-{hosts[0]}.pem")
    certificate.write_text("no certificate")
    site.route(hosts[1], name="second")
    refused = site.state.path("run", "haproxy.next.cfg")
    wait_until(lambda: refused.exists() and hosts[1] in refused.read_text(), "the configuration to be refused")
    taken = site.state.path("run", "haproxy.cfg")
    wait_until(lambda: hosts[1] not in taken.read_text(), "the former configuration to be back")
    times: set[int] = set()  # the Route itself and its status make it look twice

    def tried() -> bool:
        times.add(refused.stat().st_mtime_ns)
        return len(times) > 4

    wait_until(tried, "it to be tried again")
    for file in (certificate, certificate.with_suffix(".json")):  # it is made anew
        file.unlink()
    site.answers(hosts[1], 503)
