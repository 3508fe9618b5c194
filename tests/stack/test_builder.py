"""The builder on the real stack: a project member starts builds of a real Git repository served over HTTP.

The repositories need no package, so nothing here needs the package index.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import secrets
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3

from stack import catalogue, commands, sandbox
from stack.api import Api, ApiError, Manifest, wait_until
from stack.builder import layers
from stack.builder.streams import HISTORY
from stack.state import MEMBER, REGISTRY

pytestmark = pytest.mark.needs("cluster", "builder", "inside")

ENDED = ("Complete", "Failed", "Error", "Cancelled")
USER, PASSWORD = "reader", "canary-" + secrets.token_hex(12)


class GitServer:
    """`git http-backend` behind a small HTTP server; what lies below `private/` wants USER and PASSWORD."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(page) -> None:  # noqa: N805
                self._answer(page)

            do_POST = do_GET  # noqa: N815

            def log_message(page, *_: object) -> None:  # noqa: N805
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, page: http.server.BaseHTTPRequestHandler) -> None:
        url = urlsplit(page.path)
        self.requests.append(page.path)
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if url.path.startswith("/private/") and page.headers.get("Authorization") != wanted:
            page.send_response(401)
            page.send_header("WWW-Authenticate", 'Basic realm="git"')
            page.send_header("Content-Length", "0")
            page.end_headers()
            return
        if page.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(page.rfile.readline(), 16):
                body += page.rfile.read(size)
                page.rfile.readline()
        else:
            body = page.rfile.read(int(page.headers.get("Content-Length") or 0))
        environment = os.environ | {
            "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": page.command,
            "PATH_INFO": url.path, "QUERY_STRING": url.query, "CONTENT_TYPE": page.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": page.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": page.headers.get("Git-Protocol", ""), "REMOTE_USER": USER}
        answer = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment, check=False)
        head, _, content = answer.stdout.partition(b"\r\n\r\n")
        headers = [line.partition(": ") for line in head.decode().split("\r\n")]
        status = next((value for name, _, value in headers if name == "Status"), "200 OK")
        page.send_response(int(status.split()[0]))
        for name, _, value in headers:
            if name != "Status":
                page.send_header(name, value)
        page.send_header("Content-Length", str(len(content)))
        page.end_headers()
        page.wfile.write(content)


class Repository:
    """A repository that the test writes and the builder reads."""

    def __init__(self, server: GitServer, name: str) -> None:
        self.path = server.root / f"{name}.git"
        self.uri = f"{server.address}/{name}.git"
        self.path.mkdir(parents=True)
        self._git("init", "-q", "-b", "main", ".")

    def commit(self, files: dict[str, str], message: str = "change", branch: str = "main") -> str:
        if branch != "main":
            self._git("checkout", "-q", "-B", branch)
        for name, text in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
        self._git("add", "--all")
        self._git("commit", "-q", "--allow-empty", "-m", message)
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        identity = {"GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org",
                    "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.org"}
        return subprocess.run(["git", "-C", str(self.path), *arguments], check=True, capture_output=True, text=True,
                              env=os.environ | identity).stdout


APP = {
    ".s2i/environment": "# a comment\nDISABLE_COLLECTSTATIC=true\n\nAPP_SCRIPT=start.sh\n",
    "start.sh": "#!/bin/bash\nexec sleep infinity\n",
    "requirements.txt": "",
}
ASSEMBLE = "#!/bin/bash\nset -euo pipefail\n"


