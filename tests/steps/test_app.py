"""Daily life on the stack: logs, a shell, a superuser, a restart."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runbook.clients.cluster import Cluster
from tests.guide import ROOT, Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")


def sql(site: Site, statement: str) -> list[tuple[Any, ...]]:
    """Execute in the app's database as the app's role."""
    import psycopg2

    db, state = site.instance.database, site.guide.stack.state
    connection = psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=db.administrator, dbname=db.name,
                                  passfile=str(state.pgpass), sslmode="verify-full", sslrootcert=str(state.ca))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(f'SET ROLE "{db.role}"')
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def pods(site: Site) -> set[str]:
    """Return the app's pods that are not on their way out."""
    return {pod["metadata"]["name"] for pod in site.guide.stack.api.list("Pod", site.instance.project)
            if pod["metadata"]["labels"].get("app") == site.instance.app and "deletionTimestamp" not in pod["metadata"]}


def test_the_log_is_that_of_the_running_pod(site: Site) -> None:
    site.guide.web().request("GET", f"{site.instance.url}/canary-in-the-log/")
    assert "canary-in-the-log" in site("app.logs").stdout
    few = site("app.logs", "--lines=2").stdout.splitlines()
    assert 1 < len(few) <= 3  # with the header; nothing comes after what was asked for
    assert list(site.outcomes("app.logs", "--lines=2")) == ["app.logs"]
    refused = site("app.logs", "--previous", code=1)
    assert "previous terminated container" in refused.stderr


def test_where_the_cluster_refuses_it_is_asked_first_whether_the_project_is_there(site: Site) -> None:
    """It refuses what is not there as what is somebody else's."""
    project = site.instance.project
    site.change({"project": "not-there"})
    try:
        refused = site("app.logs", code=1).stderr
    finally:
        site.change({"project": project})
    assert 'in the namespace "not-there"' in refused and "is the project there? `project.request` asks for it" in refused


def test_a_followed_log_goes_on(site: Site) -> None:
    command = [sys.executable, "-m", "runbook", "app.logs", "--follow", f"--build={site.name}"]
    with subprocess.Popen(command, env=site.guide.environment | site.environment, cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()  # the header: it is connected soon
        stop = threading.Event()

        def visit() -> None:
            while not stop.wait(0.5):
                site.guide.web().request("GET", f"{site.instance.url}/canary-that-follows/")

        visitor = threading.Thread(target=visit)
        visitor.start()
        try:
            assert any("canary-that-follows" in line for line in run.stdout)
        finally:
            stop.set()
            visitor.join()
            run.terminate()


def test_a_shell_is_a_terminal_in_the_pod(site: Site) -> None:
    (pod,) = pods(site)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "runbook", "app.shell", f"--build={site.name}"],
                  site.guide.environment | site.environment)
    said = ""
    deadline, sent = time.monotonic() + 60, False
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                said += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # it ended
                break
        if f"pod {pod}" in said and not sent and re.search(r"[$#] $", said):
            os.write(terminal, b"test -t 0 && echo sum-$((40+2)) && test -f manage.py && exit\n")
            sent = True
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said
    assert "sum-42" in said


def test_without_a_terminal_there_is_no_shell(site: Site) -> None:
    assert "a shell needs a terminal" in site("app.shell", code=2).stderr


def test_a_user_becomes_a_superuser_once(site: Site) -> None:
    asked = site("app.admin", "--user=visitor", code=1)
    assert "there is no user visitor" in asked.stderr and "RUNBOOK_ADMIN_PASSWORD_FILE" in asked.stderr
    sql(site, "INSERT INTO auth_user (username, password, first_name, last_name, email, is_superuser, is_staff, is_active, "
              "date_joined) VALUES ('visitor', '!', '', '', '', false, false, true, now())")
    try:
        assert site.outcomes("app.admin", "--user=visitor")["app.admin"]["state"] == "changed"
        assert sql(site, "SELECT is_superuser, is_staff, password FROM auth_user WHERE username = 'visitor'") == [(True, True, "!")]
        assert site.outcomes("app.admin", "--user=visitor")["app.admin"]["state"] == "unchanged"
    finally:
        sql(site, "DELETE FROM auth_user WHERE username = 'visitor'")


def test_a_superuser_with_a_password_can_use_it_and_nobody_sees_it(site: Site) -> None:
    try:
        done = site("app.admin", "--user=keeper", RUNBOOK_ADMIN_PASSWORD="canary-of-the-keeper")
        assert "canary" not in done.stdout + done.stderr
        assert "canary-of-the-keeper" not in (site.guide.stack.state.path("logs", "audit.log")).read_text()
        (kept,) = sql(site, "SELECT password FROM auth_user WHERE username = 'keeper' AND is_superuser")
        assert kept[0].startswith("pbkdf2_sha256$")
    finally:
        sql(site, "DELETE FROM auth_user WHERE username = 'keeper'")


