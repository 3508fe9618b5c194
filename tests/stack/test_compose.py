"""The compose stack against an engine that answers: a stand-in `docker` on PATH with real servers behind its ports.

What is not here: real images. `tests/compose/docker.py` and `microshift.py` say what the stand-in does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import urllib3

from runbook.target import Target
from stack import catalogue, commands, gives
from stack.api import ApiError, wait_until
from stack.builder.errors import BuildError
from stack.compose import __main__ as beside
from stack.compose import engine, images, project
from stack.errors import StackError
from stack.state import State
from tasks import local
from tests.compose.docker import Recipe
from tests.conftest import Stack, connect
from tests.guide import ROOT, Guide

MICROSHIFT_LOG = "crio failed\nmicroshift: cannot bind 6443\n"


@dataclass
class Docker:
    """The stand-in, and the state folder whose stack uses it."""

    folder: Path
    state: State

    def fault(self, **faults: Any) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def install(self, name: str = "docker", before: str = "") -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{before}\nexec {sys.executable} {ROOT}/tests/compose/docker.py {self.folder} \"$@\"\n")
        path.chmod(0o755)


def made(patch: pytest.MonkeyPatch) -> Docker:
    docker = Docker(Path(tempfile.mkdtemp(prefix="engine-")), State(Path(tempfile.mkdtemp(prefix="stack-"))))
    docker.install()
    (docker.folder / "calls").touch()
    patch.setenv("PATH", f"{docker.folder / 'bin'}:{os.environ['PATH']}")
    patch.setenv("RUNBOOK_STATE", str(docker.state.root))
    return docker


def removed(docker: Docker) -> None:
    (docker.folder / "faults.json").unlink(missing_ok=True)
    docker.install()
    commands.down(docker.state, wipe=True, progress=silent)
    shutil.rmtree(docker.folder, ignore_errors=True)
    shutil.rmtree(docker.state.root, ignore_errors=True)


def prepared(docker: Docker) -> engine.Engine:
    """Return the engine of a state folder in which no stack was started."""
    docker.state.write("ports.json", "{}")
    project.write_files(docker.state)
    return engine.find(docker.state)


def silent(_line: str) -> None:
    pass


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    """An engine of this test's own, nothing up."""
    monkeypatch.setattr(project, "PAUSE", 0.3)
    made_here = made(monkeypatch)
    yield made_here
    removed(made_here)