class Project:
    """A project of the member, with what builds need."""

    def __init__(self, stack: Any, namespace: str) -> None:
        self.stack, self.namespace, self.member = stack, namespace, stack.member

    def config(self, name: str, uri: str, *, source: dict[str, Any] | None = None, git: dict[str, Any] | None = None,
               strategy: dict[str, Any] | None = None, **spec: Any) -> Manifest:
        """Create an image stream and a build config of the same name."""
        self.member.create({"apiVersion": "image.openshift.io/v1", "kind": "ImageStream",
                            "metadata": {"name": name, "namespace": self.namespace}, "spec": {}})
        return self.member.create({
            "apiVersion": "build.openshift.io/v1", "kind": "BuildConfig",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": name}},
            "spec": {"source": {"type": "Git", "git": {"uri": uri, "ref": "main", **(git or {})}, **(source or {})},
                     "strategy": {"type": "Source", "sourceStrategy": {
                         "from": {"kind": "ImageStreamTag", "name": "python:3.12-ubi9", "namespace": "openshift"},
                         **(strategy or {})}},
                     "output": {"to": {"kind": "ImageStreamTag", "name": f"{name}:latest"}}, **spec}})

    def start(self, name: str, as_user: Api | None = None, **request: Any) -> Manifest:
        body = {"kind": "BuildRequest", "apiVersion": "build.openshift.io/v1", "metadata": {"name": name}, **request}
        return (as_user or self.member).request("POST", self.path("buildconfigs", name, "instantiate"), body)

    def path(self, *parts: str) -> str:
        return "/".join([f"/apis/build.openshift.io/v1/namespaces/{self.namespace}", *parts])

    def build(self, name: str) -> Manifest:
        found = self.member.get("Build", name, self.namespace)
        assert found, name
        return found

    def ended(self, build: Manifest, seconds: float = 60) -> Manifest:
        name = build["metadata"]["name"]

        def over() -> Manifest | None:
            found = self.build(name)
            return found if found["status"]["phase"] in ENDED else None
        return wait_until(over, f"the end of build {name}", seconds)

    def log(self, build: Manifest, **query: str) -> str:
        return self.member.request("GET", self.path("builds", build["metadata"]["name"], "log"), query=query, timeout=60)

    def completed(self, name: str, **request: Any) -> Manifest:
        build = self.start(name, **request)
        ended = self.ended(build)
        assert ended["status"]["phase"] == "Complete", (ended["status"], self.log(ended))
        return ended

    def failed(self, name: str) -> dict[str, Any]:
        ended = self.ended(self.start(name))
        assert ended["status"]["phase"] == "Failed", ended["status"]
        return ended["status"]

    def tag(self, name: str, tag: str = "latest") -> list[dict[str, Any]]:
        stream = self.member.get("ImageStream", name, self.namespace) or {}
        return next((each["items"] for each in (stream.get("status") or {}).get("tags") or [] if each["tag"] == tag), [])

    def image(self, build: Manifest) -> Path:
        return catalogue.image_folder(self.stack.state, build["status"]["output"]["to"]["imageDigest"])

    def secret(self, name: str, **data: str) -> None:
        self.member.create({"apiVersion": "v1", "kind": "Secret", "stringData": data,
                            "metadata": {"name": name, "namespace": self.namespace}})


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    server = GitServer(tmp_path_factory.mktemp("git"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def app(git: GitServer) -> Repository:
    repository = Repository(git, "app")
    repository.commit(APP, "first")
    return repository


@pytest.fixture
def project(stack: Any) -> Iterator[Project]:
    name = f"builds-{secrets.token_hex(3)}"
    stack.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    stack.api.create({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                      "metadata": {"name": "admin", "namespace": name},
                      "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
                      "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": MEMBER}]})
    yield Project(stack, name)
    stack.api.delete("Namespace", name)


def canary_in(folder: Path, canary: str) -> list[str]:
    return [str(file) for file in folder.rglob("*")
            if file.is_file() and not file.is_symlink() and canary.encode() in file.read_bytes()]


