"""The way of a step in the web console: clicks and values, written on the page beside the step's prose.

Pure: from text to text. A placeholder such as `{redis.name}` is an attribute of the instance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce

from runbook import markdown
from runbook.errors import WrongUse
from runbook.instance import Instance

MARK = re.compile(r"^=== web console[ \t]*$", re.MULTILINE)
PLACEHOLDER = re.compile(r"\{([a-z_]+(?:\.[a-z_]+)*)\}")


def split(body: str) -> tuple[str, str]:
    """Return what a step's fence holds in two: the prose, and the way in the web console, "" when there is none."""
    prose, *way = MARK.split(body, maxsplit=1)
    return prose.strip("\n"), way[0].strip("\n") if way else ""


def ways(text: str, instances: Sequence[Instance]) -> str:
    """Return the text with each instance's values, as tabs where they differ.

    Raises WrongUse that names a placeholder which is no attribute of an instance.
    """
    return markdown.tabs({each.name: filled(text, each) for each in instances})


def filled(text: str, instance: Instance) -> str:
    """Return the text with the instance's values in place of its placeholders."""
    def value(found: re.Match[str]) -> str:
        try:
            return str(reduce(getattr, found[1].split("."), instance))
        except AttributeError as error:
            raise WrongUse(f"{found[0]} is no setting of an instance", "docs/settings.md lists them") from error

    return PLACEHOLDER.sub(value, text)
