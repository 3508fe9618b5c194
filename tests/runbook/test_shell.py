"""The shell twin of every step: bash can read it, kubectl could run it, and no secret is an argument."""

import base64
import hashlib
import hmac
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from procedures import RUNBOOK
from runbook import shell
from runbook.instance import load
from runbook.observed import Observed
from runbook.options import credentials, outline
from runbook.plan import Apply, Credential, Execute, LogIn, Look, Scale, WaitFor, Write, exists, rolled_out, secret
from runbook.plan import Object as Named

ROOT = Path(__file__).parents[2]
INSTANCE = load(ROOT / "instances" / "dev.toml")
PASSWORD = Credential("database", "password of the role", secret="app-database", key="PASSWORD", generated=True)
STEPS = pytest.mark.parametrize("step", RUNBOOK.steps, ids=lambda step: step.name)

OC_ONLY = re.compile(r"\boc (process|start-build|new-app|new-project|set env|create route|logs build)")


def lines(*plan):
    return "\n".join(shell.script(plan, shell.Setting(INSTANCE, "guide/test.step")))


def bash(script, **environment):
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], text=True, capture_output=True, timeout=60,
                          env={"PATH": "/usr/local/bin:/usr/bin:/bin"} | environment, check=False)


@STEPS
def test_bash_reads_every_block(step):
    block = shell.block(step, INSTANCE)
    checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