def test_a_build_makes_an_image_moves_the_tag_and_the_deployment(project: Project, app: Repository) -> None:
    project.config("app", app.uri, strategy={"env": [{"name": "COLOUR", "value": "blue"}]})
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "app", "namespace": project.namespace, "annotations": {
            "image.openshift.io/triggers": json.dumps([{
                "from": {"kind": "ImageStreamTag", "name": "app:latest"},
                "fieldPath": 'spec.template.spec.containers[?(@.name=="app")].image'}])}},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "app"}}, "template": {
            "metadata": {"labels": {"app": "app"}}, "spec": {"containers": [{"name": "app", "image": " "}]}}}}
    project.member.create(deployment)
    begun = project.start("app")
    assert begun["metadata"]["name"] == "app-1"
    assert begun["status"]["phase"] == "New"
    assert begun["metadata"]["labels"] == {"app": "app", "buildconfig": "app", "openshift.io/build-config.name": "app",
                                           "openshift.io/build.start-policy": "Serial"}
    assert begun["metadata"]["annotations"]["openshift.io/build.number"] == "1"
    assert begun["metadata"]["ownerReferences"][0]["kind"] == "BuildConfig"
    build = project.ended(begun)
    assert build["status"]["phase"] == "Complete", project.log(build)
    digest = build["status"]["output"]["to"]["imageDigest"]
    assert build["status"]["startTimestamp"] <= build["status"]["completionTimestamp"]
    assert build["status"]["duration"] > 0
    assert build["spec"]["revision"]["git"]["author"] == {"name": "Ada", "email": "ada@example.org"}
    assert build["spec"]["revision"]["git"]["message"] == "first"

    reference = f"{REGISTRY}/{project.namespace}/app@{digest}"
    newest = project.tag("app")[0]
    assert (newest["image"], newest["dockerImageReference"]) == (digest, reference)
    image = catalogue.resolve(project.stack.state, reference)
    assert image
    assert image.command == ("/usr/libexec/s2i/run",)
    assert image.env["APP_SCRIPT"] == "start.sh"
    assert image.env["COLOUR"] == "blue"
    assert image.env["OPENSHIFT_BUILD_COMMIT"] == build["spec"]["revision"]["git"]["commit"]
    assert (project.image(build) / "app-root" / "src" / "start.sh").exists()
    assert not (project.image(build) / "app-root" / "src" / ".git").exists()

    def moved() -> Manifest | None:
        found = project.member.get("Deployment", "app", project.namespace) or {}
        return found if found["spec"]["template"]["spec"]["containers"][0]["image"] == reference else None
    found = wait_until(moved, "the image trigger")
    assert "openshift-controller-manager" in {entry["manager"] for entry in found["metadata"]["managedFields"]}


def test_who_may_start_builds_and_read_logs(project: Project, app: Repository) -> None:
    state = project.stack.state
    project.config("app", app.uri)
    stranger = Api(state.server, state.tokens.stranger, state.ca)
    with pytest.raises(ApiError, match='User "stranger" cannot create') as refused:
        project.start("app", stranger)
    assert refused.value.status == 403
    with pytest.raises(ApiError) as refused:
        project.start("app", Api(state.server, "no-token-of-anybody", state.ca))
    assert refused.value.status == 401
    with pytest.raises(ApiError, match='"nothing" not found') as refused:
        project.start("nothing")
    assert refused.value.status == 404
    assert project.member.list("Build", project.namespace) == []
    build = project.completed("app")
    with pytest.raises(ApiError, match="builds/log") as refused:
        stranger.request("GET", project.path("builds", build["metadata"]["name"], "log"))
    assert refused.value.status == 403
    with pytest.raises(ApiError) as refused:
        project.log({"metadata": {"name": "app-99"}})
    assert refused.value.status == 404
    with pytest.raises(ApiError, match="local files"):
        project.member.request("POST", project.path("buildconfigs", "app", "instantiatebinary"), {})


def test_the_log_is_followed_until_the_build_ends(project: Project, git: GitServer) -> None:
    repository = Repository(git, "slow")
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + "echo early; sleep 2; echo late; /usr/libexec/s2i/assemble\n"})
    project.config("app", repository.uri)
    state = project.stack.state
    build = project.start("app")
    pool = urllib3.PoolManager(ca_certs=str(state.ca))
    answer = pool.request("GET", state.server + project.path("builds", build["metadata"]["name"], "log?follow=true"),
                          headers={"Authorization": f"Bearer {state.tokens.member}"}, preload_content=False, timeout=60)
    arrived: dict[str, float] = {}
    text = ""
    for chunk in answer.stream(64):
        text += chunk.decode()
        for word in ("early", "late", "Push successful"):
            if word in text:
                arrived.setdefault(word, time.monotonic())
    assert arrived["late"] - arrived["early"] > 1, "the log came in one piece"
    assert text.rstrip().endswith("Push successful")
    assert project.build("app-1")["status"]["phase"] == "Complete"
    assert project.log(build, tailLines="1").strip() == "Push successful"


def test_an_assemble_that_fails_shows_its_last_words(project: Project, git: GitServer) -> None:
    repository = Repository(git, "failing")
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + "echo 'the token is missing' >&2\nexit 7\n"})
    project.config("app", repository.uri)
    status = project.failed("app")
    assert (status["reason"], status["message"]) == ("AssembleFailed", "Assemble script failed: it ended with exit code 7.")
    assert status["logSnippet"].splitlines()[-1] == "the token is missing"
    assert project.tag("app") == []
    assert list(project.stack.state.images.glob(".build-*")) == []


