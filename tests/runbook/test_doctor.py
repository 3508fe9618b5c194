"""Messages are recognized by their own words, and a command that helps comes with each."""

import json
import re
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import ModuleType

import pytest
from invoke import Exit, Program

from procedures import RUNBOOK, eos
from runbook import cli
from runbook.connections import Connections, Flags
from runbook.doctor import Evidence, diagnoses, looked_at, recognized
from runbook.errors import GuideError
from runbook.instance import Instance, load
from runbook.observed import Observed
from runbook.plan import Require
from runbook.report import Report
from runbook.run import stand
from runbook.step import Runbook, Symptom, step
from runbook.target import Target
from tasks import ns
from tests.guide import ROOT

QUOTED = {
    """django.db.utils.OperationalError: connection to server at
"<host>" (<ip>), port 6601 failed: FATAL: no pg_hba.conf entry for host "<ip>"
""": "database.access",
    "Readiness probe failed: stat: cannot stat '/eos/project/t/tkdqmdoc': No such file or directory": "eos.mount",
}
"""Every message that the former guide quotes, as it stands there."""

GUIDE, OC, PSQL = "the guide", "oc and the pods' events", "psql and Django"
BUILD, BROWSER = "pip, git and builds", "the browser, nginx and the sign-on"
MESSAGES: dict[str, dict[str, str]] = {
    GUIDE: {
        "error: database.backup: docs/database.md:77: /home/x/backups/dev: No space left on device": "database.backup",
        "error: x: y.md:1: dev is held by x@lxplus:4711 since 13:05:11: deploy.build, last seen 2 s ago": "invoke guide.status",
        "error: another run took dev over while this one gave no sign of life": "invoke guide.status",
        "error: eos.verify needs eos.mount first (PersistentVolumeClaim eos-volume: is not there)\n  next: `invoke guide.run --build=dev --to=eos.verify` does them all":
            "invoke guide.run",
        "every variable that stands on the build config is known here: not so: X stands there and nothing here sets it": "environment.set",
        "the app stays with its database: not so: DJANGO_DATABASE_HOST is a, the instance file wants b": "environment.set",
        "the builder image python:3.8 exists: not so: the image stream python has 3.12-ubi9, latest": "app.create",
        "the builder image nothing:3.8 exists: not so: there is no image stream nothing in the namespace openshift": "app.create",
        "the image stream redis has the tag 5-el8: it has 6-el9, 7-el9": "redis.add",
        "the builder image python:3.8 exists: not so: it does not": "app.create",
        "the image nginx:1.22-ubi8 exists: not so: the image stream nginx has 1.24-ubi9": "nginx.add",
        "the storage class eoss exists: not so: the cluster offers cephfs, eos\n  next: put one of those into the instance file as "
        "`storage_class` below [eos]": "eos.mount",
        "the storage class x exists: not so: the cluster offers cephfs, eos\n  next: put one of those into the instance file as "
        "`storage_class` below [volume]": "volume.share",
        "the branch x of https://g/r.git can be read: not so: https://g/r.git has no branch 'x'": "source.check",
        "Build x-1 ended as Failed: GenericS2IBuildFailed Generic S2I Build failure": "deploy.build",
        "the Route lets in everybody: not so: its list of networks is 10.0.0.0/8": "expose.open",
        "the Route lets in everybody: not so: there is no list of networks, so not everybody may come": "expose.open",
        "the Route lets in CERN only: not so: there is no list of networks, so who may come is not known": "expose.close",
        "the home page, from outside: not so: https://x/ answers 200, and should not": "expose.close",
        'error: secrets is forbidden: User "shifter" cannot delete resource "secrets" in API group "" in the namespace "default"': "oc get",
        "bash: line 11: oc: command not found": "ln -s",
        "curl: (60) SSL certificate problem: unable to get local issuer certificate": "eval",
        "the Route lets in CERN only: not so: its list of networks is empty: everybody may come": "expose.close",
        "it is of the type Opaque, and that cannot be changed": "eos.credentials",
        "the claim shared can be shared: not so: it is ReadWriteOnce, and that cannot be changed": "volume.share",
        "you may do what the steps do: not so: you may not create secrets": "prerequisites.check",
        "git is there: not so: there is no git on PATH": "prerequisites.check",
        "no password of admin at dbod-x.cern.ch:6611 in /home/x/.pgpass": "database.password",
        "Secret redis2: no step names it any more": "invoke guide.status",
        "training: cannot be looked at: the instance file training does not say where to go": "invoke guide.status",
        "a person has to act:\nRequest the site x": "invoke guide.run",
        "this changes production and nobody is at a terminal to confirm": "invoke guide.plan",
        "there is no image '77'; there are abc (x-1)": "deploy.rollback",
        "Deployment x was not rolled out after 300 s; last seen: 0 of 1 pods updated": "invoke guide.doctor",
        "dbod-devcertdb.cern.ch:6611 does not answer: timed out": "database.request",
        "the API server https://api.paas.okd.cern.ch:443 does not answer: MaxRetryError": "prerequisites.login",
        "https://certhelper.web.cern.ch/ does not answer: ConnectTimeoutError": "invoke guide.status",
    },
    OC: {
        'error: the server doesn\'t have a resource type "dc"': "invoke guide.status",
        "error: You must be logged in to the server (Unauthorized)": "oc login",
        "Unable to connect to the server: dial tcp 188.184.1.2:443: i/o timeout": "prerequisites.login",
        'Error from server (NotFound): deployments.apps "x" not found': "invoke guide.status",
        'secrets is forbidden: User "x" cannot list resource "secrets" in API group "" in the namespace "y"': "project.request",
        'ErrImagePull: Failed to pull image "quay.io/x:1": manifest unknown': "oc describe",
        "ImagePullBackOff: Back-off pulling image \"quay.io/x:1\"": "oc describe",
        "ErrImagePull: rpc error: unauthorized: authentication required": "deploy.promote",
        'ProvisioningFailed: storageclass.storage.k8s.io "cephfs-x" not found': "volume.share",
        "Back-off restarting failed container: CrashLoopBackOff": "deploy.build",
        "FailedCreate: pods \"x\" is forbidden: exceeded quota: compute, requested: requests.cpu=1": "oc describe",
        "OOMKilled": "deploy.build",
        "Multi-Attach error for volume \"pvc-1\"": "volume.share",
        "0/3 nodes are available: 3 Insufficient cpu.": "invoke guide.doctor",
        "Readiness probe failed: stat: cannot stat '/eos/project/t/tkdqmdoc'": "eos.mount",
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.": "oc describe",
        "stat: cannot statx '/eos/project/t/x': Transport endpoint is not connected": "eos.mount",
        "write /var/lib/x: no space left on device, No space left on device": "df",
        "HostAlreadyClaimed: route x already exposes a.web.cern.ch": "app.create",
    },
    PSQL: {
        'FATAL:  no pg_hba.conf entry for host "188.185.3.4", user "admin", database "certhelperdb", no encryption': "database.access",
        'FATAL:  no pg_hba.conf entry for host "188.185.3.4", user "admin", database "certhelperdb", SSL encryption': "database.access",
        'psql: error: connection to server at "dbod-x.cern.ch" (188.184.1.2), port 6611 failed: Connection timed out':
            "database.request",
        'could not translate host name "dbod-x.cern.ch" to address: Name or service not known': "database.request",
        'connection to server at "x", port 6611 failed: FATAL:  password authentication failed for user "certhelper"': "database.role",
        'connection to server at "x", port 6611 failed: FATAL:  password authentication failed for user "admin"': "database.password",
        'FATAL:  role "certhelper_b" is not permitted to log in': "database.role",
        'FATAL:  database "admin" does not exist': "database.create",
        'FATAL:  database "certhelperdb" does not exist': "database.create",
        "ERROR:  permission denied to create role": "database.role",
        "django.db.utils.ProgrammingError: permission denied for schema public": "database.create",
        'django.db.utils.ProgrammingError: relation "django_site" does not exist': "database.create",
        "decouple.UndefinedValueError: OMS_CLIENT_ID not found. Declare it as envvar or define a default value.": "environment.set",
        "django.core.exceptions.DisallowedHost: Invalid HTTP_HOST header: '10.244.0.9:8080'.": "environment.set",
        "allauth.socialaccount.models.SocialApp.MultipleObjectsReturned": "sso.verify",
        "redis.exceptions.ResponseError: WRONGPASS invalid username-password pair": "redis.add",
        "redis.exceptions.ConnectionError: Error -2 connecting to redis:6379. Name or service not known.": "redis.add",
    },
    BUILD: {
        "ERROR: Could not find a version that satisfies the requirement x==9": "deploy.build",
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.": "deploy.build",
        "fatal: repository 'https://github.com/x/y.git/' not found": "source.check",
        "fatal: could not read Username for 'https://gitlab.cern.ch': No such device or address": "source.check",
        "warning: Could not find remote branch x to clone.\nfatal: Remote branch x not found in upstream origin": "source.check",
        "/bin/sh: line 1: /tmp/scripts/run: No such file or directory": "eos.mount",
    },
    BROWSER: {
        "Social Network Login Failure": "sso.secret",
        "We are sorry... Invalid parameter: redirect_uri": "sso.register",
        "Application is not available": "deploy.build",
        "<h1>Server Error (500)</h1>": "invoke app.logs",
        "502 Bad Gateway nginx/1.24.0": "nginx.add",
        "413 Request Entity Too Large": "nginx.add",
        "504 Gateway Time-out": "invoke guide.status",
        "503 Service Unavailable": "invoke guide.run",
        "Forbidden (403) CSRF verification failed. Request aborted.": "nginx.add",
        "curl: (52) Empty reply from server": "expose.open",
        "net::ERR_EMPTY_RESPONSE": "expose.open",
        "net::ERR_NAME_NOT_RESOLVED": "invoke guide.status",
    },
}
"""Messages as they are met, by whose they are, and the step, or else the command, that is to be named first."""