@STEPS
def test_bash_reads_every_undo(step):
    checked = subprocess.run(["bash", "-n"], input=shell.block(step, INSTANCE, undo=True), text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


@STEPS
def test_every_cluster_command_names_project_and_manager(step):
    for line in shell.block(step, INSTANCE).splitlines():
        if re.match(r"\s*oc (apply|wait|scale|rollout)\b", line):
            assert re.search(rf"-n ({INSTANCE.project}|project-of-\w+)( |$)", line)  # deploy.promote makes something elsewhere
        if re.match(r"\s*oc apply", line):
            assert f"--field-manager={(step.undoes or step).manager}" in line


FORMER = re.compile(r"\b(dc/|deploymentconfig|DeploymentConfig)")


@pytest.mark.fault(13)
@STEPS
def test_no_command_is_about_a_deployment_config(step):
    assert not FORMER.search(shell.block(step, INSTANCE))


def test_a_command_of_the_former_guide_would_be_seen():
    assert FORMER.search("oc set probe dc/certification-helper --readiness -- stat /eos")


@STEPS
def test_what_only_oc_has_is_marked(step):
    for line in shell.block(step, INSTANCE).splitlines():
        assert not OC_ONLY.search(line) or (line.startswith("#") and "not run here" in line)


def test_manifests_arrive_as_they_are(tmp_path):
    """Whatever stands in a manifest, the parser at the other end of the here-document reads the same."""
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"},
                "data": {"a": "y", "b": "1e3", "c": "$HOME `id` \\ 'q' \"d\"", "d": "0x1f", "e": "two\nlines\n",
                         "f": "EOF", "g": "off", "h": "012", "i": ""}}
    (tmp_path / "oc").write_text("#!/bin/sh\ncat\n")
    (tmp_path / "oc").chmod(0o755)
    found = bash(lines(Apply(manifest, part=True)), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert yaml.safe_load(found.stdout) == manifest
    both = lines(Apply(manifest, part=True), Apply(secret("s", {"k": "it's $5"}), part=True))
    again = bash(both, PATH=f"{tmp_path}:/usr/bin:/bin")
    first, second = yaml.safe_load_all(again.stdout)
    assert first == manifest
    assert base64.b64decode(second["data"]["k"]).decode() == "it's $5"


@pytest.fixture
def recorder(tmp_path):
    """Commands that write down their arguments and their input, in place of the real ones."""
    for name in ("oc", "psql"):
        (tmp_path / name).write_text(f'#!/bin/sh\n{{ echo {name} "$@"; }} >> "{tmp_path}/arguments"\n'
                                     'case "$*" in *" -c "*|get*) exit "${FAIL:-0}" ;; esac\n'
                                     f'cat >> "{tmp_path}/input"\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_a_credential_is_never_an_argument(recorder):
    plan = (Apply(secret("app-database", {"PASSWORD": PASSWORD})),
            Execute("ALTER ROLE \"app\" PASSWORD '{verifier}'", unless=LogIn("app", PASSWORD), credential=PASSWORD))
    found = bash(lines(*plan), PATH=f"{recorder}:/usr/bin:/bin", FAIL="1", RUNBOOK_DATABASE="canary-7f3")
    assert found.returncode == 0, found.stderr
    assert "canary-7f3" not in (recorder / "arguments").read_text()
    assert base64.b64encode(b"canary-7f3").decode() in (recorder / "input").read_text()
    assert "canary-7f3" not in (recorder / "input").read_text() + found.stdout + found.stderr


def test_the_verifier_is_that_of_the_password(recorder):
    """RFC 5803, as PostgreSQL keeps it."""
    plan = (Execute("ALTER ROLE \"app\" PASSWORD '{verifier}'", unless=LogIn("app", PASSWORD), credential=PASSWORD),)
    assert bash(lines(*plan), PATH=f"{recorder}:/usr/bin:/bin", FAIL="1", RUNBOOK_DATABASE="pencil").returncode == 0
    found = re.search(r"SCRAM-SHA-256\$4096:(.+)\$(.+):(.+)'", (recorder / "input").read_text())
    salt, stored, server = (base64.b64decode(part) for part in found.groups())
    key = hashlib.pbkdf2_hmac("sha256", b"pencil", salt, 4096)
    assert stored == hashlib.sha256(hmac.digest(key, b"Client Key", "sha256")).digest()
    assert server == hmac.digest(key, b"Server Key", "sha256")


def test_a_known_password_is_not_made_again(recorder):
    (recorder / "oc").write_text('#!/bin/sh\ncase "$*" in get*) printf a2VwdA== ;; '
                                 f'*) cat >> "{recorder}/input" ;; esac\n')
    script = lines(Apply(secret("app-database", {"PASSWORD": PASSWORD})))
    assert bash(script, PATH=f"{recorder}:/usr/bin:/bin").returncode == 0
    assert "PASSWORD: 'a2VwdA=='" in (recorder / "input").read_text()


def test_the_administrators_password_file_keeps_its_other_lines(recorder, tmp_path):
    db, passwords = INSTANCE.database, tmp_path / "pgpass"
    passwords.write_text(f"other:1:*:me:x\n{db.host}:{db.port}:*:{db.administrator}:old\n")
    plan = (Execute('ALTER ROLE "admin" PASSWORD \'{verifier}\'', unless="SELECT 1 WHERE false", keep="administrator",
                    credential=Credential("database-administrator", "password of admin", generated=True)),)
    found = bash(lines(*plan), PATH=f"{recorder}:/usr/bin:/bin", FAIL="1", PGPASSFILE=str(passwords),
                 RUNBOOK_DATABASE_ADMINISTRATOR="new:1")
    assert found.returncode == 0, found.stderr
    assert passwords.read_text() == f"{db.host}:{db.port}:*:{db.administrator}:new\\:1\nother:1:*:me:x\n"
    assert passwords.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("given", "data"), [("", {"a": "MQ=="}), ("tru", {"a": "MQ==", "k": "dHJ1"})])
def test_an_optional_credential_that_nobody_gives_is_no_key(recorder, given, data):
    optional = Credential("extra", "something extra", secret="s", key="k", optional=True)
    (recorder / "oc").write_text(f'#!/bin/sh\ncase "$*" in get*) ;; *) cat >> "{recorder}/input" ;; esac\n')
    found = bash(lines(Apply(secret("s", {"a": "1", "k": optional}))), PATH=f"{recorder}:/usr/bin:/bin", RUNBOOK_EXTRA=given)
    assert found.returncode == 0, found.stderr
    assert yaml.safe_load((recorder / "input").read_text())["data"] == data


def test_a_password_is_not_made_when_the_cluster_does_not_answer(recorder):
    """Only an answer that there is none allows a new one: a new one would lock the app out."""
    script = lines(Apply(secret("app-database", {"PASSWORD": PASSWORD})))
    assert bash(script, PATH=f"{recorder}:/usr/bin:/bin", FAIL="1").returncode == 1
    assert not (recorder / "input").exists()


def test_a_failed_statement_ends_the_block(recorder):
    (recorder / "psql").write_text("#!/bin/sh\nexit 2\n")
    assert bash(lines(Execute("CREATE ROLE x", unless="SELECT 1")), PATH=f"{recorder}:/usr/bin:/bin").returncode == 2


def test_a_credential_outside_a_secret_is_refused():
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": PASSWORD}}
    with pytest.raises(ValueError, match="belongs into a Secret"):
        lines(Apply(secret("s", {})), Apply(manifest))


def test_files_are_written_with_their_mode(tmp_path):
    text = "#!/bin/sh\necho \"$HOME\" EOF\nEOF\n"
    found = bash(f"cd {tmp_path}\n" + lines(Write("a/b/run.sh", text, executable=True)))
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "a/b/run.sh").read_text() == text
    assert (tmp_path / "a/b/run.sh").stat().st_mode & 0o111


