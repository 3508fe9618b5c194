"""The part of OpenShift's API that a custom resource cannot serve: instantiate, webhooks, the log of a build."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stack.api import Api, ApiError, Manifest
from stack.builder.instantiate import instantiate, not_found
from stack.builder.queue import ENDED, Queue
from stack.builder.run import log_path
from stack.state import State

GROUP = "/apis/build.openshift.io/v1/namespaces/{namespace}"
PAUSE = 0.2
"""Seconds between two looks at a log that is followed."""

ANONYMOUS = {"user": "system:anonymous", "groups": ["system:unauthenticated"]}


def application(state: State, api: Api, queue: Queue) -> Starlette:
    """Return the HTTP application; `api` has the administrator's rights, callers are asked for their own."""
    pages = Pages(state, api, queue)
    return Starlette(exception_handlers={ApiError: _refused}, routes=[
        Route(GROUP + "/buildconfigs/{name}/instantiate", pages.instantiate, methods=["POST"]),
        Route(GROUP + "/buildconfigs/{name}/instantiatebinary", pages.instantiate_binary, methods=["POST"]),
        # Every method comes in, so that a wrong one gets OpenShift's answer.
        Route(GROUP + "/buildconfigs/{name}/webhooks/{secret}/{kind}", pages.webhook,
              methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        Route(GROUP + "/builds/{name}/log", pages.log, methods=["GET"])])


class Pages:
    """What is served below the API's address."""

    def __init__(self, state: State, api: Api, queue: Queue) -> None:
        self._state, self._api, self._queue = state, api, queue

    async def instantiate(self, request: Request) -> Response:
        """Create a Build from a BuildRequest."""
        wanted = _json(await request.body())
        namespace, name = request.path_params["namespace"], request.path_params["name"]

        def create() -> Manifest:
            self._allowed(request, "create", "buildconfigs", "instantiate")
            return instantiate(self._api, self._config(namespace, name), wanted)

        return JSONResponse(await _in_thread(create), 201)

    async def instantiate_binary(self, request: Request) -> Response:
        """Refuse a build from the caller's own files."""
        await _in_thread(lambda: self._allowed(request, "create", "buildconfigs", "instantiatebinary"))
        raise ApiError(400, "BadRequest", "builds from local files (oc start-build --from-dir) are not possible on the "
                       "local stack: commit and push, then start the build without --from-…")

    async def webhook(self, request: Request) -> Response:
        """Start a build for whoever knows the secret of one of the build config's webhook triggers."""
        body = await request.body()
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        if request.method != "POST":
            raise ApiError(405, "MethodNotAllowed", f"the webhook takes POST, not {request.method}")

        def create() -> Manifest:
            self._allowed(request, "create", "buildconfigs", "webhooks")
            trigger = self._trigger(namespace, name, request.path_params["kind"], request.path_params["secret"])
            config = self._config(namespace, name)
            return _hook(self._api, config, trigger, kind=request.path_params["kind"], headers=request.headers,
                         body=body)

        return JSONResponse(await _in_thread(create))

    async def log(self, request: Request) -> Response:
        """Return a build's log; with `follow=true` until the build has ended."""
        namespace, name = request.path_params["namespace"], request.path_params["name"]

        def find() -> Manifest | None:
            self._allowed(request, "get", "builds", "log")
            return self._api.get("Build", name, namespace)

        if not await _in_thread(find):
            raise ApiError(404, "NotFound", f'builds.build.openshift.io "{name}" not found')
        follow = request.query_params.get("follow", "") in ("true", "1")
        tail = request.query_params.get("tailLines", "")
        lines = self._lines(namespace, name, follow=follow, tail=int(tail) if tail.isdigit() else None)
        return StreamingResponse(lines, media_type="text/plain")

    async def _lines(self, namespace: str, name: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        path, position = log_path(self._state, namespace, name), 0
        while True:
            # Asked before reading: what is written before the end is then surely read.
            over = not follow or self._queue.phase((namespace, name)) in (*ENDED, "")
            if path.exists():
                with path.open("rb") as file:
                    if tail is not None:
                        lines = file.read().splitlines(keepends=True)
                        yield b"".join(lines[max(0, len(lines) - tail):])
                        position, tail = file.tell(), None
                    file.seek(position)
                    while chunk := file.read(65536):
                        position += len(chunk)
                        yield chunk
            if over:
                return
            await asyncio.sleep(PAUSE)

    def _config(self, namespace: str, name: str) -> Manifest:
        config = self._api.get("BuildConfig", name, namespace)
        if not config:
            raise not_found(name)
        return config

    def _allowed(self, request: Request, verb: str, resource: str, subresource: str) -> None:
        """Ask the API server whether the caller may do this; raises ApiError 401 or 403 when not."""
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        wanted = {"namespace": namespace, "verb": verb, "group": "build.openshift.io", "resource": resource,
                  "subresource": subresource, "name": name}
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        review: dict[str, Any] = {"apiVersion": "authorization.k8s.io/v1", "spec": {"resourceAttributes": wanted}}
        if scheme.lower() == "bearer" and token.strip():
            caller = Api(self._state.server, token.strip(), self._state.ca)
            kind, path = "SelfSubjectAccessReview", "selfsubjectaccessreviews"
        else:
            caller, kind, path = self._api, "SubjectAccessReview", "subjectaccessreviews"
            review["spec"] |= ANONYMOUS
        answer = caller.request("POST", f"/apis/authorization.k8s.io/v1/{path}", review | {"kind": kind})
        if not answer["status"].get("allowed"):
            user = ANONYMOUS["user"] if caller is self._api else _user(caller)
            raise ApiError(403, "Forbidden", f'{resource}.build.openshift.io "{name}" is forbidden: User "{user}" '
                           f'cannot {verb} resource "{resource}/{subresource}" in API group "build.openshift.io" in '
                           f'the namespace "{namespace}"')

    def _trigger(self, namespace: str, name: str, kind: str, secret: str) -> Mapping[str, Any]:
        """Return the trigger whose secret the caller knows; an unknown build config answers as a wrong secret does."""
        config = self._api.get("BuildConfig", name, namespace)
        field = {"generic": "generic", "github": "github"}.get(kind, "")
        for trigger in ((config or {}).get("spec") or {}).get("triggers") or []:
            hook = trigger.get(field) if field else None
            if not hook or trigger["type"].lower() != kind:
                continue
            expected = (hook.get("secret") or "").encode()
            if reference := hook.get("secretReference"):
                data = ((self._api.get("Secret", reference["name"], namespace) or {}).get("data") or {})
                try:
                    expected = base64.b64decode(data.get("WebHookSecretKey", ""))
                except binascii.Error:
                    expected = b""
            if expected and hmac.compare_digest(expected, secret.encode()):
                return dict(hook)
        raise ApiError(401, "Unauthorized", f'the webhook "{kind}" for "{name}" did not accept your secret')


def _hook(api: Api, config: Manifest, trigger: Mapping[str, Any], *, kind: str, headers: Mapping[str, str],
          body: bytes) -> Manifest:
    """Start the build that a webhook asks for; a push to another branch starts none."""
    said = _json(body) if "json" in headers.get("content-type", "") else {}
    cause = f"{'GitHub' if kind == 'github' else 'Generic'} WebHook"
    request: dict[str, Any] = {"triggeredBy": [{"message": cause}]}
    source = (config["spec"].get("source") or {}).get("git") or {}
    pushed, commit = (said.get("git") or {}).get("ref"), (said.get("git") or {}).get("commit")
    if kind == "github":
        if headers.get("x-github-event") == "ping":
            return _status(200, "", "pong", "Success")
        pushed, commit = said.get("ref"), (said.get("head_commit") or {}).get("id")
    if pushed and source.get("ref") and pushed.removeprefix("refs/heads/") != source["ref"]:
        return _status(200, "", f"skipping build: the build config builds {source['ref']}, not {pushed}", "Success")
    if commit:
        request["revision"] = {"type": "Git", "git": {"commit": commit}}
    if said.get("env") and trigger.get("allowEnv"):
        request["env"] = said["env"]
    return instantiate(api, config, request)


def _user(caller: Api) -> str:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = caller.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    return str(answer["status"]["userInfo"]["username"])


def _json(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body or b"{}")
    except ValueError as error:
        raise ApiError(400, "BadRequest", f"the request's body is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise ApiError(400, "BadRequest", "the request's body is not a JSON object")
    return said


async def _in_thread(work: Callable[[], Any]) -> Any:
    return await run_in_threadpool(work)


def _status(code: int, reason: str, message: str, status: str = "Failure") -> Manifest:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status, "message": message,
            "reason": reason, "code": code}


async def _refused(_request: Request, error: Exception) -> Response:
    """Answer as the API server does."""
    if not isinstance(error, ApiError):
        raise error
    code = error.status or 503
    return JSONResponse(_status(code, error.reason, error.message), code)