def test_sources_that_are_not_there(project: Project, app: Repository, git: GitServer) -> None:
    project.config("branch", app.uri, git={"ref": "nowhere"})
    project.config("repository", f"{git.address}/nothing.git")
    project.config("folder", app.uri, source={"contextDir": "nowhere"})
    project.config("outside", app.uri, source={"contextDir": "../../../../../../etc"})
    project.config("server", "http://127.0.0.1:9/app.git")
    project.config("file", str(app.path))
    with ThreadPoolExecutor() as pool:
        names = ("branch", "repository", "folder", "outside", "server", "file")
        status = dict(zip(names, pool.map(project.failed, names), strict=True))
    assert f'There is no branch, tag or commit "nowhere" in {app.uri}.' in status["branch"]["message"]
    assert "There is no Git repository at" in status["repository"]["message"]
    assert {status[name]["reason"] for name in ("branch", "repository", "server", "file")} == {"FetchSourceFailed"}
    assert "Failed to connect" in status["server"]["message"]
    assert {status[name]["reason"] for name in ("folder", "outside")} == {"InvalidContextDirectory"}


def test_a_subfolder_a_branch_and_a_commit(project: Project, git: GitServer) -> None:
    repository = Repository(git, "parts")
    first = repository.commit({f"web/{name}": text for name, text in APP.items()} | {"web/version": "one"}, branch="develop")
    repository.commit({"web/version": "two"}, branch="develop")
    project.config("app", repository.uri, source={"contextDir": "web"}, git={"ref": "develop"})
    newest = project.completed("app")
    assert (project.image(newest) / "app-root" / "src" / "version").read_text() == "two"
    older = project.completed("app", revision={"type": "Git", "git": {"commit": first}})
    assert (project.image(older) / "app-root" / "src" / "version").read_text() == "one"
    assert older["spec"]["revision"]["git"]["commit"] == first


def test_a_private_repository_needs_its_source_secret(project: Project, git: GitServer) -> None:
    repository = Repository(git, "private/app")
    repository.commit(APP)
    project.config("open", repository.uri)
    assert "wants credentials: name a secret" in project.failed("open")["message"]
    project.secret("wrong", username=USER, password="mistaken")
    project.config("wrong", repository.uri, source={"sourceSecret": {"name": "wrong"}})
    assert "refused the source secret" in project.failed("wrong")["message"]
    project.config("missing", repository.uri, source={"sourceSecret": {"name": "nothing"}})
    assert "There is no Secret nothing" in project.failed("missing")["message"]
    project.secret("right", username=USER, password=PASSWORD)
    project.config("right", repository.uri, source={"sourceSecret": {"name": "right"}})
    build = project.completed("right")
    assert canary_in(project.image(build), PASSWORD) == []
    assert PASSWORD not in project.log(build)
    assert PASSWORD not in json.dumps(project.build("right-1"))


def test_build_secrets_are_there_for_assemble_and_not_in_the_image(project: Project, git: GitServer) -> None:
    repository = Repository(git, "secret")
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + """
        test "$(stat -c %a "$HOME/TOKEN")" = 600
        sha256sum < "$HOME/TOKEN" > "$HOME/sum"
        cat deep/TOKEN /secrets/build/TOKEN /tmp/own/TOKEN | sha256sum >> "$HOME/sum"
        tr '\\0' '\\n' < /proc/1/cmdline
        /usr/libexec/s2i/assemble
    """})
    canary = f"canary-{secrets.token_hex(16)}"
    project.secret("build", TOKEN=canary)
    project.config("app", repository.uri, source={"secrets": [
        {"secret": {"name": "build"}}, {"secret": {"name": "build"}, "destinationDir": "deep"},
        {"secret": {"name": "build"}, "destinationDir": "/secrets/build"},
        {"secret": {"name": "build"}, "destinationDir": "/tmp/own"}]})
    build = project.completed("app")
    image = project.image(build)
    sums = (image / "app-root" / "src" / "sum").read_text().split()
    assert sums[0] == hashlib.sha256(canary.encode()).hexdigest()
    assert sums[2] == hashlib.sha256(canary.encode() * 3).hexdigest()
    assert canary_in(image, canary) == []
    assert not (image / "app-root" / "src" / "TOKEN").exists()
    assert canary not in project.log(build)
    assert canary_in(project.stack.state.logs / "builds", canary) == []