MODEL = """
from django.contrib.auth.models import AbstractUser
from django.db import models
class User(AbstractUser):
    GUEST, SHIFTER, SHIFTLEADER, EXPERT, ADMIN = 0, 10, 20, 30, 50
    user_privilege = models.IntegerField(default=GUEST, choices=(
        (GUEST, "Guests"), (SHIFTER, "Shifters"), (SHIFTLEADER, "Shift Leaders"), (EXPERT, "Experts"), (ADMIN, "Administrators")))
"""
"""The users of certhelper, as far as a role goes."""
SHAPED = """
AUTH_USER_MODEL = "shape.User"
INSTALLED_APPS = ["shape", *INSTALLED_APPS]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/tmp/shape.sqlite3"}}
"""
MADE = """
from django.contrib.auth.models import Group
from shape.models import User
Group.objects.create(name="Experts")
User.objects.create(username="worker")
"""
HELD = """
import sqlite3
base = sqlite3.connect("/tmp/shape.sqlite3")
print(*base.execute("SELECT user_privilege, is_staff, is_superuser FROM shape_user WHERE username = 'worker'").fetchone(),
      *base.execute("SELECT name FROM auth_group JOIN shape_user_groups ON auth_group.id = group_id").fetchall())
"""
"""What of it lies in the database, read without the app."""


@pytest.fixture
def certhelper(site: Site) -> Iterator[Site]:
    """The site, whose commands meet certhelper's users in a database of their own; the app itself serves on as it is."""
    pod = f"deployment/{site.instance.app}"
    site.inside(pod, "sh", "-c", "mkdir shape && touch shape/__init__.py && cat > shape/models.py", text=MODEL)
    try:
        with site.settings(SHAPED):
            site.inside(pod, "python", "manage.py", "migrate", "--run-syncdb")
            yield site
    finally:
        site.inside(pod, "rm", "-rf", "shape", "/tmp/shape.sqlite3")


def test_a_role_is_given_as_certhelper_keeps_it_and_taken_away(certhelper: Site) -> None:
    missing = certhelper("app.admin", "--user=worker", "--role=expert", code=1)
    assert "there is no user worker" in missing.stderr
    pod = f"deployment/{certhelper.instance.app}"
    certhelper.inside(pod, "python", "manage.py", "shell", "-c", MADE)
    for role, held in (("expert", "30 1 0 ('Experts',)"), ("admin", "50 1 1"), ("shifter", "10 0 0"), ("guest", "0 0 0")):
        assert certhelper.outcomes("app.admin", "--user=worker", f"--role={role}")["app.admin"]["state"] == "changed"
        assert certhelper.inside(pod, "python", "-c", HELD).strip() == held
    assert certhelper.outcomes("app.admin", "--user=worker", f"--role={role}")["app.admin"]["state"] == "unchanged"


def test_what_went_wrong_inside_a_pod_is_said_last(site: Site) -> None:
    """However the streams of its process overtake each other: Django's shell says on one what it imported."""
    cluster = Cluster(site.instance.project, site.guide.stack.state.kubeconfig)
    pod = next(iter(pods(site)))
    for lines in ("echo wrong >&2; sleep 0.3; echo imported; exit 3", "echo imported; echo wrong >&2; exit 3"):
        assert cluster.execute(pod, site.instance.app, ("sh", "-c", lines)) == (3, "imported\nwrong\n")


def test_an_app_that_keeps_no_roles_says_where_they_are_given(site: Site) -> None:
    refused = site("app.admin", "--user=visitor", "--role=expert", code=1).stderr
    assert "the app keeps no roles" in refused and "application portal" in refused


@pytest.mark.parametrize(("words", "says"), [((), "which user?"), (("--user=a b",), "is no user's name"),
                                             (("--user=a", "--role=boss"), "there is no role 'boss'")])
def test_a_wrong_name_is_one_sentence(site: Site, words: tuple[str, ...], says: str) -> None:
    assert says in site("app.admin", *words, code=2).stderr


def test_a_restart_makes_fresh_pods_without_a_gap_and_leaves_nothing_to_do(site: Site) -> None:
    before = pods(site)
    with site.visited() as answers:
        site("app.restart")
    live = pods(site)
    assert len(live) == len(before) and not live & before
    assert set(answers) == {200}
    assert {s["state"] for s in site.outcomes("guide.status").values()} <= {"done", "not wanted"}