@pytest.fixture(scope="module")
def contained() -> Iterator[tuple[Docker, Stack]]:
    """A compose stack, up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "PAUSE", 0.3)
        docker = made(patch)
        try:
            commands.up(docker.state, silent, "compose")
            yield docker, connect(docker.state)
        finally:
            removed(docker)


@pytest.fixture(scope="module")
def guide(contained: tuple[Docker, Stack]) -> Guide:
    return Guide(contained[1])


# Up, through to steps of the guide.

def test_the_guide_gets_the_same_from_either_stack(contained: tuple[Docker, Stack]) -> None:
    target: Target = local(silent)
    assert target.name == "local" and target.kubeconfig == contained[0].state.kubeconfig
    found = commands.status(contained[0].state)
    assert found["ready"] and found["kind"] == "compose"
    states = {row["part"]: row["state"] for row in found["parts"]}
    assert {states[name] for name in project.SERVICES} == {"ready"} and states["haproxy"] == "ready"


def test_users_are_those_of_the_stacks_tokens_and_nobody_says_of_himself_who_he_is(contained: tuple[Docker, Stack]) -> None:
    docker, stack = contained
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"

    def who(token: str, **headers: str) -> tuple[int, dict[str, Any]]:
        pool = urllib3.PoolManager(ca_certs=str(docker.state.ca), retries=False)
        known = {"Authorization": f"Bearer {token}"} if token else {}
        answer = pool.request("POST", docker.state.server + path, json=review, headers=known | headers)
        return answer.status, answer.json()

    tokens = docker.state.tokens
    for token, name in ((tokens.member, "shifter"), (tokens.stranger, "stranger"), (tokens.admin, "admin")):
        about = who(token, **{"Impersonate-User": "system:admin", "Impersonate-Group": "system:masters"})[1]["status"]["userInfo"]
        assert about["username"] == name and ("system:masters" in about["groups"]) == (name == "admin")
    assert who("a-made-up-token")[0] == 401
    status, anonymous = who("")
    assert status in {401, 403} or anonymous["status"]["userInfo"]["username"] == "system:anonymous"
    with pytest.raises(ApiError, match="403"):
        stack.member.list("Namespace")
    assert stack.api.get("ImageStream", "python", "openshift")


def test_what_microshift_defines_itself_stays_its_own(contained: tuple[Docker, Stack]) -> None:
    api = contained[1].api

    def managers(name: str) -> set[str]:
        fields = api.get("CustomResourceDefinition", name)["metadata"]["managedFields"]
        return {each["manager"] for each in fields if each.get("subresource") != "status"}

    assert managers("routes.route.openshift.io") == {"microshift"}
    assert managers("builds.build.openshift.io") == {"stack"}


def test_the_database_is_as_dbod_gives_it(guide: Guide) -> None:
    for step in ("database.request", "database.password"):
        guide(step, "--build=dev")
    assert guide.sql("dev", "SELECT ssl, version LIKE 'TLSv1.%' FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True, True)]
    assert guide.sql("dev", "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user") \
        == [(False, True, True)]
    with pytest.raises(psycopg2.OperationalError, match=r"no encryption"):
        psycopg2.connect(host="127.0.0.1", port=guide.instance("dev").database.port, user="admin", dbname="postgres", password="x",
                         sslmode="disable")


def test_postgres_in_its_container_cannot_read_what_the_machines_user_mounts(contained: tuple[Docker, Stack]) -> None:
    """So the scripts that the image runs as postgres were given their secret by root, or there would be no DBA."""
    state = contained[0].state
    here, secret = engine.find(state), str(state.path("compose", "postgres-admin"))
    assert here.execute("postgres", "cat", secret, user="root").startswith("SCRAM-SHA-256$")
    with pytest.raises(StackError, match="No such file or directory"):
        here.execute("postgres", "cat", secret, user="postgres")


def test_a_volume_can_be_written_by_any_user_of_a_pod_and_by_nobody_else_of_this_machine(contained: tuple[Docker, Stack]) -> None:
    docker, stack = contained
    stack.api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "default"},
                      "spec": {"storageClassName": "cephfs", "accessModes": ["ReadWriteMany"],
                               "resources": {"requests": {"storage": "1Gi"}}}})

    def bound() -> str:
        found = stack.api.get("PersistentVolumeClaim", "data", "default") or {"spec": {}}
        return str(found["spec"].get("volumeName", ""))

    folder = docker.state.volumes / wait_until(bound, "the claim to be bound")
    assert folder.stat().st_mode & 0o777 == 0o777 and docker.state.volumes.stat().st_mode & 0o077 == 0
    assert stack.api.get("StorageClass", "standard") and stack.api.get("StorageClass", "eos") is None


def test_one_database_instance_at_a_time_and_a_deleted_one_leaves_nothing(guide: Guide) -> None:
    state = guide.stack.state

    def portal(method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        context = ssl.create_default_context(cafile=str(state.ca))
        asked = urllib.request.Request(
            f"https://127.0.0.1:{state.ports.https}/{path}", None if body is None else json.dumps(body).encode(), method=method,
            headers={"Host": "portal.localhost", "Authorization": f"Bearer {state.tokens.member}", "Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, context=context, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    guide("database.request", "--build=dev")
    name = guide.instance("dev").database.instance
    status, said = portal("POST", "databases", {"name": "another", "type": "PostgreSQL", "owner": "somebody"})
    assert status == 409 and name in said["error"]
    guide("project.request", "--build=dev")
    guide("database.password", "--build=dev")
    guide("database.role", "--build=dev")
    assert portal("DELETE", f"databases/{name}")[0] == 200
    guide("database.request", "--build=dev")
    assert guide.sql("dev", "SELECT rolname FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' ORDER BY 1") == [("admin",), ("postgres",)]
    status, said = portal("POST", "database-access", {"name": name, "network": "10.99.0.0/16"})
    assert status == 201 and "10.99.0.0/16" in said["networks"]
    rules = "SELECT address FROM pg_hba_file_rules WHERE address = '10.99.0.0'"
    contained_sql = engine.find(state).execute("postgres", "psql", "-At", "--dbname=postgres", user="postgres", text=rules)
    assert contained_sql.strip() == "10.99.0.0"


def test_redis_wants_its_password(contained: tuple[Docker, Stack]) -> None:
    state = contained[0].state
    password = state.path("compose", "redis.conf").read_text().split()[1]
    port = str(project.published(state).redis)

    def ping(**environment: str) -> str:
        from stack import binaries

        return subprocess.run([str(binaries.find("redis-cli").path), "-p", port, "ping"], env=environment, capture_output=True, text=True,
                              timeout=60, check=False).stdout.strip()

    assert (ping(REDISCLI_AUTH=password), ping()[:6]) == ("PONG", "NOAUTH")


def test_pods_are_told_where_this_machine_is_by_microshifts_dns(contained: tuple[Docker, Stack]) -> None:
    api = contained[1].api
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "openshift-dns"}})
    api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dns-default", "namespace": "openshift-dns"},
                "data": {"Corefile": ".:5353 {\n    errors\n}\n"}})
    for _ in range(2):
        beside.tell_dns(api, "127.0.0.77")
    text = api.get("ConfigMap", "dns-default", "openshift-dns")["data"]["Corefile"]
    assert text.startswith(".:5353 {\n    errors\n}\n") and text.count('answer "{{ .Name }} 60 IN A 127.0.0.77"') == 1


def test_no_secret_is_an_argument_of_the_engine(contained: tuple[Docker, Stack]) -> None:
    docker, _ = contained
    said = (docker.folder / "calls").read_text()
    secrets = [docker.state.path("compose", name).read_text().split("\n")[0].removeprefix("requirepass ")
               for name in ("postgres-superuser", "postgres-admin", "admin-password", "redis.conf")]
    assert all(len(secret) > 15 and secret not in said for secret in secrets)
    log = (docker.folder / "own" / "postgres.log").read_text()
    assert not any(secret in log for secret in secrets)
    modes = {path.stat().st_mode & 0o777 for path in docker.state.path("compose").rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_two_stacks_of_either_kind_do_not_share_a_folder(contained: tuple[Docker, Stack]) -> None:
    with pytest.raises(StackError, match="is that of the compose stack; remove that one"):
        commands.up(contained[0].state, silent, "embedded")
    with pytest.raises(StackError, match="there is no stack 'kind'; there are embedded and compose"):
        commands.up(contained[0].state, silent, "kind")


def test_stopped_and_started_it_has_what_it_had_and_wiped_nothing_stays(contained: tuple[Docker, Stack]) -> None:
    docker, stack = contained
    stack.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept", "namespace": "default"}})
    commands.down(docker.state, progress=silent)
    assert docker.calls()[-1][-1] == "stop"
    assert not commands.status(docker.state)["running"]
    commands.up(docker.state, silent)
    assert connect(docker.state).api.get("ConfigMap", "kept", "default")
    commands.down(docker.state, wipe=True, progress=silent)
    assert docker.calls()[-1][-2:] == ["down", "--volumes"]
    assert not docker.state.root.exists() and not (docker.folder / "own").exists()


# What an engine may fail with: one sentence each, with the container's last lines.

@pytest.mark.parametrize(("faults", "says"), [
    ({"up": "no-daemon"}, ["docker is installed, but its engine does not answer", "Is the docker daemon running?", "systemctl start"]),
    ({"up": "pull"}, ["the image ghcr.io/microshift-io/microshift:4.21.0_x could not be pulled", "denied", "docker pull ghcr.io"]),
    ({"up": "offline"}, ["an image could not be pulled", "no such host"]),
    ({"up": "registry"}, ["an image could not be pulled", "connection refused", "reaches its registry"]),
    ({"up": "port"}, ["cannot publish a port", "port is already allocated", "ss -ltnp"]),
    ({"up": "room"}, ["docker has no room left", "docker system df"]),
    ({"up": "strange"}, ["`docker compose up` failed: unexpected end of the world", "by hand", " up --detach"]),
    ({"services": {"microshift": {"state": "exited", "code": 137, "log": MICROSHIFT_LOG}}, "only": []},
     ["the container microshift ended with 137", "crio failed / microshift: cannot bind 6443"]),
    ({"services": {"postgres": {"health": "unhealthy", "log": "FATAL: the-planted-reason\n"}}, "only": []},
     ["the container postgres runs but is unhealthy", "FATAL: the-planted-reason"]),
    ({"services": {name: {"health": "starting", "log": "still pulling\n"} for name in project.SERVICES}, "only": []},
     ["the container postgres is not healthy after 0 s (running starting)", "still pulling", "stack.logs postgres"]),
    ({"services": {name: {"missing": True} for name in project.SERVICES}, "only": []},
     ["the container postgres is not healthy after 0 s (missing)", "its last lines: none"]),
    ({"answers": {"ps": "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock"}, "only": []},
     ["its engine does not answer", "see that you may use it"]),
    ({"answers": {"ps": "unexpected end of the world"}, "only": []}, ["`docker ps` failed: unexpected end of the world"]),
    ({"services": {name: {"health": "healthy"} for name in project.SERVICES}, "only": [], "kubeconfig": {"clusters": []}},
     ["the kubeconfig of MicroShift", "no client certificate", "replaced by another"]),
    ({"services": {name: {"health": "healthy"} for name in project.SERVICES}, "only": [],
      "answers": {"exec": "cat: /var/lib/microshift: No such file or directory"}},
     ["`cat` in the container microshift failed with 1: cat: /var/lib/microshift: No such file", "last lines"]),
], ids=lambda value: next(iter(value.values())) if isinstance(value, dict) and isinstance(next(iter(value.values())), str) else None)
def test_each_failure_of_an_engine_is_one_sentence(docker: Docker, monkeypatch: pytest.MonkeyPatch, faults: dict[str, Any],
                                                   says: list[str]) -> None:
    monkeypatch.setattr(project, "DEADLINE", 0.3)
    docker.fault(**faults)
    with pytest.raises(StackError) as raised:
        commands.up(docker.state, silent, "compose")
    for word in says:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    # No supervisor is left behind, and the same command works once the engine does.
    assert not commands.status(docker.state)["running"]


def test_a_stop_that_the_engine_refuses_is_not_said_to_be_a_start(docker: Docker) -> None:
    docker.fault(only=[], services={name: {"missing": True} for name in project.SERVICES}, answers={"stop": "a", "down": "b"})
    here = prepared(docker)
    with pytest.raises(StackError, match=r"`docker compose stop` failed: a; .* stop$"):
        here.stop()
    with pytest.raises(StackError, match=r"`docker compose down` failed: b; .* down --volumes$"):
        here.remove()


def test_an_engine_that_is_not_found_is_no_registry_that_is_not_found(docker: Docker) -> None:
    here = engine.Engine("docker", ("docker", "compose"), "x", docker.folder)
    asked = "error during connect: Get \"http://nowhere:2375/v1.50/info\": dial tcp: lookup nowhere: no such host"
    assert "its engine does not answer" in here.refusal("docker ps", asked, "docker ps")


def test_a_stack_whose_engine_was_removed_can_be_wiped(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    commands._choose(docker.state, "compose")
    prepared(docker)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError, match="no container engine was found"):
        commands.down(docker.state, progress=silent)
    told: list[str] = []
    commands.down(docker.state, wipe=True, progress=told.append)
    assert not docker.state.root.exists()
    assert f"docker compose -p {engine.project_of(docker.state)} down --volumes" in told[0]


def test_a_missing_engine_is_one_sentence_of_the_command_line(docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("git", "sh"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"no container engine was found .* install Docker or Podman .* embedded stack"):
        engine.find(docker.state)
    done = subprocess.run([sys.executable, "-m", "runbook", "stack.up", "--stack=compose"], capture_output=True, text=True, check=False,
                          timeout=120, cwd=ROOT)
    assert done.returncode == 1 and "no container engine was found" in done.stderr and "Traceback" not in done.stderr


def test_an_engine_without_its_compose_command_is_told_from_none(docker: Docker) -> None:
    docker.fault(compose="missing")
    with pytest.raises(StackError, match=r"a container engine is here, but no compose command works .*docker compose"):
        engine.find(docker.state)


@pytest.mark.parametrize(("installed", "name", "program"), [
    (["docker", "podman"], "docker compose", "docker"), (["podman"], "podman compose", "podman"),
])
def test_whichever_compose_command_works_is_found(docker: Docker, monkeypatch: pytest.MonkeyPatch, installed: list[str], name: str,
                                                  program: str) -> None:
    shutil.rmtree(docker.folder / "bin")
    for each in installed:
        docker.install(each)
    monkeypatch.setenv("PATH", f"{docker.folder / 'bin'}:/usr/bin:/bin")
    found = engine.find(docker.state)
    assert (found.name, found.program) == (name, program)


def test_the_older_compose_command_is_found_too(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(docker.folder / "bin")
    docker.install("docker-compose", before='set -- compose "$@"')
    monkeypatch.setenv("PATH", f"{docker.folder / 'bin'}:/usr/bin:/bin")
    assert engine.find(docker.state).name == "docker-compose"


def test_an_engine_that_hangs_is_given_up(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.install(before="exec sleep 60")
    monkeypatch.setattr(engine, "QUICK", 0.2)
    with pytest.raises(StackError, match="has not answered for 0 s"):
        engine.find(docker.state)


DOCKER_SAYS = {"Id": "0f", "State": {"Status": "running", "Running": True, "ExitCode": 0, "Health": {"Status": "healthy"}},
               "Config": {"Labels": {"com.docker.compose.service": "redis"}},
               "NetworkSettings": {"Ports": {"6379/tcp": [{"HostIp": "127.0.0.1", "HostPort": "49153"}], "1/udp": None}}}
PODMAN_SAYS = DOCKER_SAYS | {"Name": "x_redis_1", "State": {"Status": "running", "ExitCode": 0, "Health": {
    "Status": "healthy", "FailingStreak": 0, "Log": None}}}
PODMAN_3_SAYS = DOCKER_SAYS | {"State": {"Status": "running", "ExitCode": 0, "Healthcheck": {"Status": "healthy"}}}


@pytest.mark.parametrize("about", [DOCKER_SAYS, PODMAN_SAYS, PODMAN_3_SAYS], ids=["docker", "podman", "podman 3"])
def test_either_engine_tells_of_its_containers(about: dict[str, Any]) -> None:
    assert engine._container(about) == ("redis", engine.Container("running", "healthy", 0, {6379: 49153}))


# Images.

def test_a_containerfile_says_what_the_build_config_says_and_no_more(tmp_path: Path) -> None:
    odd = 'a "quoted" $HOME \\ and \'more\''
    text = images.containerfile("registry/python@sha256:x", {"ODD": odd}, {"label": odd}, own={"assemble"},
                                mounts=["--mount=type=secret,id=s,target=/opt/app-root/src/s,uid=1001"])
    lines = text.splitlines()
    assert lines[0] == "FROM registry/python@sha256:x"
    assert lines[-2:] == ["RUN --mount=type=secret,id=s,target=/opt/app-root/src/s,uid=1001 /tmp/scripts/assemble",
                          'CMD ["/usr/libexec/s2i/run"]']
    made = Recipe(State(tmp_path), tmp_path, tmp_path, {}, "x")
    for line in lines:
        if line.startswith(("ENV ODD", "LABEL")):
            getattr(made, f"_{line.split()[0].lower()}")(line.partition(" ")[2])
    assert (made.env["ODD"], made.labels["label"]) == (odd, odd)
    with pytest.raises(BuildError, match="more than one line"):
        images.containerfile("x", {"KEY": "a\nb"}, {}, own=set(), mounts=[])


@pytest.mark.parametrize(("faults", "says"), [
    ({"answers": {"save": "Error response from daemon: No such image: x"}}, "`docker save .*` failed: Error .* No such image"),
    ({"answers": {"skopeo": "FATA[0000] writing blob: no space left on device"}},
     "MicroShift does not take the image .*no space left on device; the container's last lines"),
], ids=["save", "skopeo"])
def test_an_image_that_does_not_reach_microshift_says_which_end_failed(docker: Docker, faults: dict[str, Any], says: str) -> None:
    docker.fault(only=[], services={name: {"health": "healthy"} for name in project.SERVICES})
    here = prepared(docker)
    here.up()
    made = docker.folder / "own" / "engine" / hashlib.sha256(b"x").hexdigest()[:16]
    made.mkdir(parents=True)
    docker.fault(services={name: {"health": "healthy"} for name in project.SERVICES}, **faults)
    with pytest.raises(StackError, match=says):
        images.load(here, "x")


def test_an_image_that_cannot_be_looked_up_says_why_and_is_looked_up_again(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.fault(only=[], services={name: {"health": "healthy"} for name in project.SERVICES}, answers={"skopeo": "no route to host"})
    prepared(docker).up()
    reference = "quay.io/sclorg/redis-7-c9s:latest"
    found = images.Registries(docker.state, [reference])
    digest, problem = found.digest_of(reference)
    assert digest == "" and "redis-7-c9s:latest cannot be looked up" in problem and "no route to host" in problem
    docker.fault(services={name: {"health": "healthy"} for name in project.SERVICES})
    assert found.digest_of(reference)[0] == ""
    monkeypatch.setattr(images, "AGAIN", 0.0)
    assert found.digest_of(reference) == (catalogue.digest_of(reference), "")


# The tests' own way onto it.

@dataclass
class Report:
    """What a run of pytest with `--stack=compose` said of each test."""

    code: int
    output: str
    passed: set[str]
    skipped: dict[str, str]


FIXTURES = "compose/check_fixtures.py"


def on_containers(folder: Path, seconds: float, *files: str, but: tuple[str, ...] = ()) -> Report:
    """Run files of tests on the compose stack, but for the tests in whose names one of some words stands."""
    report = folder / "junit.xml"
    environment = {name: value for name, value in os.environ.items() if name not in {"RUNBOOK_STATE", "RUNBOOK_TEST_STATE"}}
    done = subprocess.run([sys.executable, "-m", "pytest", "--stack=compose", "-p", "no:cacheprovider", "--tb=short",
                           f"--junitxml={report}", *(("-k", f"not ({' or '.join(but)})") if but else ()), *(str(ROOT / "tests" / file) for file in files)],
                          cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    cases = {case.attrib["name"]: list(case) for case in ET.parse(report).iter("testcase")}
    skipped = {name: child.attrib["message"] for name, children in cases.items() for child in children if child.tag == "skipped"}
    bad = {name for name, children in cases.items() if any(child.tag in {"failure", "error"} for child in children)}
    return Report(done.returncode, done.stdout + done.stderr, cases.keys() - skipped.keys() - bad, skipped)


SKIPPED = {"test_that_needs_what_is_not_there": ("databases",),
           "test_the_second_run_changes_nothing_and_writes_nothing": ("audit", "inside"),
           "test_a_wrong_instance_file_gets_one_sentence_with_its_line": ("audit",),
           "test_the_doctor_finds_nothing_wrong_with_what_is_well_and_looks_up_what_is_pasted": ("addresses",),
           "test_no_secret_leaves_its_place": ("inside",), "test_a_secret_that_leaves_its_place_would_be_seen": ("inside",),
           "test_killed_inside_every_step_and_run_once_more_it_is_complete_and_undo_leaves_nothing": ("databases", "audit", "inside")}
"""The tests of the whole guide that need what the compose stack does not give."""
THE_SAME = ("by_hand", "deleted_secret", "dropped_role", "never_touched", "wrong_words", "wrong_password", "no_step_names")
"""Tests of the whole guide in which no container has a part: what the API server and the database hold is put in order, or words
are read. The API server behind the stand-in is the embedded stack's. Who has an engine runs these too: `./inv test --stack=compose`."""


