"""What runs elsewhere, checked as far as it can be here: compose file and CI files by their schemas, the report for real."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
GITLAB = ROOT / ".gitlab-ci.yml"
COMPOSE = ROOT / "docker-compose.test.yml"
SCHEMAS = {COMPOSE: ["vendor.compose-spec"], GITLAB: ["vendor.gitlab-ci"],
           WORKFLOW: ["vendor.github-workflows", "custom.github-workflows-require-timeout"]}


def validated(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    """Check a file against a schema that the package carries; nothing is downloaded."""
    # GitLab's `!reference` is a tag of its own.
    extra = ["--data-transform=gitlab-ci"] if schema == "vendor.gitlab-ci" else []
    return subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *extra, str(path)],
                          capture_output=True, text=True, check=False, timeout=60)


def read(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.mark.parametrize(("path", "schema"), [(path, schema) for path, schemas in SCHEMAS.items() for schema in schemas],
                         ids=lambda value: value if isinstance(value, str) else value.name)
def test_files_for_other_programs_keep_to_their_schemas(path: Path, schema: str) -> None:
    done = validated(path, schema)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("path", "schema", "old", "new"), [
    (COMPOSE, "vendor.compose-spec", "healthcheck:", "helthcheck:"),
    (COMPOSE, "vendor.compose-spec", "privileged: true", "privileged: [yes]"),
    (WORKFLOW, "vendor.github-workflows", "runs-on:", "run-on:"),
    (WORKFLOW, "custom.github-workflows-require-timeout", "    timeout-minutes: 60\n", ""),
    (GITLAB, "vendor.gitlab-ci", "when: on_failure", "when: failure"),
    (GITLAB, "vendor.gitlab-ci", "    paths: [public]", "    pathes: [public]\n    when: perhaps"),
])
def test_a_mistake_in_such_a_file_is_seen(tmp_path: Path, path: Path, schema: str, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    copy = tmp_path / path.name
    copy.write_text(text.replace(old, new))
    assert validated(copy, schema).returncode == 1


# What no schema knows.

def test_no_service_has_a_fixed_port_a_literal_secret_a_floating_tag_or_a_volume_that_stays() -> None:
    compose = read(COMPOSE)
    assert compose["services"].keys() == {"postgres", "redis", "microshift"}
    for name, service in compose["services"].items():
        assert all(re.fullmatch(r"127\.0\.0\.1::\d+", port) for port in service["ports"]), name
        assert re.search(r":[^:/]*\d+\.\d+\.\d+|:\d+\.\d+-", service["image"]) or "@sha256:" in service["image"], name
        assert service["healthcheck"]["test"], name
        named = [volume.split(":")[0] for volume in service["volumes"] if re.match(r"\w+:", volume)]
        assert set(named) <= compose["volumes"].keys()
        for key in service.get("environment", {}):
            assert not re.search("PASSWORD|SECRET|TOKEN", key) or key.endswith("_FILE")
    assert set(compose["volumes"].values()) == {None}  # neither external nor on a path: `down -v` removes them
    assert all(secret["file"].startswith("${STACK_STATE:?") for secret in compose["secrets"].values())


def test_microshift_is_set_up_as_its_community_image_wants_it() -> None:
    microshift = read(COMPOSE)["services"]["microshift"]
    assert microshift["image"].startswith("ghcr.io/microshift-io/microshift:4.21.0_")
    assert (microshift["privileged"], microshift["tty"], microshift["hostname"]) == (True, True, "127.0.0.1.nip.io")
    assert "/dev:/dev" in microshift["volumes"] and microshift["tmpfs"] == ["/dev/input", "/dev/snd", "/dev/dri"]
    check = " ".join(microshift["healthcheck"]["test"])
    assert "test -f /var/lib/microshift/resources/kubeadmin/kubeconfig" in check and "/readyz" in check
    assert "127.0.0.1::6443" in microshift["ports"]


def test_the_site_is_published_only_from_green_and_containers_run_nightly_and_on_demand() -> None:
    workflow = read(WORKFLOW)
    jobs, triggers = workflow["jobs"], workflow[True]  # YAML 1.1 takes `on` for true
    assert {"push", "schedule", "workflow_dispatch"} <= triggers.keys()
    assert "if" not in jobs["embedded"] and jobs["site"]["needs"] == "embedded"
    assert not re.search(r"always\(\)|failure\(\)|!\s*success", jobs["site"]["if"])
    assert "schedule" in jobs["compose"]["if"] and "workflow_dispatch" in jobs["compose"]["if"]
    assert set(jobs["report"]["needs"]) == {"embedded", "compose"} and "failure()" in jobs["report"]["if"]
    for job in jobs.values():
        for step in job["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", step.get("uses", "a/b@v1"))
    gitlab = read(GITLAB)
    assert [need["job"] for need in gitlab["pages"]["needs"]] == ["embedded"]
    assert gitlab["stages"].index(gitlab["pages"]["stage"]) > gitlab["stages"].index(gitlab["embedded"]["stage"])
    assert gitlab["report"]["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"', "when": "on_failure"}]


def test_both_services_run_the_readmes_command_and_keep_its_junit_report() -> None:
    steps = read(WORKFLOW)["jobs"]["embedded"]["steps"]
    assert any(step.get("run") == ".ci/run" and "junit.xml" in step["env"]["PYTEST_ADDOPTS"] for step in steps)
    assert any("cache" in step.get("uses", "") and step["with"]["path"] == "~/.cache/certhelper-guide" for step in steps)
    gitlab = read(GITLAB)["embedded"]
    assert gitlab["script"][0] == ".ci/run" and gitlab["artifacts"]["reports"]["junit"] == "junit.xml"
    assert "./inv test" in (ROOT / ".ci" / "run").read_text() and "./inv test" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("job", ["embedded", "compose"])
def test_a_job_that_starts_a_stack_may_make_namespaces_before(job: str) -> None:
    runs = [step.get("run", "") for step in read(WORKFLOW)["jobs"][job]["steps"]]
    allowed = next(place for place, run in enumerate(runs) if "apparmor_restrict_unprivileged_userns=0" in run)
    assert allowed < next(place for place, run in enumerate(runs) if run.startswith((".ci/run", "./inv test")))
    assert read(GITLAB)[job]["tags"] == ["docker-privileged"]


def test_no_job_changes_what_programs_print() -> None:
    """Tests read what programs print: what forces colours on all of them makes them read something else."""
    workflow = read(WORKFLOW)
    places = [workflow, *workflow["jobs"].values(), *(step for job in workflow["jobs"].values() for step in job["steps"])]
    gitlab = [each for each in read(GITLAB).values() if isinstance(each, dict)]
    names = {name for place in [*places, *gitlab] for name in (place.get("env") or place.get("variables") or {})}
    assert names and not names & {"FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "PYTEST_THEME"}


def test_what_the_files_send_their_reader_to_look_up_is_on_the_page() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    section = page.partition("## Continuous integration\n")[2].partition("\n## ")[0]
    for path in (WORKFLOW, GITLAB, ROOT / ".ci" / "report_failure.py"):
        assert "docs/contributing.md" in path.read_text()
    tags = {tag for job in read(GITLAB).values() if isinstance(job, dict) for tag in job.get("tags", [])}
    for word in ("ISSUES_TOKEN", "`api`", "schedule", "GitHub Actions", *tags, "compose"):
        assert word in section, word


# The nightly report, against a server that keeps issues as both services do.

@dataclass
class Forge:
    """A server of issues: what is open, and what was asked."""

    address: str
    issues: list[dict[str, Any]] = field(default_factory=list)
    refuse: int = 0

    def run(self, environment: dict[str, str], token: str = "canary-token") -> subprocess.CompletedProcess[str]:
        known = {"PATH": os.environ["PATH"], "ISSUES_TOKEN": token} | environment
        return subprocess.run([sys.executable, str(ROOT / ".ci" / "report_failure.py")], env=known, capture_output=True, text=True,
                              check=False, timeout=60)

    @property
    def github(self) -> dict[str, str]:
        return {"GITHUB_REPOSITORY": "some/guide", "GITHUB_API_URL": self.address, "GITHUB_SERVER_URL": "https://github.localhost",
                "GITHUB_RUN_ID": "4711"}

    @property
    def gitlab(self) -> dict[str, str]:
        return {"CI_PROJECT_ID": "42", "CI_API_V4_URL": self.address, "CI_PIPELINE_URL": "https://gitlab.localhost/p/1"}


@pytest.fixture
def forge() -> Iterator[Forge]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            state = {"open": "open", "opened": "open"}[asked["state"][0]]
            self._answer([each for each in made.issues if each["state"] == state and asked["labels"][0] in each["labels"]])

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            labels = sent["labels"] if isinstance(sent["labels"], list) else sent["labels"].split(",")
            made.issues.append({**sent, "labels": labels, "state": "open", "html_url": f"{made.address}/{len(made.issues)}"})
            self._answer(made.issues[-1], 201)

        def _answer(self, value: object, status: int = 200) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("PRIVATE-TOKEN")
            self.send_response(made.refuse or (status if token == "canary-token" else 401))
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Forge(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("service", [lambda forge: forge.github, lambda forge: forge.gitlab], ids=["github", "gitlab"])
def test_a_failed_night_opens_one_issue_and_never_the_same_twice(forge: Forge, service: Callable[[Forge], dict[str, str]]) -> None:
    first, second = forge.run(service(forge)), forge.run(service(forge))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert [issue["title"] for issue in forge.issues] == ["The nightly run failed"]
    text = forge.issues[0].get("body") or forge.issues[0]["description"]
    assert "runs/4711" in text or "gitlab.localhost/p/1" in text
    assert "opened" in first.stdout and "is open already" in second.stdout
    forge.issues[0]["state"] = "closed"
    forge.run(service(forge))
    assert [issue["state"] for issue in forge.issues] == ["closed", "open"]
    assert "canary-token" not in first.stdout + first.stderr + second.stdout + json.dumps(forge.issues)


def test_a_report_that_cannot_be_made_says_why(forge: Forge) -> None:
    assert "ISSUES_TOKEN is empty" in forge.run(forge.github, token="").stderr
    assert "neither a GitHub nor a GitLab job" in forge.run({}).stderr
    forge.refuse = 403
    refused = forge.run(forge.github)
    assert refused.returncode == 1 and "403" in refused.stderr and "Traceback" not in refused.stderr
    assert forge.issues == []
