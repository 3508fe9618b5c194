"""Anybody's repository in the example's place: another app, private, in a folder of its repository, on a branch of its own.

The tests stand in the order of such an app's life and share one instance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stack.portal import repositories
from tests import canaries
from tests.guide import Guide, Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

FILES = {
    "tiny/server.py": """\
import http.server


class Page(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"a tiny app")


http.server.HTTPServer(("", 8080), Page).serve_forever()
""",
    "tiny/openshift-start-up-script.sh": "python server.py --port=8080\n",
    "tiny/requirements.txt": "# nothing but Python itself\n",
    "README.md": "The app is in tiny/.\n",
}


@dataclass
class Another:
    """The other app: its instance, its author's checkout, and who may read its repository."""

    site: Site
    checkout: Path
    reading: dict[str, str]

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-C", str(self.checkout), "-c", "user.name=t", "-c", "user.email=t@localhost", *words],
                       check=True, capture_output=True)

    def push(self) -> None:
        """Commit what is in the checkout, and push it."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=change")
        self.git("push", "--quiet", "--force", "origin", "HEAD:refs/heads/release")

    def status(self) -> int:
        return self.site.guide.web().request("GET", f"{self.site.instance.url}/")[0]


@pytest.fixture(scope="module")
def another(guide: Guide, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Another]:
    state, folder = guide.stack.state, tmp_path_factory.mktemp("another")
    remote, checkout = repositories.make(state, "private/tiny"), folder / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(remote), str(checkout)], check=True, capture_output=True)
    for name, text in FILES.items():
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(text)
    token = repositories.deploy_token(state)
    (folder / "user").write_text(token["username"])
    (folder / "token").write_text(token["password"])
    site = Site.written(guide, "another", port=6, changes={
        "app": "tiny", "eos": None,
        "local": {"source": {"repository": "{git}/private/tiny.git", "branch": "release", "folder": "tiny", "private": True},
                  "deploy": {"static": "", "websocket": "", "proof": "/"}, "eos": None}})
    # Somebody else's site: of two Routes with one host the older one has it.
    guide.stack.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "holder"}})
    guide.stack.api.create({"apiVersion": "route.openshift.io/v1", "kind": "Route", "metadata": {"name": "holder", "namespace": "holder"},
                            "spec": {"host": "taken.localhost", "to": {"kind": "Service", "name": "holder"}}})
    made = Another(site, checkout, {"RUNBOOK_SOURCE_USER_FILE": str(folder / "user"), "RUNBOOK_SOURCE_TOKEN_FILE": str(folder / "token")})
    made.push()
    yield made
    site.remove()
    guide.stack.api.delete("Namespace", "holder")
    shutil.rmtree(remote)


def test_what_a_build_needs_is_written_into_the_checkout_once_and_found_on_the_branch(another: Another) -> None:
    site, prepare = another.site, ("source.prepare", f"--checkout={another.checkout}")
    refused = site("source.check", code=1, **another.reading)
    assert ".s2i/bin/assemble" in refused.stderr or ".s2i/environment" in refused.stderr
    assert site.outcomes(*prepare)["source.prepare"]["state"] == "changed"
    written = {path: path.read_bytes() for path in another.checkout.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert os.access(another.checkout / "tiny/.s2i/bin/assemble", os.X_OK)
    assert "exec python server.py --port=8080\n" in (another.checkout / "tiny/openshift-start-up-script.sh").read_text()
    assert site.outcomes(*prepare)["source.prepare"]["state"] == "unchanged"
    assert written == {path: path.read_bytes() for path in written}
    site("source.check", code=1, **another.reading)  # Builds clone the branch, and nobody has pushed yet.
    another.push()
    site("source.check", **another.reading)


def test_a_private_repository_is_not_read_without_its_token(another: Another, tmp_path: Path) -> None:
    refused = another.site("source.check", code=1)
    assert "private/tiny.git" in refused.stderr and "RUNBOOK_SOURCE_TOKEN_FILE" in refused.stderr
    (tmp_path / "wrong").write_text("wrong")
    another.site("source.check", code=1, **another.reading | {"RUNBOOK_SOURCE_TOKEN_FILE": str(tmp_path / "wrong")})


def test_the_other_app_is_deployed_and_answers(another: Another) -> None:
    site, state = another.site, another.site.guide.stack.state
    with canaries.watched() as words:
        done = site("guide.run", **another.reading)
    assert site.guide.web().request("GET", f"{site.instance.url}/") == (200, "a tiny app")
    # From now on the project keeps user and token, and nothing has to be given again.
    assert {found["state"] for found in site.outcomes("guide.run").values()} == {"unchanged", "skipped"}
    known = {repositories.deploy_token(state)["password"]}
    assert not canaries.inside((done.stdout + done.stderr).encode(), known)
    assert [line for line in words if canaries.inside(line, known)] == []
    assert canaries.strays(known, state) == set()


@pytest.mark.parametrize(("host", "says", "cure"), [
    ("taken.localhost", "HostAlreadyClaimed: a route in another namespace holds taken.localhost and is older than tiny",
     "Another Route has this host. Choose another one"),
    ("git.localhost", "the host git.localhost is reserved", "The platform keeps some names for itself."),
])
def test_a_host_that_is_taken_or_reserved_is_one_sentence(another: Another, host: str, says: str, cure: str) -> None:
    site = another.site
    kept = site.instance.host
    try:
        site.change({"local": {"host": host}})
        refused = site("app.create", code=1)
        said, next_ = refused.stderr.split("\n  next: ")
        assert says in said and cure in next_
        assert refused.stderr.count("error: ") == 1
    finally:
        site.change({"local": {"host": kept}})
    site("app.create")
    site("guide.run")
    assert another.status() == 200
