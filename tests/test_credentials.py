"""What only the reader knows: given by a file, a variable, or at the prompt of a terminal; and the name that is typed before data goes."""

from __future__ import annotations

import base64
import os
import pty
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guide import ROOT, Site

pytestmark = pytest.mark.needs("cluster", "database", "databases", "redis", "portal", "sign-on", "node", "builder", "router")

TOKEN, USER = "RUNBOOK_SOURCE_TOKEN", {"RUNBOOK_SOURCE_USER": "git"}


@pytest.fixture(scope="module")
def asking(site: Site) -> Iterator[Site]:
    """The site with a repository that is said to be private, for which nobody gave a token yet."""
    site.change({"source": {"private": True}})
    yield site
    site.change({"source": {"private": None}})
    site.guide.stack.member.delete("Secret", f"{site.instance.app}-source", site.instance.project)
    site("guide.run")


def kept(site: Site) -> str | None:
    """Return the token that the project's Secret has, None when it has none."""
    live = site.guide.stack.api.get("Secret", f"{site.instance.app}-source", site.instance.project)
    return base64.b64decode(live["data"]["password"]).decode() if live else None


def typed(site: Site, command: str, *words: str, prompt: str, answer: str) -> tuple[int, str]:
    """Run a command on a terminal of its own and answer its prompt; return its exit code and all that the terminal showed."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        python = str(ROOT / ".venv/bin/python")
        os.execve(python, [python, "-m", "runbook", command, f"--build={site.name}", *words],
                  site.guide.environment | site.environment | USER | {"TERM": "dumb"})
    shown, answered, deadline = "", False, time.monotonic() + 180
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                part = os.read(terminal, 4096)
            except OSError:  # Linux says so when the other end is closed.
                break
            if not part:
                break
            shown += part.decode(errors="replace")
            if prompt in shown and not answered:
                answered = True
                os.write(terminal, f"{answer}\n".encode())
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_without_anybody_to_ask_it_says_how_to_give_it(asking: Site) -> None:
    asked = asking("app.create", code=75, **USER)
    assert f"{TOKEN}_FILE" in asked.stderr
    assert kept(asking) is None


def test_the_prompt_of_a_terminal_is_answered_and_shows_nothing_of_it(asking: Site) -> None:
    code, shown = typed(asking, "app.create", prompt="token that may only read", answer="canary-typed")
    assert code == 0, shown
    assert kept(asking) == "canary-typed"
    assert "canary" not in shown
    # Given once, nobody is asked again.
    assert asking.outcomes("app.create")["app.create"]["state"] == "unchanged"


def test_a_variable_wins_over_what_is_kept(asking: Site) -> None:
    asking("app.create", **{TOKEN: "canary-variable"})
    assert kept(asking) == "canary-variable"


@pytest.mark.parametrize(("mode", "said"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_file_wins_over_a_variable_and_one_that_others_can_read_is_said(asking: Site, tmp_path: Path, mode: int, said: bool) -> None:
    file = tmp_path / "token"
    file.write_text(f"canary {mode:o}\n")
    file.chmod(mode)
    done = asking("app.create", **{TOKEN: "canary-variable", f"{TOKEN}_FILE": str(file)})
    assert kept(asking) == f"canary {mode:o}", "a line break at the end does not belong to it"
    assert (f"chmod 600 {file}" in done.stdout) is said
    assert "canary" not in done.stdout + done.stderr


def test_a_file_that_is_not_there_changes_nothing(asking: Site, tmp_path: Path) -> None:
    before = kept(asking)
    failed = asking("app.create", code=1, **{f"{TOKEN}_FILE": str(tmp_path / "nothing")})
    assert f"{TOKEN}_FILE names {tmp_path / 'nothing'}" in failed.stderr
    assert kept(asking) == before


def databases(site: Site) -> set[str]:
    import psycopg2

    db, state = site.instance.database, site.guide.stack.state
    connection = psycopg2.connect(host=db.host, hostaddr="127.0.0.1", port=db.port, user=db.administrator, dbname="postgres",
                                  passfile=str(state.pgpass), sslmode="verify-full", sslrootcert=str(state.ca))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        found = {name for (name,) in cursor.fetchall()}
    connection.close()
    return found


def test_data_goes_only_when_the_instances_name_was_typed(asking: Site) -> None:
    name, words = asking.instance.database.name, ("--undo", "--data")
    for wrong in ("yes", "", "dev"):
        code, shown = typed(asking, "database.create", *words, prompt="Type the instance's name to go on: ", answer=wrong)
        assert code == 2 and "that is not the instance's name" in shown
        assert name in databases(asking)
    code, shown = typed(asking, "database.create", *words, prompt="Type the instance's name to go on: ", answer=asking.name)
    assert code == 0, shown
    assert name not in databases(asking)
    asking("guide.run")
    asking("app.restart")  # Its start script makes the tables.
    assert asking.guide.web().request("GET", f"{asking.instance.url}/database/")[0] == 200