def test_environment_from_secrets_is_baked_in_as_on_openshift(project: Project, app: Repository) -> None:
    project.secret("values", password="pass word")
    reference = {"secretKeyRef": {"name": "values", "key": "password"}}
    project.config("app", app.uri, strategy={"env": [
        {"name": "PASSWORD", "valueFrom": reference}, {"name": "APP_SCRIPT", "value": "other.sh"}]})
    build = project.completed("app", env=[{"name": "EXTRA", "value": "1"}])
    image = catalogue.resolve(project.stack.state, project.tag("app")[0]["dockerImageReference"])
    assert image
    assert (image.env["PASSWORD"], image.env["APP_SCRIPT"], image.env["EXTRA"]) == ("pass word", "other.sh", "1")
    assert build["spec"]["strategy"]["sourceStrategy"]["env"][-1] == {"name": "EXTRA", "value": "1"}
    project.config("bad", app.uri, strategy={"env": [
        {"name": "X", "valueFrom": {"secretKeyRef": {"name": "values", "key": "nothing"}}}]})
    status = project.failed("bad")
    assert status["reason"] == "UnresolvableEnvironmentVariable"
    assert "X: there is no key nothing in Secret values" in status["message"]


def test_a_run_script_of_the_repository_becomes_the_command(project: Project, git: GitServer) -> None:
    repository = Repository(git, "runs")
    repository.commit({**APP, ".s2i/bin/run": "#!/bin/bash\nexec sleep infinity\n"})
    project.config("app", repository.uri)
    project.completed("app")
    image = catalogue.resolve(project.stack.state, project.tag("app")[0]["dockerImageReference"])
    assert image
    assert image.command == ("/tmp/scripts/run",)
    assert "/tmp/scripts" in [target for _, target in image.layers]


def test_a_builder_image_that_does_not_exist(project: Project, app: Repository) -> None:
    project.config("app", app.uri, strategy={"from": {"kind": "ImageStreamTag", "name": "python:3.8-ubi8",
                                                      "namespace": "openshift"}})
    with pytest.raises(ApiError, match=r"Error resolving ImageStreamTag python:3\.8-ubi8 .*3\.12-ubi9") as refused:
        project.start("app")
    assert refused.value.status == 400
    project.config("other", app.uri, strategy={"from": {"kind": "DockerImage", "name": "docker.io/library/python:3.12"}})
    assert project.failed("other")["reason"] == "PullBuilderImageFailed"


def test_without_the_image_stream_a_build_waits(project: Project, app: Repository) -> None:
    project.config("app", app.uri, output={"to": {"kind": "ImageStreamTag", "name": "elsewhere:latest"}})
    build = project.start("app")
    wait_until(lambda: project.build("app-1")["status"].get("reason") == "InvalidOutputReference", "the reason")
    assert "no ImageStream 'elsewhere'" in project.build("app-1")["status"]["message"]
    project.member.create({"apiVersion": "image.openshift.io/v1", "kind": "ImageStream",
                           "metadata": {"name": "elsewhere", "namespace": project.namespace}, "spec": {}})
    assert project.ended(build)["status"]["phase"] == "Complete"
    assert project.tag("elsewhere")


def waiting(git: GitServer, name: str) -> Repository:
    """Return a repository whose assemble takes a second."""
    repository = Repository(git, name)
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + "sleep 1\n/usr/libexec/s2i/assemble\n"})
    return repository


def test_serial_builds_run_one_after_the_other(project: Project, git: GitServer) -> None:
    project.config("app", waiting(git, "serial").uri, runPolicy="Serial")
    builds = [project.start("app") for _ in range(3)]
    seen: set[tuple[str, ...]] = set()

    def over() -> bool:
        phases = tuple(project.build(each["metadata"]["name"])["status"]["phase"] for each in builds)
        seen.add(phases)
        return all(phase in ENDED for phase in phases)
    wait_until(over, "three builds")
    assert all(phases.count("Running") <= 1 for phases in seen)
    ended = [project.build(each["metadata"]["name"])["status"] for each in builds]
    assert [status["phase"] for status in ended] == ["Complete"] * 3
    assert [status["startTimestamp"] for status in ended] == sorted(status["startTimestamp"] for status in ended)


def test_only_the_latest_waiting_build_runs(project: Project, git: GitServer) -> None:
    project.config("app", waiting(git, "latest").uri, runPolicy="SerialLatestOnly")
    first = project.start("app")
    wait_until(lambda: project.build("app-1")["status"]["phase"] == "Running", "the first build")
    others = [project.start("app") for _ in range(3)]
    phases = [project.ended(each)["status"]["phase"] for each in [first, *others]]
    assert phases == ["Complete", "Cancelled", "Cancelled", "Complete"]