def named(message):
    """Return the step, or else the beginning of the command, that is named first."""
    found = recognized(RUNBOOK, message)
    return (found[0].step.name if found[0].step else " ".join(found[0].command.split()[:2])) if found else ""


@pytest.mark.parametrize(("message", "step"), QUOTED.items())
def test_what_the_former_guide_quotes_is_recognized_as_it_stands_there(message, step):
    assert named(message) == step


@pytest.mark.parametrize(("message", "wanted"), [pair for pairs in MESSAGES.values() for pair in pairs.items()])
def test_the_message_leads_to_the_step_that_helps(message, wanted):
    assert named(message).startswith(wanted)


@pytest.mark.parametrize("message", [
    "the home page https://x.web.cern.ch/ answers 503", "certhelper has no pod", "no pod of certhelper is ready", "nothing was built yet"])
def test_an_app_that_does_not_run_is_started(message):
    assert {found.command for found in recognized(RUNBOOK, message)} == {"invoke guide.run --build={build}"}


@pytest.mark.parametrize("message", [message for pairs in MESSAGES.values() for message in pairs])
def test_a_message_without_its_own_words_leads_nowhere(message):
    """What leads there are words of the message, and not that there is one."""
    best = recognized(RUNBOOK, message)[0]
    for part in (part.strip() for quote in best.seen.split("`")[1::2] for part in quote.split("…")):
        message = message.replace(part, "") if part else message
    assert best not in recognized(RUNBOOK, message)


