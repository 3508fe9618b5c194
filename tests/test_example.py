"""The example app has certhelper's shape: what can be seen without installing Django.

That it starts, migrates, answers and echoes is shown by the guide's end-to-end test, in its pod.
"""

import ast
import base64
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "example"
REQUIRED = {"DJANGO_SECRET_KEY", "CERN_SSO_REGISTRATION_CLIENT_ID", "CERN_SSO_REGISTRATION_CLIENT_SECRET",
            "OMS_CLIENT_ID", "OMS_CLIENT_SECRET"}
OPTIONAL = {
    "CSRF_TRUSTED_ORIGINS", "DJANGO_ALLOWED_HOSTS", "DJANGO_DEBUG", "SITE_ID", "REDIS_HOST", "REDIS_PASSWORD",
    *(f"DJANGO_DATABASE_{part}" for part in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")),
    *(f"DJANGO_EMAIL_{part}" for part in ("HOST", "PORT", "HOST_USER", "HOST_PASSWORD", "USE_TLS")),
    "DJANGO_SERVER_EMAIL", "DJANGO_SECRET_ACC", "DJANGO_SECRET_PASS", "CERN_CERTIFICATE_PATH",
    "OMS_API_URL", "OMS_API_AUDIENCE",
}
"""What certhelper reads by python-decouple (facts.md 1.3)."""


def settings_read():
    """Yield (variable, has a default) for every `config(…)` of the app."""
    for path in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "config":
                yield ast.literal_eval(node.args[0]), any(word.arg == "default" for word in node.keywords)


def test_it_reads_certhelpers_variables_and_requires_the_same():
    read = dict(settings_read())
    assert {name for name, default in read.items() if not default} == REQUIRED
    assert {name for name, default in read.items() if default} == OPTIONAL | {"CERN_SSO_SERVER_URL", "EOS_PATH"}


@pytest.mark.parametrize("script", ["openshift-start-up-script.sh", ".s2i/bin/assemble"])
def test_scripts_are_executable_and_strict(script):
    path = EXAMPLE / script
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in path.read_text()


def test_the_image_keeps_its_own_run_script():
    # With .s2i/bin/run the image's command lies below /tmp, which the EOS mount hides.
    assert not (EXAMPLE / ".s2i" / "bin" / "run").exists()
    lines = (EXAMPLE / ".s2i" / "environment").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == \
        ["DISABLE_COLLECTSTATIC=true", "APP_SCRIPT=openshift-start-up-script.sh"]


def test_the_lock_pins_every_package_with_hashes():
    lock = (EXAMPLE / "requirements.txt").read_text().replace("\\\n", "")
    pinned = {}
    for line in filter(None, map(str.strip, lock.splitlines())):
        found = re.match(r"([a-z0-9.-]+)==\S+( ;.*?)?(?=\s+--hash)", line)
        assert found, f"not pinned with a hash: {line[:80]}"
        pinned[found[1]] = line.count("--hash=sha256:")
    assert all(pinned.values())
    wanted = re.findall(r"^([A-Za-z0-9_-]+)", (EXAMPLE / "requirements.in").read_text(), re.MULTILINE)
    assert {name.lower().replace("_", "-") for name in wanted} <= pinned.keys()


# -- the scripts, run with stand-ins for the programs that they call


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "src")
    (tmp_path / "bin").mkdir()
    (tmp_path / "secrets").mkdir()
    return tmp_path


def run(checkout: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HOME": str(checkout / "src"), **env}
    return subprocess.run([str(checkout / "src" / script)], cwd=checkout / "src", env=env, text=True,
                          capture_output=True, timeout=60, check=False)


def assemble(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"S2I_SOURCE": str(checkout / "src"), "S2I_ASSEMBLE": str(checkout / "bin" / "assemble"),
           "BUILD_SECRETS": str(checkout / "secrets"), "APP_SCRIPT": "openshift-start-up-script.sh", **env}
    return run(checkout, ".s2i/bin/assemble", **env)


def test_the_start_script_becomes_the_server(checkout):
    program(checkout / "bin", "python", 'echo "python $$ $*"')
    shell = subprocess.Popen(["./openshift-start-up-script.sh"], cwd=checkout / "src", text=True,
                             stdout=subprocess.PIPE, env={"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"})
    out, _ = shell.communicate(timeout=60)
    # The script's own process became the server, so the server gets the pod's SIGTERM.
    assert out == f"python {shell.pid} manage.py serve 0.0.0.0:8080\n"


def test_assemble_calls_the_images_own_without_credentials(checkout):
    program(checkout / "bin", "assemble", 'echo "count=${GIT_CONFIG_COUNT:-none}"')
    done = assemble(checkout)
    assert (done.returncode, done.stdout) == (0, "count=none\n"), done.stderr


def test_assemble_gives_git_the_token_for_one_command_and_leaves_nothing(checkout):
    (checkout / "secrets" / "CERN_GITLAB_USER").write_text("reader\n")
    (checkout / "secrets" / "CERN_GITLAB_TOKEN").write_text("canary-5d0c\n")
    program(checkout / "bin", "assemble",
            "git config --get-urlmatch http.extraHeader https://gitlab.cern.ch/x/y.git;"
            "git config --get-urlmatch http.extraHeader https://github.com/x/y.git || echo elsewhere nothing")
    done = assemble(checkout)
    value = base64.b64encode(b"reader:canary-5d0c").decode()
    assert done.stdout.splitlines() == [f"Authorization: Basic {value}", "elsewhere nothing"], done.stderr
    assert not list((checkout / "secrets").iterdir())
    assert not any("canary" in path.read_text(errors="ignore") or value in path.read_text(errors="ignore")
                   for path in checkout.rglob("*") if path.is_file())
    assert "canary" not in done.stderr


def test_assemble_leaves_no_secret_when_the_build_fails(checkout):
    (checkout / "secrets" / "CERN_GITLAB_USER").write_text("reader")
    (checkout / "secrets" / "CERN_GITLAB_TOKEN").write_text("canary-5d0c")
    program(checkout / "bin", "assemble", "exit 3")
    assert assemble(checkout).returncode == 3
    assert not list((checkout / "secrets").iterdir())


def test_assemble_refuses_a_private_package_without_a_token(checkout):
    program(checkout / "bin", "assemble", "echo built")
    lock = checkout / "src" / "requirements.txt"
    lock.write_text(lock.read_text() + "oms @ git+https://gitlab.cern.ch/cmsoms/oms-api-client@v1\n")
    done = assemble(checkout)
    assert done.returncode == 1
    assert "CERN_GITLAB_TOKEN" in done.stderr
    assert "built" not in done.stdout


def test_assemble_refuses_half_a_secret(checkout):
    program(checkout / "bin", "assemble", "echo built")
    (checkout / "secrets" / "CERN_GITLAB_TOKEN").write_text("canary-5d0c")
    done = assemble(checkout)
    assert done.returncode != 0
    assert "no CERN_GITLAB_USER" in done.stderr
    assert "built" not in done.stdout


def test_assemble_refuses_a_start_script_that_cannot_run(checkout):
    program(checkout / "bin", "assemble", "chmod -x openshift-start-up-script.sh")
    done = assemble(checkout)
    assert done.returncode == 1
    assert "git update-index --chmod=+x" in done.stderr