def test_a_cancelled_build_ends_at_once(project: Project, git: GitServer) -> None:
    repository = Repository(git, "endless")
    marker = f"endless-{secrets.token_hex(4)}"
    repository.commit({**APP, ".s2i/bin/assemble": f"{ASSEMBLE}bash -c 'exec -a {marker} sleep 300'\n"})
    project.config("app", repository.uri)
    running, queued = project.start("app"), project.start("app")
    wait_until(lambda: marker in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout, marker)
    for build in (queued, running):
        project.member.patch("Build", build["metadata"]["name"], {"status": {"cancelled": True}}, project.namespace,
                             subresource="status")
    for build in (queued, running):
        status = project.ended(build, 10)["status"]
        assert (status["phase"], status["reason"]) == ("Cancelled", "CancelledBuild")
    wait_until(lambda: marker not in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout,
               "the end of its processes")
    assert project.tag("app") == []


def test_a_build_beyond_its_deadline_is_stopped(project: Project, git: GitServer) -> None:
    repository = Repository(git, "late")
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + "sleep 300\n"})
    project.config("app", repository.uri, completionDeadlineSeconds=2)
    assert "took longer than its deadline" in project.failed("app")["message"]


def test_no_space_left_is_said(project: Project, git: GitServer) -> None:
    repository = Repository(git, "full")
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + "echo much > /dev/full\n"})
    project.config("app", repository.uri)
    status = project.failed("app")
    assert status["reason"] == "AssembleFailed"
    assert "is full; make room there and start the build again" in status["message"]


def test_a_builder_that_dies_leaves_a_failed_build_and_no_half_image(project: Project, git: GitServer) -> None:
    repository = Repository(git, "interrupted")
    repository.commit({**APP, ".s2i/bin/assemble": ASSEMBLE + "test -e /tmp/src/quick || sleep 300\n/usr/libexec/s2i/assemble\n"})
    project.config("app", repository.uri)
    running = project.start("app")
    wait_until(lambda: project.build("app-1")["status"]["phase"] == "Running", "the build to run")
    state = project.stack.state
    wait_until(lambda: list(state.images.glob(".build-*")), "its folder")
    builder = next(part["pid"] for part in commands.status(state)["parts"] if part["part"] == "builder")
    os.kill(builder, signal.SIGKILL)
    status = project.ended(running)["status"]
    assert status["phase"] == "Failed"
    assert "start the build again" in status["message"]
    wait_until(lambda: not list(state.images.glob(".build-*")), "its folder to be removed")
    assert project.tag("app") == []
    # It tidies up before it answers.
    wait_until(lambda: any(part["part"] == "builder" and part["state"] == "ready" for part in commands.status(state)["parts"]),
               "the builder to be ready again")
    repository.commit({"quick": ""})
    assert wait_until(lambda: project.completed("app"), "the next build")["metadata"]["name"] == "app-2"


class Pinned:
    """A repository whose requirements are one package, which nobody else has, pinned by its hash."""

    def __init__(self, git: GitServer, project: Project) -> None:
        self.project, self.repository = project, Repository(git, f"locked{secrets.token_hex(4)}")
        self.name = f"canary{secrets.token_hex(4)}"
        wheel = self.repository.path / f"{self.name}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"{self.name}.py", "")
            file.writestr(f"{self.name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {self.name}\nVersion: 1\n")
            file.writestr(f"{self.name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{self.name}-1.dist-info/RECORD", "")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.requirements = f"{self.name} @ file:///opt/app-root/src/{wheel.name} --hash=sha256:{digest}\n"

    def build(self, **files: str) -> tuple[Manifest, str]:
        """Build it with some files changed; return the build and whether its packages were `installed` or `here already`."""
        self.repository.commit({**APP, "requirements.txt": self.requirements, **files})
        build = self.project.completed("app")
        said = {word for word in ("Successfully installed", "here already") if word in self.project.log(build)}
        assert len(said) == 1, self.project.log(build)
        return build, said.pop()

    def files(self, build: Manifest) -> dict[str, Path]:
        """Return the package's files as a container sees them: by path, and where they are."""
        image = catalogue.resolve(self.project.stack.state, f"app@{build['status']['output']['to']['imageDigest']}")
        assert image
        return {str(path.relative_to(folder)): path for folder, target in image.layers if target == catalogue.APP_ROOT
                for path in folder.rglob(f"{self.name}*") if not path.name.endswith(".whl")}


