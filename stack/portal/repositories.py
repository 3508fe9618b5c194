"""Git repositories over HTTPS: `https://git.localhost:PORT/NAME.git`.

Stands for GitHub and gitlab.cern.ch: the real smart HTTP protocol, by Git's own `git http-backend`. Everybody reads;
the project member's token is the password for a push (user `git`). What lies below `private/` is read with that token
or with the deploy token in `git/deploy-token.json` of the state folder, which can only read, as GitLab's deploy tokens.

Differs: no web pages, no merge requests, no webhooks of its own; every project belongs to the same person.
The folder `example/` of this checkout is published as `example.git` with the branches `main`, `training` and
`develop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import subprocess
from pathlib import Path
from typing import cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stack import binaries
from stack.portal.access import credentials, is_one_of
from stack.state import State

EXAMPLE = Path(__file__).parents[2] / "example"
BRANCHES = ("refs/heads/main", "refs/heads/training", "refs/heads/develop")
PUBLISHED = "refs/stack/published"
"""Points at the last commit that `publish_example` made, so that it knows which branches others moved."""
CHUNK = 65536

ADDRESS = re.compile(r"/(?P<repository>(private/)?[A-Za-z0-9_][A-Za-z0-9._-]*\.git)"
                     r"/(?P<service>info/refs|git-upload-pack|git-receive-pack)")
"""What the smart protocol asks for; the dumb one, which reads files one by one, is not served."""

_log = logging.getLogger(__name__)


def environment(state: State) -> dict[str, str]:
    """Return an environment in which Git reads no configuration of the machine or its user."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(state.git), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}


def git(state: State, *arguments: str, **env: str) -> str:
    """Run git and return what it printed; raises CalledProcessError with its messages in `stderr`."""
    done = subprocess.run([str(binaries.find("git").path), *arguments], env=environment(state) | env, text=True,
                          capture_output=True, check=True)
    return done.stdout.strip()


def make(state: State, name: str) -> Path:
    """Make an empty bare repository, when there is none of that name (`example`, `private/app`); return its folder."""
    folder = state.git / f"{name}.git"
    if not (folder / "HEAD").exists():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        git(state, "init", "--quiet", "--bare", "--initial-branch=main", str(folder))
    return folder


def deploy_token(state: State) -> dict[str, str]:
    """Return the user name and password that may read private repositories; made on the first call."""
    path = state.git / "deploy-token.json"
    if not path.exists():
        state.write_json("git/deploy-token.json", {"username": "deploy", "password": secrets.token_urlsafe(24)})
    token: dict[str, str] = json.loads(path.read_text())
    return token


def publish_example(state: State, folder: Path = EXAMPLE) -> str:
    """Publish a folder as `example.git` and return its newest commit.

    Author and date are fixed, so the first commit's id depends on the folder's content only. Changed content becomes
    a commit on top. Branches that others moved since are left where they are.
    """
    deploy_token(state)
    repository = make(state, "example")
    exclude = repository / "info" / "exclude"
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text("__pycache__/\n*.py[cod]\n*.sqlite3\n/static/\n")
    env = {"GIT_DIR": str(repository)}
    index = repository / "publish.index"
    index.unlink(missing_ok=True)
    try:
        work = env | {"GIT_WORK_TREE": str(folder), "GIT_INDEX_FILE": str(index)}
        git(state, "add", "--all", str(folder), **work)
        tree = git(state, "write-tree", **work)
    finally:
        index.unlink(missing_ok=True)
    listing = git(state, "for-each-ref", "--format=%(refname) %(objectname)", **env)
    refs: dict[str, str] = {ref: commit for ref, _, commit in (line.partition(" ") for line in listing.splitlines())}
    last = refs.get(PUBLISHED)
    same = last if last and git(state, "rev-parse", f"{last}^{{tree}}", **env) == tree else ""
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in (
        ("NAME", "Example"), ("EMAIL", "example@git.localhost"), ("DATE", "2026-01-01T00:00:00+00:00"))}
    commit = same or git(state, "commit-tree", tree, *(("-p", last) if last else ()), "-m", "Publish the example app",
                 **env, **who)
    for branch in BRANCHES:
        if refs.get(branch, last) == last:
            git(state, "update-ref", branch, commit, **env)
        else:
            _log.warning("example.git: %s was moved by somebody else and stays where it is", branch)
    if not same:
        git(state, "update-ref", PUBLISHED, commit, **env)
        _log.info("example.git is published at %s", commit)
    return commit


def application(state: State) -> ASGIApp:
    """Return the Git server."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refusal = _refusal(state, request)
        if refusal:
            await refusal(scope, receive, send)
        else:
            await _backend(state, request, send)

    return serve


def _refusal(state: State, request: Request) -> Response | None:
    """Return the answer to a request that is not served, or None."""
    found = ADDRESS.fullmatch(request.url.path)
    if not found or not (state.git / found["repository"] / "HEAD").exists():
        return PlainTextResponse("There is no such repository.\n", 404)
    asked = request.query_params.get("service", "") if found["service"] == "info/refs" else found["service"]
    if asked not in ("git-upload-pack", "git-receive-pack"):
        return PlainTextResponse("Only Git's smart protocol is served here: git clone.\n", 403)
    if asked == "git-upload-pack" and not found["repository"].startswith("private/"):
        return None
    user, password = credentials(request.headers)
    if is_one_of(password, [state.tokens.member]):
        return None
    token = deploy_token(state)
    deploys = user == token["username"] and is_one_of(password, [token["password"]])
    if deploys and asked == "git-upload-pack":
        return None
    if deploys:
        return PlainTextResponse("A deploy token reads only.\n", 403)
    return PlainTextResponse("Sign on as user git with the project member's token as the password.\n", 401,
                             {"WWW-Authenticate": 'Basic realm="git.localhost"'})


async def _backend(state: State, request: Request, send: Send) -> None:
    """Hand a request to `git http-backend`, both ways as a stream."""
    headers: Headers = request.headers
    env = environment(state) | {
        "GIT_PROJECT_ROOT": str(state.git), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": request.method,
        "PATH_INFO": request.url.path, "QUERY_STRING": request.url.query, "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": headers.get("content-type", ""), "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
        # Only requests that may do what they ask come here; without a user the backend refuses every push.
        "REMOTE_USER": "git",
    }
    if protocol := headers.get("git-protocol"):
        env["GIT_PROTOCOL"] = protocol
    if length := headers.get("content-length"):  # without one (chunked) the backend reads to the end
        env["CONTENT_LENGTH"] = length
    process = await asyncio.create_subprocess_exec(
        str(binaries.find("git").path), "http-backend", env=env, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE)
    stdin, stdout = cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)
    feeding = asyncio.create_task(_feed(request, stdin))
    try:
        await _answer(stdout, send)
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _feed(request: Request, stdin: asyncio.StreamWriter) -> None:
    """Copy the request's body; a backend that needs no more of it has closed its end."""
    with contextlib.suppress(ConnectionError):
        async for chunk in request.stream():
            stdin.write(chunk)
            await stdin.drain()
    with contextlib.suppress(ConnectionError):
        stdin.close()
        await stdin.wait_closed()


async def _answer(stdout: asyncio.StreamReader, send: Send) -> None:
    """Copy the backend's answer: CGI headers, an empty line, the body."""
    status, headers = 200, []
    while line := (await stdout.readline()).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"status":
            status = int(value.split()[0])
        else:
            headers.append((name.lower(), value.strip()))
    if not headers and status == 200:
        status = 500
    await send({"type": "http.response.start", "status": status, "headers": headers})
    while chunk := await stdout.read(CHUNK):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
