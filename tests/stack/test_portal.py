"""The portal's process: forms, Git and sign-on, each with what it must refuse."""

import base64
import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import urllib3
from joserfc import jwk, jwt

from stack.api import wait_until
from stack.portal import repositories
from stack.state import MEMBER, State

pytestmark = pytest.mark.needs("cluster", "portal", "sign-on", "databases")

ROOT = Path(__file__).parents[2]
CALLBACK = "https://app.localhost/accounts/oidc/cern/login/callback/"
FORM = {"identifier": "certhelper-dev", "name": "Certification helper", "redirect_uris": [CALLBACK], "roles": ["shifter", "admin"]}


class Alone:
    """The portal's process without a cluster; a TCP port in front of its Unix socket stands for the router."""

    def __init__(self, root: Path) -> None:
        self.state = State(root)
        root.mkdir(mode=0o700)
        self.state.keep_tokens()
        self.front = socket.create_server(("127.0.0.1", 0))
        self.port = self.front.getsockname()[1]
        self.state.write_json("ports.json", {"api": 0, "http": 0, "https": self.port, "databases": []})
        self.state.write("pki/ca.crt", "")
        self.http = urllib3.HTTPConnectionPool("127.0.0.1", self.port, retries=False, timeout=60)
        threading.Thread(target=self._accept, daemon=True).start()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "stack.portal", str(self.state.root)], cwd=ROOT,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        def answers():
            assert self.process.poll() is None, self.process.stdout.read()
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.state.portal_socket))
                return True

        wait_until(answers, "the portal")

    def stop(self) -> str:
        self.process.terminate()
        out, _ = self.process.communicate(timeout=60)
        return out

    def restart(self) -> None:
        self.stop()
        self.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.front.accept()
                behind = socket.socket(socket.AF_UNIX)
                with contextlib.suppress(OSError):
                    behind.connect(str(self.state.portal_socket))
                for source, sink in ((client, behind), (behind, client)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def request(self, method, host, path, headers=None, **more):
        sent = {"Host": f"{host}:{self.port}", "X-Forwarded-Proto": "https", **(headers or {})}
        return self.http.request(method, path, headers=sent, redirect=False, **more)

    def form(self, form, values, token=None):
        token = self.state.tokens.member if token is None else token
        answer = self.request("POST", "portal.localhost", f"/{form}", {"Authorization": f"Bearer {token}"}, json=values)
        return answer.status, answer.json()

    def url(self, name, user="", password=""):
        who = f"{user}:{password}@" if user else ""
        return f"http://{who}git.localhost:{self.port}/{name}.git"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    portal = Alone(tmp_path_factory.mktemp("p") / "state")
    yield portal
    out = portal.stop()
    portal.front.close()
    assert "Traceback" not in out, out


@pytest.fixture
def registered(alone):
    status, answer = alone.form("registrations", FORM)
    assert status in (200, 201), answer
    return answer


def git(*arguments, cwd=None, env=None):
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1",
           "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
           **(env or {})}
    return subprocess.run(["git", *arguments], cwd=cwd, env=env, text=True, capture_output=True, timeout=60,
                          check=False)


def cloned(url, folder, *options):
    done = git("clone", "-q", *options, url, str(folder))
    assert done.returncode == 0, done.stderr
    return folder


# -- who may come in


@pytest.mark.parametrize("given", ["", "wrong", None])
def test_the_portal_is_for_the_member_only(alone, given):
    headers = {} if given is None else {"Authorization": f"Bearer {given}"}
    for method, path in (("GET", "/"), ("GET", "/registrations"), ("POST", "/registrations"),
                         ("DELETE", "/registrations/certhelper-dev")):
        answer = alone.request(method, "portal.localhost", path, headers)
        assert answer.status == 401
        assert "member" in answer.json()["error"]


def test_a_person_sees_in_a_browser_what_was_requested(page_of_forms):
    status, page = page_of_forms
    assert status == 200
    assert "Register an application" in page