@pytest.fixture
def pinned(project: Project, git: GitServer) -> Pinned:
    made = Pinned(git, project)
    project.config("app", made.repository.uri)
    return made


def test_requirements_pinned_by_hash_are_installed_once_and_not_copied(pinned: Pinned) -> None:
    (first, before), (second, after), (third, again) = pinned.build(), pinned.build(), pinned.build(version="two")
    assert (before, after, again) == ("Successfully installed", "here already", "here already")
    assert pinned.files(first).keys() == pinned.files(second).keys()
    (name,) = [name for name in pinned.files(second) if name.endswith(f"site-packages/{pinned.name}.py")]
    assert pinned.files(second)[name] == pinned.files(third)[name], "they lie over the same"
    kept = next(layers.pip_cache().glob(f"installed/*/{name}"))
    same = kept.stat().st_dev == pinned.files(second)[name].stat().st_dev
    assert kept.samefile(pinned.files(second)[name]) is same, "it is one file with two names, where that can be"


def test_packages_go_when_no_image_lies_over_them_and_no_build_may(project: Project, pinned: Pinned) -> None:
    images = project.stack.state.images
    pinned.build()
    (used,) = catalogue.below(project.stack.state, pinned.build()[0]["status"]["output"]["to"]["imageDigest"])
    left, begun = images / "packages-left", images / "packages-begun"
    for folder in (left, begun):
        folder.mkdir()
    for folder in (left, images / used):
        os.utime(folder, (0, 0))
    pinned.build(version="another")
    assert [(images / name).exists() for name in (used, "packages-left", "packages-begun")] == [True, False, True]
    begun.rmdir()


def test_what_is_kept_of_requirements_is_theirs_alone(pinned: Pinned) -> None:
    """An assemble that installs something first, or changes requirements.txt, gets what it asks for each time."""
    own = "#!/bin/bash\nset -e\n{}\nexec /usr/libexec/s2i/assemble\n"
    first = {".s2i/bin/assemble": own.format("touch /opt/app-root/lib/installed-before")}
    assert [pinned.build(**first)[1] for _ in range(2)] == ["Successfully installed"] * 2
    changed = {".s2i/bin/assemble": own.format("echo '# changed' >> /tmp/src/requirements.txt")}
    assert [pinned.build(**changed)[1] for _ in range(2)] == ["Successfully installed"] * 2


