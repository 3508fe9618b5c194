"""The journal: what was run when, by whom, with which result. For people; nothing is decided from it."""

from __future__ import annotations

import datetime as dt
import getpass
import json
import os
from pathlib import Path
from typing import Any


def path() -> Path:
    """Return the journal's file: `RUNBOOK_JOURNAL`, else below `$XDG_STATE_HOME`."""
    named = os.environ.get("RUNBOOK_JOURNAL")
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(named) if named else Path(home) / "certhelper-guide-journal.jsonl"


def write(**entry: Any) -> None:
    """Add an entry. A journal that cannot be written is no reason to fail: nothing depends on it."""
    try:
        entry = {"time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "user": getpass.getuser()} | entry
        path().parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            file.write(json.dumps(entry) + "\n")
    except (OSError, KeyError):
        return