@pytest.mark.parametrize(("action", "wanted"), [
    (Scale("web", 2), "oc scale deployment/web -n dev-certhelper --replicas=2"),
    (WaitFor(Named("ConfigMap", "x"), exists), "oc get configmap/x -n dev-certhelper"),
    (Look("https://a.cern.ch", "/x"), "curl --fail --retry 5 --silent --show-error --output /dev/null https://a.cern.ch/x"),
    (Look("https://a.cern.ch", "x", status=(200, 302)), "https://a.cern.ch/x | grep -qxE '200|302'"),
])
def test_small_commands(action, wanted):
    assert wanted in lines(action)


PODS = """
oc() { if [ "$1" = get ]; then echo x >> "$ASKED"; sed -n "$(wc -l < "$ASKED")p" <<< "$ANSWERS" | { read -r said; [ "$said" != fails ] && echo "$said"; }; fi; }
sleep() { :; }
"""
"""An `oc` that answers each look at the pods with the next line, and a `sleep` that does not."""


@pytest.mark.parametrize(("answers", "looks", "code"), [
    ("web-1\nweb-1\n\n", 3, 0), ("fails\nfails\nother-1\n", 3, 0), ("web-1\n" * 60, 60, 1), ("fails\n" * 60, 60, 1)],
    ids=["ends", "not answered, then another's", "never ends", "never answered"])
def test_pods_on_their_way_out_are_waited_for_and_no_answer_is_not_none(tmp_path, answers, looks, code):
    script = lines(WaitFor(Named("Deployment", "web"), rolled_out, alone=True))
    done = bash(f"{PODS}\n{script}", ASKED=str(tmp_path / "asked"), ANSWERS=answers)
    assert done.returncode == code, done.stderr
    assert len((tmp_path / "asked").read_text().split()) == looks


def test_credentials_are_found_wherever_they_stand():
    plan = [Apply(secret("s", {"k": PASSWORD})), Execute("x", unless=LogIn("r", PASSWORD))]
    assert list(credentials(plan)) == [PASSWORD, PASSWORD]


def test_two_secrets_never_share_a_variable():
    """One variable gives one value: RUNBOOK_SSO_CLIENT_ID must not be the registration's and RunRegistry's at once."""
    plans = [outline(step, INSTANCE, Observed()) for step in RUNBOOK.steps]
    kept = {(known.variable, known.secret, known.key) for known in credentials(plans)}
    assert len({variable for variable, _, _ in kept}) == len(kept)