@pytest.mark.parametrize("overlay", [True, False])
def test_assemble_works_on_a_copy_where_writes_cannot_be_kept_beside(project: Project, tmp_path: Path, overlay: bool) -> None:
    state = project.stack.state
    builder = catalogue.resolve(state, "registry.access.redhat.com/ubi9/python-312:latest")
    assert builder
    assert layers.keeps_writes(state), "the tests' own folder can"
    folder = tmp_path / "build"
    folder.mkdir()
    work = layers.prepare(state, builder, tmp_path, folder / "image", folder / "work" if overlay else None)
    argv = sandbox.command(state, ["sh", "-c", "python -c 'import pip' && rm bin/pip && echo made >src/made"], user=catalogue.BUILD_USER,
                           layers=work.lower, kept=work.kept, mounts=work.mounts, working_dir=catalogue.APP_ROOT)
    done = subprocess.run(argv, env=sandbox.ENVIRONMENT | dict(builder.env), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(work.layers) == (["below", "app-root"] if overlay else ["app-root"])
    made = [(state.images / work.below[name] if name in work.below else folder / "image" / name, target) for name, target in work.layers.items()]
    seen = sandbox.command(state, ["sh", "-c", "cat src/made; ls bin"], user=1, layers=made, working_dir=catalogue.APP_ROOT)
    said = subprocess.run(seen, env=sandbox.ENVIRONMENT, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "made" and "pip3" in said and "pip" not in said
    assert all((base / "bin" / "pip").exists() for base, _ in builder.layers), "the builder image is as it was"
    layers.remove(folder)
    assert not folder.exists()


def test_twenty_starts_at_once_give_twenty_builds(project: Project, app: Repository) -> None:
    project.config("app", app.uri, runPolicy="SerialLatestOnly")
    with ThreadPoolExecutor(20) as pool:
        names = {build["metadata"]["name"] for build in pool.map(lambda _: project.start("app"), range(20))}
    assert names == {f"app-{number}" for number in range(1, 21)}
    assert project.ended({"metadata": {"name": "app-20"}})["status"]["phase"] == "Complete"


def test_webhooks_take_their_secret_and_nothing_else(project: Project, app: Repository) -> None:
    state = project.stack.state
    project.secret("hook", WebHookSecretKey="open-sesame")
    project.config("app", app.uri, triggers=[
        {"type": "Generic", "generic": {"secretReference": {"name": "hook"}}},
        {"type": "GitHub", "github": {"secretReference": {"name": "hook"}}}])
    hook = project.path("buildconfigs", "app", "webhooks", "open-sesame", "generic")
    assert project.member.request("POST", hook)["metadata"]["name"] == "app-1"
    for path in (project.path("buildconfigs", "app", "webhooks", "open", "generic"),
                 project.path("buildconfigs", "nothing", "webhooks", "open-sesame", "generic")):
        with pytest.raises(ApiError, match="did not accept your secret") as refused:
            project.member.request("POST", path)
        assert refused.value.status == 401
    with pytest.raises(ApiError) as refused:
        project.member.request("GET", hook)
    assert refused.value.status == 405
    # Since OpenShift 4.16 nobody may call it without a token, unless a RoleBinding says so.
    answer = urllib3.PoolManager(ca_certs=str(state.ca)).request("POST", state.server + hook)
    assert answer.status == 403
    assert "system:anonymous" in answer.json()["message"]
    github = project.path("buildconfigs", "app", "webhooks", "open-sesame", "github")
    assert "skipping" in project.member.request("POST", github, {"ref": "refs/heads/other"})["message"]
    assert project.member.request("POST", github, {"ref": "refs/heads/main"})["kind"] == "Build"


def test_a_tag_remembers_and_can_be_moved_back_and_to_another_project(project: Project, git: GitServer) -> None:
    repository = Repository(git, "history")
    repository.commit(APP)
    project.config("app", repository.uri, successfulBuildsHistoryLimit=3)
    builds = [project.completed("app") for _ in range(HISTORY + 1)]
    items = project.tag("app")
    digests = [build["status"]["output"]["to"]["imageDigest"] for build in builds]
    assert [item["image"] for item in items] == digests[:0:-1]
    assert not project.image(builds[0]).exists(), "an image that no tag remembers was kept"
    assert all(project.image(build).exists() for build in builds[1:])
    wait_until(lambda: len(project.member.list("Build", project.namespace)) == 3, "the history limit")

    back = digests[-3]
    tag = {"name": "latest", "from": {"kind": "ImageStreamImage", "name": f"app@{back}"}}
    project.member.patch("ImageStream", "app", {"spec": {"tags": [tag]}}, project.namespace)
    wait_until(lambda: project.tag("app")[0]["image"] == back, "the tag at the older image")
    project.member.create({
        "apiVersion": "image.openshift.io/v1", "kind": "ImageStream",
        "metadata": {"name": "promoted", "namespace": project.namespace},
        "spec": {"tags": [{"name": "stable", "from": {"kind": "ImageStreamTag", "name": "app:latest"}},
                          {"name": "foreign", "from": {"kind": "DockerImage", "name": "docker.io/library/httpd:2"}}]}})
    wait_until(lambda: [item["image"] for item in project.tag("promoted", "stable")] == [back], "the promoted tag")
    newer = project.completed("app")["status"]["output"]["to"]["imageDigest"]
    assert project.tag("app")[0]["image"] == newer, "a build moves the tag on after a rollback"
    wait_until(lambda: project.tag("promoted", "stable")[0]["image"] == newer, "the tag that follows")
    stream = project.member.get("ImageStream", "promoted", project.namespace) or {}
    foreign = next(tag for tag in stream["status"]["tags"] if tag["tag"] == "foreign")
    assert "not in the local stack's catalogue" in foreign["conditions"][0]["message"]


def test_the_streams_of_the_namespace_openshift_have_images(stack: Any) -> None:
    for name, tag in (("python", "3.12-ubi9"), ("python", "latest"), ("redis", "7-el9")):
        stream = stack.member.get("ImageStream", name, "openshift")
        items = next(each["items"] for each in stream["status"]["tags"] if each["tag"] == tag)
        assert catalogue.resolve(stack.state, items[0]["dockerImageReference"]), (name, tag)