def test_the_longest_match_comes_first():
    text = 'FATAL:  no pg_hba.conf entry for host "::1", user "a", database "b", SSL encryption; the log says CrashLoopBackOff'
    names = [found.step.name for found in recognized(RUNBOOK, text)]
    assert (names[0], names[-1]) == ("database.access", "deploy.build")


def test_what_says_only_a_part_of_a_better_match_is_left_out():
    host = 'FATAL:  no pg_hba.conf entry for host "::1", user "a", database "b"'
    assert [found.seen for found in recognized(RUNBOOK, f"{host}, no encryption")] == ["`no pg_hba.conf entry for host …, no encryption`"]
    assert [found.seen for found in recognized(RUNBOOK, host)] == ["`no pg_hba.conf entry for host`, and the end of the message is not known"]


def test_a_message_that_is_looked_up_for_an_instance_gives_commands_with_its_name(capsys):
    Program(namespace=ns).run("invoke guide.doctor --build=dev --text=CrashLoopBackOff", exit=False)
    assert "next: invoke deploy.build --build=dev\n" in capsys.readouterr().out


def test_what_the_probe_says_at_its_end_tells_no_rights_from_no_path():
    said = "Startup probe failed: stat: cannot stat '/eos/project/t/x': "
    causes = [recognized(RUNBOOK, said + end)[0].cause for end in ("Permission denied", "No such file or directory", "")]
    assert ["may not read" in cause for cause in causes] == [True, False, False]