@pytest.fixture
def page_of_forms(stack):
    basic = "Basic " + base64.b64encode(f"me:{stack.state.tokens.member}".encode()).decode()
    answer = outside(stack).request("GET", "/", headers={"Host": portal_host(stack), "Authorization": basic})
    return answer.status, answer.data.decode()


def test_another_host_is_not_served(alone):
    assert alone.request("GET", "elsewhere.localhost", "/").status == 404


def test_a_form_from_another_sites_page_is_refused(alone):
    basic = "Basic " + base64.b64encode(f"me:{alone.state.tokens.member}".encode()).decode()
    answer = alone.request("POST", "portal.localhost", "/registrations",
                           {"Authorization": basic, "Content-Type": "text/plain"}, body=json.dumps(FORM))
    assert answer.status == 415


# -- registrations


@pytest.mark.parametrize(("changed", "said"), [
    ({"identifier": "Certhelper"}, "small letter"),
    ({"identifier": "1app"}, "small letter"),
    ({"identifier": "ab"}, "3 to 32"),
    ({"identifier": "a" * 33}, "3 to 32"),
    ({"identifier": "a/../b"}, "small letter"),
    ({"identifier": MEMBER}, "name of a user"),
    ({"identifier": None}, "lacks identifier"),
    ({"name": ""}, "lacks name"),
    ({"redirect_uris": []}, "at least one"),
    ({"redirect_uris": ["http://app.localhost/"]}, "https"),
    ({"redirect_uris": ["https://app.localhost/*"]}, "without *"),
    ({"redirect_uri": CALLBACK}, "no field redirect_uri"),
    ({"category": "Secret"}, "Official or Personal or Test"),
])
def test_a_registration_that_the_portal_refuses(alone, changed, said):
    status, answer = alone.form("registrations", FORM | {"identifier": "another", "name": "Another"} | changed)
    assert 400 <= status < 500
    assert said in answer["error"]
    assert answer["error"].endswith(".")


def test_a_registration_is_made_once_changed_and_removed(alone):
    values = FORM | {"identifier": "once", "name": "Once"}
    status, first = alone.form("registrations", values)
    assert (status, first["client_id"]) == (201, "once")
    assert first["issuer"] == alone.state.issuer
    # Who was interrupted before he noted the secret reads it on the registration's page again.
    assert alone.form("registrations", values) == (200, first)
    status, moved = alone.form("registrations", values | {"redirect_uris": ["https://other.localhost/"]})
    assert (status, moved["client_secret"]) == (200, first["client_secret"])
    status, answer = alone.form("registrations", values | {"identifier": "twice"})
    assert (status, "unique" in answer["error"]) == (409, True)
    mail = alone.state.path("mail", "registration-once.txt")
    assert first["client_secret"] in mail.read_text()
    assert stat.S_IMODE(mail.stat().st_mode) == 0o600
    headers = {"Authorization": f"Bearer {alone.state.tokens.member}"}
    looked = alone.request("GET", "portal.localhost", "/registrations/once", headers)
    assert looked.json()["redirect_uris"] == ["https://other.localhost/"]
    assert first["client_secret"] not in looked.data.decode()
    assert [alone.request("DELETE", "portal.localhost", "/registrations/once", headers).status for _ in "12"] == [200, 404]
    assert not mail.exists()


# -- sign-on


def discovery(alone):
    answer = alone.request("GET", "auth.localhost", "/auth/realms/cern/.well-known/openid-configuration")
    assert answer.status == 200
    return answer.json()


def authorize(alone, client="certhelper-dev", redirect=CALLBACK, user=MEMBER):
    """Do what a browser does: ask, pick a user, and follow nothing."""
    query = urlencode({"client_id": client, "redirect_uri": redirect, "response_type": "code",
                       "scope": "openid profile email", "state": "s-1", "nonce": os.urandom(8).hex()})
    path = urlsplit(discovery(alone)["authorization_endpoint"]).path + "?" + query
    asked = alone.request("GET", "auth.localhost", path)
    if asked.status != 200:
        return asked
    return alone.request("POST", "auth.localhost", path, fields={"sub": user}, encode_multipart=False)


