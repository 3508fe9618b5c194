"""The catalogue: which references are images, and that those images do what the real ones do."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import catalogue, sandbox
from stack.api import Manifest, wait_until
from stack.state import REGISTRY, State

pytestmark = pytest.mark.needs("cluster", "node", "inside")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return State(tmp_path_factory.mktemp("state"))


def image(state: State, reference: str = "registry.access.redhat.com/ubi9/python-312:latest") -> catalogue.Image:
    found = catalogue.resolve(state, reference)
    assert found, reference
    return found


def start(state: State, files: dict[str, str], **environment: str) -> subprocess.Popen[str]:
    """Start a container of the Python image with these files as its application."""
    python = image(state)
    source = state.path("source", secrets.token_hex(4))
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
        (source / name).chmod(0o755 if text.startswith("#!") else 0o644)
    source.mkdir(parents=True, exist_ok=True)
    argv = sandbox.command(state, python.command, user=1000730000, layers=python.layers, working_dir=python.working_dir,
                           mounts=[*(sandbox.Mount(*bind) for bind in python.binds),
                                   sandbox.Mount(source, python.working_dir, writable=True)])
    return subprocess.Popen(argv, env={**sandbox.ENVIRONMENT, **python.env, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(state: State, files: dict[str, str], **environment: str) -> tuple[int, str]:
    process = start(state, files, **environment)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize("reference", [
    "quay.io/sclorg/python-312-c9s:latest", "registry.access.redhat.com/ubi9/python-312:latest",
    "registry.access.redhat.com/ubi9/python-312", "quay.io/sclorg/redis-7-c9s:c9s"])
def test_images_of_the_namespace_openshift(state: State, reference: str) -> None:
    first = image(state, reference)
    again = image(state, f"{REGISTRY}/openshift/any@{first.digest}")
    assert (again.digest, again.layers, again.command) == (first.digest, first.layers, first.command)
    assert all(folder.is_dir() for folder, _ in (*first.layers, *first.binds))


@pytest.mark.parametrize("reference", [
    "", " ", "docker.io/library/httpd:2", "python:3.12", "quay.io/sclorg/perl-532:latest",
    f"{REGISTRY}/p/app@sha256:{'0' * 64}", f"{REGISTRY}/p/app@sha256:../../etc", f"{REGISTRY}/p/app:latest"])
def test_everything_else_cannot_be_pulled(state: State, reference: str) -> None:
    assert catalogue.resolve(state, reference) is None


def test_an_image_is_named_by_its_content(state: State) -> None:
    state.images.mkdir(exist_ok=True)
    about: dict[str, Any] = {"layers": {"layer": "/opt/app-root"}, "binds": {}, "env": {"A": "1"}, "command": ("run",),
                             "working_dir": "/", "labels": {}, "below": {}}

    def keep(content: str, **changes: Any) -> str:
        folder = state.images / f".build-{secrets.token_hex(4)}"
        (folder / "layer").mkdir(parents=True)
        (folder / "layer" / "file").write_text(content)
        (folder / "layer" / "link").symlink_to("/etc/passwd")
        return catalogue.keep(state, folder, **(about | changes))

    first = keep("one")
    assert keep("one") == first
    assert len({first, keep("two"), keep("one", env={"A": "2"}), keep("one", command=("walk",))}) == 4
    lower = {"lower": "/opt/app-root", "layer": "/opt/app-root"}
    over = keep("one", layers=lower, below={"lower": "packages-one/x"})
    assert over != keep("one", layers=lower, below={"lower": "packages-two/x"})
    assert catalogue.below(state, over) == {"packages-one"} and catalogue.below(state, first) == set()
    folder = catalogue.image_folder(state, over)
    assert [place for place, _ in image(state, f"app@{over}").layers] == [state.images / "packages-one" / "x", folder / "layer"]
    assert list(state.images.glob(".build-*")) == []
    kept = image(state, f"{REGISTRY}/p/app@{first}")
    assert (kept.env, kept.command, [target for _, target in kept.layers]) == ({"A": "1"}, ("run",), ["/opt/app-root"])


def test_run_starts_the_script_that_is_named(state: State) -> None:
    script = "#!/bin/bash\necho started ${0##*/} in $PWD as $(id -g) on $PORT; python -c 'import sys; print(sys.prefix)'\n"
    code, output = run(state, {"start.sh": script}, APP_SCRIPT="start.sh")
    assert (code, output.splitlines()) == (0, [
        "---> Running application from script (start.sh) ...", "started start.sh in /opt/app-root/src as 0 on 8080",
        "/opt/app-root"])
    code, output = run(state, {"web/start.sh": script}, APP_SCRIPT="start.sh", APP_HOME="web")
    assert (code, "in /opt/app-root/src/web" in output) == (0, True)


def test_run_refuses_a_script_that_is_missing_or_not_executable(state: State) -> None:
    code, output = run(state, {}, APP_SCRIPT="start.sh")
    assert (code, output.strip()) == (1, "ERROR: file 'start.sh' not found.")
    code, output = run(state, {"start.sh": "echo never\n"}, APP_SCRIPT="start.sh")
    assert code == 126
    assert "Permission denied" in output
    assert "never" not in output.splitlines()


def test_run_falls_back(state: State) -> None:
    assert "from sh" in run(state, {"app.sh": "#!/bin/sh\necho from sh\n", "app.py": "print('from py')"})[1]
    assert "from py" in run(state, {"app.py": "print('from py')"})[1]
    code, output = run(state, {"app.py": "print('from py')"}, APP_FILE="other.py")
    assert (code, output.strip()) == (1, "ERROR: file 'other.py' not found.")
    code, output = run(state, {})
    assert code == 1
    assert "don't know how to run your application" in output
    # Packages that only look like Django and gunicorn: what run does with them is its own.
    django = {"django.py": "", "manage.py": "import sys; print('manage', *sys.argv[1:])"}
    assert run(state, django)[1].splitlines()[1:] == [
        "manage migrate --noinput", "---> Serving application with 'manage.py runserver 0.0.0.0:8080' ...",
        "WARNING: this is NOT a recommended way to run you application in production!", "manage runserver 0.0.0.0:8080"]
    gunicorn = {"gunicorn.py": "", "wsgi.py": "", "bin/gunicorn": "#!/bin/sh\necho gunicorn $*\n"}
    assert "gunicorn wsgi --bind=0.0.0.0:8080" in run(state, {**django, **gunicorn}, DISABLE_MIGRATE="1")[1]
    assert "manage migrate" not in run(state, {**django, **gunicorn}, DISABLE_MIGRATE="1")[1]


def test_the_init_wrapper_passes_signals_on(state: State) -> None:
    waiting = "#!/bin/bash\necho ready\nsleep 60 & wait\n"

    def ended(**environment: str) -> tuple[int, float]:
        process = start(state, {"app.sh": waiting}, **environment)
        assert process.stdout
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), 15)
        try:
            process.wait(30 if environment else 2)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()
        return process.returncode

    assert ended() != 143, "a shell as process 1 ignores SIGTERM, here as on OpenShift, and has to be killed"
    assert ended(ENABLE_INIT_WRAPPER="1") == 143


@pytest.fixture
def redis(stack: Any) -> Iterator[tuple[str, str]]:
    """Run the Redis of the image stream with a password that a file format could trip over."""
    namespace, password = f"redis-{secrets.token_hex(3)}", f'can"ary\\{secrets.token_hex(8)} $x'
    api = stack.api
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis", "namespace": namespace},
                "stringData": {"password": password}})
    says = 'test "$(redis-cli -h 127.0.0.1 --no-auth-warning -a "$REDIS_PASSWORD" ping)" = PONG'
    refuses = 'redis-cli -h 127.0.0.1 ping | grep -q NOAUTH'
    api.create({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {
            "name": "redis", "namespace": namespace, "annotations": {"image.openshift.io/triggers": json.dumps([{
                "from": {"kind": "ImageStreamTag", "name": "redis:7-el9", "namespace": "openshift"},
                "fieldPath": "spec.template.spec.containers[0].image"}])}},
        "spec": {"selector": {"matchLabels": {"name": "redis"}}, "template": {
            "metadata": {"labels": {"name": "redis"}},
            "spec": {"terminationGracePeriodSeconds": 1, "volumes": [{"name": "data", "emptyDir": {}}], "containers": [{
                "name": "redis", "image": " ", "volumeMounts": [{"name": "data", "mountPath": "/var/lib/redis/data"}],
                "env": [{"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}],
                "readinessProbe": {"periodSeconds": 1, "exec": {"command": ["sh", "-c", f"{says} && {refuses}"]}}}]}}}})
    yield namespace, password
    api.delete("Namespace", namespace)


def test_redis_runs_with_its_password_and_does_not_show_it(stack: Any, redis: tuple[str, str]) -> None:
    namespace, password = redis

    def available() -> Manifest | None:
        found: Manifest = stack.api.get("Deployment", "redis", namespace)
        return found if found.get("status", {}).get("availableReplicas") == 1 else None

    deployment = wait_until(available, "Redis to answer with its password and to refuse without")
    wanted = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert wanted.startswith(f"{REGISTRY}/openshift/redis@sha256:")
    # The probe names it on redis-cli's command line, as OpenShift's template does; the server does not.
    servers = _commands(b"redis-server")
    assert servers
    assert not any(password.encode() in line for line in servers)


def _commands(word: bytes) -> list[bytes]:
    return [line for file in Path("/proc").glob("[0-9]*/cmdline") if word in (line := _readable(file))]


def _readable(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