def test_another_message_is_not_recognized():
    assert recognized(RUNBOOK, "the kettle boils") == []


@pytest.mark.parametrize(("seen", "text", "matched"), [
    ("`a thing … gone`", "a thing of mine is gone", True),
    ("`a thing … gone`", "gone is a thing", False),
    ("It says `400`.", "port 400", False),
    ("It says nothing.", "It says nothing.", False),
])
def test_only_a_quotation_is_matched_and_dots_stand_for_anything(seen, text, matched):
    assert bool(Symptom(seen, "Because.", "invoke x").matched(text)) is matched


def test_each_symptom_is_told_once_with_where_it_was_seen_first():
    said = [Evidence("pod a", "OOMKilled"), Evidence("pod b", "OOMKilled"), Evidence("pod c", "nothing known")]
    assert [(one.evidence.origin, one.symptom.seen) for one in diagnoses(RUNBOOK, said)] == [("pod a", "`OOMKilled`")]


class Cluster(BaseHTTPRequestHandler):
    """A cluster without a project, or with one in which nothing may be looked at."""

    project = False

    def do_GET(self):
        status = 404 if not self.project else 200 if self.path.startswith("/api/v1/namespaces/dev-certhelper?") \
            or self.path == "/api/v1/namespaces/dev-certhelper" else 403
        said = json.dumps({"metadata": {"name": "dev-certhelper"}, "message": "that is forbidden"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_words):
        pass


@pytest.fixture
def connections(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    Thread(target=server.serve_forever, daemon=True).start()
    known = {"clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
             "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}], "users": [{"name": "c", "user": {"token": "t"}}]}
    (tmp_path / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "c", **known}))
    with closing(Connections(load(ROOT / "instances" / "dev.toml"), Target("cern", tmp_path / "kubeconfig"), Flags(), tmp_path)) as made:
        yield made
    server.shutdown()
    server.server_close()


def two_steps(stands, looks, **words):
    """Return a runbook of a standing step and of an operation that looks; each is told what it finds."""
    procedure = ModuleType("procedures.given")
    for name, operation, found in (("stands", False, stands), ("looks", True, looks)):
        def function(_instance: Instance, _observed: Observed, _found: str = found):
            """Do it."""
            yield Require("all is well", _found, "")
        function.__name__, function.__module__ = name, procedure.__name__
        setattr(procedure, name, step(operation=operation, **words)(function))
    return Runbook((procedure,), RUNBOOK.symptoms)


def test_each_step_is_looked_at_once(connections):
    assert [standing.name for standing in looked_at(two_steps("", ""), connections)] == ["given.stands", "given.looks"]


def ended(name, book, connections, capsys):
    """Run one of the guide's tasks; return the commands that it names."""
    task = {"doctor": cli._guide_doctor, "plan": cli._guide_plan}[name]
    with pytest.raises(Exit):
        task(book, connections, {"to": ""}, Report(as_json=False))
    return [line.partition("next: ")[2] for line in capsys.readouterr().out.splitlines() if "next: " in line]


@pytest.mark.parametrize(("stands", "looks", "commands"), [
    ("it is not there", "", ["invoke guide.run --build=dev"]),
    ("no pod of certhelper is ready", "", ["invoke guide.run --build=dev"]),
    ("CrashLoopBackOff", "", ["invoke deploy.build --build=dev", "invoke guide.run --build=dev"]),
    ("", "CrashLoopBackOff", ["invoke deploy.build --build=dev"]),
    ("", "", []),
])
def test_the_doctor_ends_with_the_run_that_mends_a_step_unless_a_diagnosis_names_it(stands, looks, commands, connections, capsys):
    assert ended("doctor", two_steps(stands, looks), connections, capsys) == commands


@pytest.mark.parametrize(("stands", "commands"), [("it is not there", ["invoke guide.run --build=dev"]), ("", [])])
def test_a_plan_with_something_to_do_names_the_command_that_does_it(stands, commands, connections, capsys):
    assert ended("plan", two_steps(stands, ""), connections, capsys) == commands


@pytest.mark.parametrize(("said", "printed"), [
    ("`invoke guide.run --build=dev` makes it", "`invoke guide.run --build=dev --target=cern` makes it"),
    ("invoke volume.share --undo --data --build=dev", "invoke volume.share --undo --data --build=dev --target=cern"),
    ("invoke guide.run --build=dev --to=app.create", "invoke guide.run --build=dev --target=cern --to=app.create"),
    ("invoke guide.run --build=dev --target=local", "invoke guide.run --build=dev --target=local"),
    ("invoke guide.run --build=dev-2", "invoke guide.run --build=dev-2"),
])
def test_a_command_names_the_target_that_the_instance_file_does_not(said, printed, capsys):
    report = Report(as_json=False)
    report.line(said)
    report.aim("dev", "cern")
    report.line(said)
    report.error(GuideError("x", said))
    report.aim("dev", "")
    report.line(said)
    shown = capsys.readouterr()
    assert (shown.out.splitlines(), shown.err.splitlines()) == ([said, printed, said], ["error: x", f"  next: {printed}"])


@pytest.mark.parametrize(("own", "cure"), [("", "--build=dev --target=cern`"), ('target = "cern"', "--build=dev`")])
def test_a_run_has_its_target_in_its_cures_when_the_instance_file_names_none(own, cure, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    known = (ROOT / "instances" / "dev.toml").read_text()
    assert known.count('target = "local"\n') == 1
    (tmp_path / "dev.toml").write_text(known.replace('target = "local"\n', f"{own}\n"))
    root = cli.namespace(RUNBOOK, tmp_path, lambda _: Target("local"))
    Program(namespace=root).run("invoke prerequisites.check --build=dev --target=cern", exit=False)
    assert f"`invoke prerequisites.login {cure}" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_that_the_instance_file_does_not_ask_for_says_so_before_it_is_done(wanted, connections, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RUNBOOK_JOURNAL", str(tmp_path / "journal"))
    given = two_steps("", "", wanted=lambda _: wanted, setting="`it` below [x]").standing[0]
    cli._run_step(given, connections, {}, {}, Report(as_json=False))
    *before, last = capsys.readouterr().out.splitlines()
    assert last.startswith("unchanged")
    assert ["`it` below [x] there asks for it" in line for line in before] == [True] * (not wanted)


@pytest.mark.parametrize("known", [known for known in RUNBOOK.steps if known.setting], ids=lambda known: known.name)
def test_the_setting_that_asks_for_a_step_is_one_of_the_instance_file(known):
    key, table = re.fullmatch(r"`(\w+)(?: = true)?` below \[(\w+)\]", known.setting).groups()
    assert hasattr(getattr(load(ROOT / "instances" / "dev.toml"), table), key)


def test_what_must_hold_is_told_from_what_was_found(connections):
    (difference,) = stand(two_steps("it is empty", "").standing[0], connections).differences
    assert (difference.what, difference.note) == ("all is well", "not so: it is empty")


@pytest.mark.parametrize(("project", "state"), [(False, "missing"), (True, "unknown")])
def test_what_cannot_be_looked_at_has_a_name_and_without_a_project_it_is_missing(project, state, connections, monkeypatch):
    monkeypatch.setattr(Cluster, "project", project)
    standing = stand(eos.verify, connections)
    (difference,) = standing.differences
    assert (standing.state, difference.what) == (state, next(eos.verify.plan(connections.instance, connections.observed)).what)


@pytest.mark.parametrize("symptom", RUNBOOK.symptoms, ids=lambda symptom: symptom.seen[:40])
def test_every_symptom_has_a_cause_and_a_command_that_there_is(symptom):
    assert symptom.cause.rstrip(")*").endswith(".")
    command = symptom.command.format(build="dev", project="x", api="https://y")
    words = command.split()
    assert words[0] in {"invoke", "oc", "df", "ln", "eval"}
    if words[0] == "invoke":
        task = ns[words[1]]
        known = {"--" + argument.name.replace("_", "-") for argument in task.get_arguments()}
        assert {word.partition("=")[0] for word in words[2:]} <= known