def code_of(answer):
    assert answer.status == 302, answer.data
    assert answer.headers["Location"].startswith(CALLBACK + "?")
    query = parse_qs(urlsplit(answer.headers["Location"]).query)
    assert query["state"] == ["s-1"]
    return query["code"][0]


def token(alone, code, client, secret, *, redirect=CALLBACK, basic=True):
    fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect}
    headers = {}
    if basic:
        headers = {"Authorization": "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()}
    else:
        fields |= {"client_id": client} | ({"client_secret": secret} if secret is not None else {})
    path = urlsplit(discovery(alone)["token_endpoint"]).path
    return alone.request("POST", "auth.localhost", path, headers, fields=fields, encode_multipart=False)


@pytest.mark.parametrize("basic", [True, False])
def test_a_user_signs_on(alone, registered, basic):
    addresses = discovery(alone)
    assert addresses["issuer"] == f"https://auth.localhost:{alone.port}/auth/realms/cern"
    code = code_of(authorize(alone))
    answer = token(alone, code, registered["client_id"], registered["client_secret"], basic=basic)
    assert answer.status == 200, answer.data
    keys = jwk.KeySet.import_key_set(alone.request("GET", "auth.localhost", urlsplit(addresses["jwks_uri"]).path).json())
    claims = jwt.decode(answer.json()["id_token"], keys).claims
    assert (claims["iss"], claims["sub"], claims["preferred_username"]) == (addresses["issuer"], MEMBER, MEMBER)
    assert claims["aud"] in ("certhelper-dev", ["certhelper-dev"])
    assert claims["cern_roles"] == ["shifter"]
    info = alone.request("GET", "auth.localhost", urlsplit(addresses["userinfo_endpoint"]).path,
                         {"Authorization": f"Bearer {answer.json()['access_token']}"}).json()
    assert (info["sub"], info["email"], info["cern_roles"]) == (MEMBER, f"{MEMBER}@cern.localhost", ["shifter"])
    # A code is good for one time.
    assert token(alone, code, registered["client_id"], registered["client_secret"]).status == 400


def test_only_registered_redirect_addresses_are_followed(alone, registered):
    for wrong in ("https://evil.localhost/", CALLBACK + "more", CALLBACK.replace("https", "http")):
        answer = authorize(alone, redirect=wrong)
        assert answer.status == 400
        assert "Location" not in answer.headers


def test_unknown_clients_and_users_are_refused(alone, registered):
    answer = authorize(alone, client="nobody")
    assert (answer.status, "Location" in answer.headers) == (400, False)
    answer = authorize(alone, user="mallory")
    assert (answer.status, "Location" in answer.headers) == (403, False)


@pytest.mark.parametrize(("secret", "basic"), [("wrong", True), ("wrong", False), (None, False), ("", True)])
def test_a_code_is_worth_nothing_without_the_secret(alone, registered, secret, basic):
    answer = token(alone, code_of(authorize(alone)), "certhelper-dev", secret, basic=basic)
    assert answer.status in (400, 401)
    assert answer.json()["error"] in ("invalid_client", "invalid_grant")


def test_a_code_belongs_to_its_client_and_address(alone, registered):
    code = code_of(authorize(alone))
    _, other = alone.form("registrations", FORM | {"identifier": "other-app", "name": "Other"})
    assert token(alone, code, "other-app", other["client_secret"]).status == 400
    code = code_of(authorize(alone))
    assert token(alone, code, "certhelper-dev", registered["client_secret"], redirect=CALLBACK + "x").status == 400


def test_the_packages_open_doors_are_closed(alone):
    for method, path in (("POST", "/oauth2/clients"), ("PUT", f"/users/{MEMBER}"), ("GET", "/oidc/login"), ("GET", "/"),
                         ("POST", "/auth/realms/cern/oauth2/clients"), ("GET", "/auth/realms/cern/console")):
        assert alone.request(method, "auth.localhost", path, json={} if method != "GET" else None).status == 404


def test_registrations_and_the_signing_key_survive_a_restart(alone, registered):
    certs = urlsplit(discovery(alone)["jwks_uri"]).path
    before = alone.request("GET", "auth.localhost", certs).json()
    alone.restart()
    assert alone.request("GET", "auth.localhost", certs).json() == before
    answer = token(alone, code_of(authorize(alone)), "certhelper-dev", registered["client_secret"])
    assert answer.status == 200


# -- Git


def test_everybody_clones_the_example(alone, tmp_path):
    work = cloned(alone.url("example"), tmp_path / "main")
    assert (work / "openshift-start-up-script.sh").stat().st_mode & stat.S_IXUSR
    assert not list(work.rglob("__pycache__"))
    published = {path.relative_to(repositories.EXAMPLE) for path in repositories.EXAMPLE.rglob("*")
                 if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(work) for path in work.rglob("*") if path.is_file() and ".git" not in path.parts} == published
    other = cloned(alone.url("example"), tmp_path / "develop", "--branch=develop", "--depth=1")
    assert git("rev-parse", "HEAD", cwd=other).stdout == git("rev-parse", "HEAD", cwd=work).stdout


def pushed(work, url, content=b"x"):
    (work / "file").write_bytes(content)
    git("add", "file", cwd=work)
    git("commit", "-q", "-m", "More", cwd=work)
    # A small post buffer makes Git send the pack in chunks.
    return git("-c", "http.postBuffer=65536", "push", "-q", url, "HEAD:refs/heads/feature", cwd=work)


def test_the_member_pushes_with_his_token(alone, tmp_path):
    work = cloned(alone.url("example"), tmp_path / "work")
    done = pushed(work, alone.url("example", "git", alone.state.tokens.member), os.urandom(3_000_000))
    assert done.returncode == 0, done.stderr
    again = cloned(alone.url("example"), tmp_path / "again", "--branch=feature")
    assert (again / "file").stat().st_size == 3_000_000


@pytest.mark.parametrize(("user", "password"), [("", ""), ("git", "wrong"), ("deploy", "")])
def test_nobody_else_pushes(alone, tmp_path, user, password):
    work = cloned(alone.url("example"), tmp_path / "work")
    password = password or repositories.deploy_token(alone.state)["password"]
    before = git("ls-remote", alone.url("example")).stdout
    assert pushed(work, alone.url("example", user, password)).returncode != 0
    assert git("ls-remote", alone.url("example")).stdout == before


def test_a_private_repository_needs_credentials(alone, tmp_path):
    repositories.make(alone.state, "private/app")
    work = cloned(alone.url("example"), tmp_path / "work")
    assert pushed(work, alone.url("private/app", "git", alone.state.tokens.member)).returncode == 0
    token = repositories.deploy_token(alone.state)
    kept = alone.state.git / "deploy-token.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    options = ("--branch=feature",)
    cloned(alone.url("private/app", token["username"], token["password"]), tmp_path / "by-deploy-token", *options)
    cloned(alone.url("private/app", "git", alone.state.tokens.member), tmp_path / "by-member", *options)
    for url in (alone.url("private/app"), alone.url("private/app", "deploy", "wrong"),
                alone.url("private/app", "git", token["password"])):
        assert git("clone", "-q", url, str(tmp_path / "refused")).returncode != 0
    assert pushed(work, alone.url("private/app", token["username"], token["password"]), b"y").returncode != 0


@pytest.mark.parametrize("path", ["/deploy-token.json", "/example.git/config", "/example.git/HEAD", "/../tokens.json",
                                  "/private/../example.git/config", "/example.git/objects/info/packs", "/none.git/HEAD",
                                  "/private/none.git/info/refs?service=git-upload-pack", "/example.git/info/refs"])
def test_no_file_is_served(alone, path):
    assert alone.request("GET", "git.localhost", path).status in (403, 404)


def test_the_first_commit_depends_on_the_content_only(tmp_path):
    commits = set()
    for number in range(2):
        state = State(tmp_path / str(number))
        folder = tmp_path / f"example-{number}"
        shutil.copytree(repositories.EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        commits.add(repositories.publish_example(state, folder))
        commits.add(repositories.publish_example(state, folder))  # unchanged: nothing new
    assert len(commits) == 1


def test_changed_content_comes_on_top_and_moved_branches_stay(tmp_path):
    state, folder = State(tmp_path / "state"), tmp_path / "example"
    folder.mkdir()
    (folder / "app.py").write_text("1\n")
    first = repositories.publish_example(state, folder)
    bare = str(state.git / "example.git")
    work = cloned(bare, tmp_path / "work", "--branch=develop")
    (work / "own.py").write_text("own\n")
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "Own work", cwd=work)
    assert git("push", "-q", "origin", "develop", cwd=work).returncode == 0
    own = git("rev-parse", "HEAD", cwd=work).stdout.strip()
    (folder / "app.py").write_text("2\n")
    second = repositories.publish_example(state, folder)
    heads = dict(reversed(line.split("\t")) for line in git("ls-remote", "--heads", bare).stdout.splitlines())
    assert heads == {"refs/heads/main": second, "refs/heads/training": second, "refs/heads/develop": own}
    assert git("-C", bare, "rev-parse", f"{second}^").stdout.strip() == first


def test_a_branch_that_an_older_stack_did_not_have_is_added(tmp_path):
    state, folder = State(tmp_path / "state"), tmp_path / "example"
    folder.mkdir()
    (folder / "app.py").write_text("1\n")
    commit = repositories.publish_example(state, folder)
    bare = str(state.git / "example.git")
    git("-C", bare, "update-ref", "-d", "refs/heads/training")
    assert repositories.publish_example(state, folder) == commit
    assert git("-C", bare, "rev-parse", "refs/heads/training").stdout.strip() == commit


# -- what needs the whole stack: projects, databases, the way through the router


def portal_host(stack):
    return f"portal.localhost:{stack.state.ports.https}"


def outside(stack, host="portal.localhost"):
    return urllib3.HTTPSConnectionPool("127.0.0.1", stack.state.ports.https, ca_certs=str(stack.state.ca),
                                       server_hostname=host, assert_hostname=host, retries=False, timeout=180)


def asked(stack, method, path, values=None):
    headers = {"Host": portal_host(stack), "Authorization": f"Bearer {stack.state.tokens.member}"}
    more = {} if values is None else {"json": values}
    answer = outside(stack).request(method, path, headers=headers, **more)
    return answer.status, answer.json()


PROJECT = {"name": "portal-test", "type": "PaaS Web Application", "category": "Test", "owner": "somebody",
           "description": "A test", "administrators": "a-group"}


def test_a_project_is_requested_used_and_deleted(stack):
    try:
        status, made = asked(stack, "POST", "/projects", PROJECT)
        assert (status, made["category"], made["owner"]) == (201, "Test", "somebody")
        assert asked(stack, "POST", "/projects", PROJECT) == (200, made)
        assert asked(stack, "GET", "/projects/portal-test") == (200, made)
        notes = stack.api.get("Namespace", "portal-test")["metadata"]["annotations"]
        assert notes["openshift.io/requester"] == MEMBER
        assert "10.244.0.0/24" in notes["custom-ingress.okd.cern.ch/default-route-ip-whitelist"].split()
        stack.member.create({"apiVersion": "v1", "kind": "ConfigMap",
                             "metadata": {"name": "mine", "namespace": "portal-test"}})
    finally:
        gone = asked(stack, "DELETE", "/projects/portal-test")
    assert gone == (200, {"removed": "portal-test"})
    assert stack.api.get("Namespace", "portal-test") is None
    assert asked(stack, "GET", "/projects/portal-test")[0] == 404


@pytest.mark.parametrize(("changed", "status", "said"), [
    ({"name": "Portal"}, 400, "small letters"),
    ({"name": "a_b"}, 400, "small letters"),
    ({"name": "-a"}, 400, "small letters"),
    ({"name": "a" * 64}, 400, "at most 63"),
    ({"name": "default"}, 409, "taken"),
    ({"name": "kube-system"}, 409, "taken"),
    ({"type": "Drupal"}, 400, "PaaS Web Application"),
    ({"category": "Other"}, 400, "Official or Personal or Test"),
    ({"owner": ""}, 400, "lacks owner"),
    ({"quota": "1"}, 400, "no field quota"),
])
def test_a_project_that_the_portal_refuses(stack, changed, status, said):
    got, answer = asked(stack, "POST", "/projects", PROJECT | changed)
    assert (got, said in answer["error"]) == (status, True), answer
    assert stack.api.get("Namespace", "portal-test") is None


def test_only_what_was_requested_here_can_be_deleted(stack):
    assert asked(stack, "DELETE", "/projects/default")[0] == 404
    assert stack.api.get("Namespace", "default")


def test_a_database_is_requested_opened_and_dropped(stack):
    values = {"name": "portal_test", "type": "PostgreSQL", "owner": "somebody"}
    try:
        status, made = asked(stack, "POST", "/databases", values)
        assert (status, made["host"], made["networks"]) == (201, "dbod-portal-test.localhost", ["127.0.0.1/32"])
        assert made["port"] in stack.state.ports.databases
        assert asked(stack, "POST", "/databases", values) == (200, made)
        status, answer = asked(stack, "POST", "/databases", values | {"port": made["port"] + 1})
        assert (status, "has the port" in answer["error"]) == (409, True)
        access = {"name": "portal_test", "network": "10.244.0.0/24"}
        assert [asked(stack, "POST", "/database-access", access)[0] for _ in "12"] == [201, 200]
        assert asked(stack, "GET", "/databases/portal_test")[1]["networks"] == ["127.0.0.1/32", "10.244.0.0/24"]
        assert asked(stack, "POST", "/database-access", access | {"network": "10.244.0.1/24"})[0] == 400
    finally:
        assert asked(stack, "DELETE", "/databases/portal_test")[0] == 200
    assert asked(stack, "GET", "/databases/portal_test")[0] == 404


@pytest.mark.parametrize(("form", "values", "status"), [
    ("databases", {"name": "1db", "type": "PostgreSQL", "owner": "x"}, 400),
    ("databases", {"name": "../db", "type": "PostgreSQL", "owner": "x"}, 400),
    ("databases", {"name": "mydb", "type": "MySQL", "owner": "x"}, 400),
    ("databases", {"name": "mydb", "type": "PostgreSQL", "owner": "x", "port": 1}, 409),
    ("database-access", {"name": "nodb", "network": "10.0.0.0/8"}, 404),
    ("nothing", {}, 404),
])
def test_a_database_form_that_the_portal_refuses(stack, form, values, status):
    got, answer = asked(stack, "POST", f"/{form}", values)
    assert (got, answer["error"][-1]) == (status, "."), answer


def test_git_and_sign_on_answer_through_the_router(stack, tmp_path):
    url = stack.state.url("git.localhost") + "/example.git"
    done = git("clone", "-q", url, str(tmp_path / "clone"), env={"GIT_SSL_CAINFO": str(stack.state.ca)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clone" / "manage.py").exists()
    host = f"auth.localhost:{stack.state.ports.https}"
    path = urlsplit(stack.state.issuer).path + "/.well-known/openid-configuration"
    answer = outside(stack, "auth.localhost").request("GET", path, headers={"Host": host})
    assert answer.json()["issuer"] == stack.state.issuer