@pytest.mark.timeout(3000)
def test_the_whole_guide_runs_on_containers_but_for_what_they_do_not_give(docker: Docker, tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file as on the embedded stack, with builds by the engine, images handed to MicroShift, and pods there."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as some continuous integrations have it
    report = on_containers(tmp_path, 2900, "test_guide.py", FIXTURES, but=THE_SAME)
    assert report.code == 0, report.output
    assert report.skipped.pop("test_that_does_not_say_what_it_needs") == "it does not say what it needs: @pytest.mark.needs(…)"
    assert {name.partition("[")[0] for name in report.skipped} == SKIPPED.keys()
    for name, reason in report.skipped.items():
        assert reason == f"the compose stack does not give {gives.missing('compose', *SKIPPED[name.partition('[')[0]])}"
    assert {"test_the_session_stack_is_the_compose_stack", "test_the_app_answers_over_https_with_its_data_in_postgresql_over_tls", "test_the_websocket_echoes_through_redis",
            "test_a_build_whose_assemble_fails_says_so_and_the_old_app_serves_on", "test_a_missing_variable_crash_loops_and_the_error_names_it",
            "test_rotated_password_works_and_the_former_does_not"} <= report.passed
    assert not [name for name in report.passed if any(word in name for word in THE_SAME)]
    # The engine built, and what it built reached MicroShift under the name that the Deployment has.
    calls = docker.calls()
    names = [call[call.index("--tag") + 1] for call in calls if call[0] == "build"]
    assert names[0] == "image-registry.openshift-image-registry.svc:5000/dev-certhelper/certification-helper:certification-helper-1"
    taken = [call[-1] for call in calls if "copy" in call and "skopeo" in call]
    assert taken and {f"containers-storage:{name}" for name in names} >= set(taken)
    verbs = [verb for call in calls for verb in ("up", "down") if verb in call]
    assert verbs[0] == "up" and verbs[-1] == "down" and not (docker.folder / "own").exists()


def test_pytest_says_in_one_sentence_what_the_engine_would_not_do(docker: Docker, tmp_path: Path) -> None:
    docker.fault(up="no-daemon")
    report = on_containers(tmp_path, 300, FIXTURES)
    assert report.code == 1 and "docker is installed, but its engine does not answer" in report.output


def test_every_need_is_an_ability_and_both_stacks_say_what_they_give() -> None:
    assert gives.missing("embedded", *gives.ABILITIES) == ""
    assert "one PostgreSQL server" in gives.missing("compose", "cluster", "databases")
    with pytest.raises(KeyError):
        gives.missing("compose", "teleport")
    said = {row[0]: row[3] for row in gives.rows()}
    assert said["`node`"] == "given, seen with a stand-in only" and said["`portal`"] == "given"
    assert said["`eos`"].startswith("no: ")


