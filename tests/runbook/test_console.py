"""The web console way of a step: what stands on its page is filled in for each instance, drawn, and marked."""

import dataclasses
import re
from html import unescape
from pathlib import Path

import markdown as python_markdown
import pytest

from procedures import RUNBOOK
from runbook import console, pages
from runbook.console import split, ways
from runbook.errors import WrongUse
from runbook.instance import load
from runbook.markdown import indented, tab
from runbook.plan import Apply, Ask, Credential, Object, Patch

ROOT = Path(__file__).parents[2]
DEV, TRAINING = (load(ROOT / "instances" / f"{name}.toml") for name in ("dev", "training"))
PLAN = (
    Ask("Light it.", "https://lamps.example/", "lamps", {"colours": ["red", "blue"]}, until=Object("Lamp", "lamp")),
    Apply({"kind": "Lamp", "metadata": {"name": "lamp", "annotations": {"lamp.example/volt_age": "230"}},
           "stringData": {"key": Credential("lamp", "key of the lamp"), "colour": "red"},
           "bulbs": [{"name": "FIRST", "value": "40 W"},
                     {"name": "SECOND", "valueFrom": {"secretKeyRef": {"name": "lamp", "key": "SECOND"}}},
                     {"name": "THIRD", "valueFrom": {"secretKeyRef": {"name": "lamp", "key": "colour"}}}]}),
    Patch(Object("Switch", "switch"), {"spec": {"on": True}}, "it is on"),
)


def plain(text, *instances, plan=PLAN):
    """Return a way without its mark."""
    return ways(f"cannot\n{text}", instances or [DEV], lambda _: plan)


def test_what_stands_after_the_line_is_the_way():
    assert split("Why.\n\n=== web console\n1. Press.\n") == ("Why.", "1. Press.")
    assert split("=== web console\n1. Press.") == ("", "1. Press.")


def test_a_body_without_the_line_has_no_way():
    for body in ("Why.", 'Why.\n\n=== "web console"\n\n    no', "Why: === web console"):
        assert split(body) == (body, "")
    assert ways("", [DEV]) == ""


@pytest.mark.parametrize(("path", "wanted"), [
    ("project", "dev-certhelper"),
    ("database.port", "6611"),
    ("url", "https://dev-certhelper.web.cern.ch"),
    ("path.name", "dev.toml"),
    ("console", console.CONSOLE),
    ("Ask.where", "https://lamps.example/"),
    ("Ask.values.colours", "red, blue"),
    ("Ask.values.colours.1", "blue"),
    ("Lamp.metadata.annotations.lamp.example/volt_age", "230"),
    ("Lamp.bulbs.FIRST.value", "40 W"),
    ("Lamp.bulbs.1.valueFrom.secretKeyRef.key", "SECOND"),
    ("Lamp.stringData.key", "<key of the lamp>"),
    ("Switch.metadata.name", "switch"),
    ("Switch.spec.on", "True"),
])
def test_a_placeholder_is_filled_from_the_instance_or_from_the_plan(path, wanted):
    assert plain(f"a {{{path}}}, and {{ braces }}") == f"a {wanted}, and {{ braces }}"


@pytest.mark.parametrize("path", ["proyect", "database.hosts", "database.host.upper", "site._hidden", "Ask.values.no", "Bell.metadata",
                                  "Lamp.bulbs.FOURTH", "Lamp.bulbs.9"])
def test_an_unknown_placeholder_is_named(path):
    with pytest.raises(WrongUse, match=re.escape(f"{{{path}}}")):
        plain(f"a {{{path}}}")


def test_what_is_the_same_for_all_instances_stands_once():
    assert plain("1. Press {app}.", DEV, TRAINING) == f"1. Press {DEV.app}."


def test_what_differs_stands_in_a_tab_for_each_instance():
    assert plain("1. Open {host}.", DEV, TRAINING) == (
        f'=== "dev"\n\n    1. Open {DEV.host}.\n\n=== "training"\n\n    1. Open {TRAINING.host}.')


def test_an_instance_whose_plan_has_nothing_of_it_gets_no_tab():
    managed = dataclasses.replace(TRAINING, sso=dataclasses.replace(TRAINING.sso, way="return-uri"))
    text = ways("cannot\nOpen {Ask.where}.", [DEV, managed], lambda one: () if one.sso.way == "return-uri" else PLAN)
    assert text == '=== "dev"\n\n    Open https://lamps.example/.'


@pytest.mark.parametrize(("first", "wanted"), [
    ("", "*Not confirmed since 2023.*\n\n"),
    ("confirmed: 2026-11-03\n", "*Confirmed on 2026-11-03.*\n\n"),
    ("untried\n", "*Not in the former guide, and not confirmed at CERN.*\n\n"),
    ("cannot\n", ""),
    ("confirmed: yesterday\n", "*Not confirmed since 2023.*\n\nconfirmed: yesterday\n"),
])
def test_a_way_says_who_has_confirmed_it(first, wanted):
    assert ways(f"{first}Press.", [DEV]) == f"{wanted}Press."


def test_a_form_is_drawn_with_a_line_for_each_entry_of_a_table():
    text = plain("~~~form Lamp of {project}\nName*: {Lamp.metadata.name}\nKey / Value: {Lamp.stringData}\n<Light>\n~~~\nafter")
    svg, _, after = text.rpartition("\n")
    assert after == "after"
    assert shown(svg, "title") == ["Lamp of dev-certhelper"]
    assert shown(svg, "desc") == [
        "Name (must be given): lamp; Key: key; Value: <key of the lamp>; Key: colour; Value: red; button Light."]


def test_a_value_that_looks_like_a_placeholder_is_a_value():
    odd = (Apply({"kind": "Lamp", "metadata": {"name": "{no.such}"}}),)
    assert "{no.such}" in shown(plain("~~~form Lamp\nName: {Lamp.metadata.name}\n~~~", plan=odd), "desc")[0]


def test_a_wrong_line_of_a_form_is_named():
    with pytest.raises(WrongUse, match="Press here"):
        plain("~~~form Lamp\nPress here\n~~~")


def test_values_are_listed_where_they_are_wanted():
    assert plain("1. Make\n\n    ~~~values Lamp.stringData\n    ~~~\n\n2. Go") == (
        "1. Make\n\n    - `key`: key of the lamp\n    - `colour`: `red`\n\n2. Go")
    assert plain("~~~values Lamp.bulbs\n~~~").splitlines() == [
        "- `FIRST`: `40 W`", "- from the Secret `lamp`: `SECOND`, `THIRD` (key `colour`)"]
    with pytest.raises(WrongUse, match="neither a table nor a list"):
        plain("~~~values Lamp.metadata.name\n~~~")


def test_a_form_survives_markdown_inside_tabs_and_lists():
    """Markdown reads what it finds inside a tab: nothing of a form may mean anything to it."""
    form = "~~~form *A* _form_ of `code` & <tags>\nA [link](x): *b* _c_ `d` <e> & f https://x.example/ ==g==\n[x] {project}\n~~~"
    way = f"1. Press\n\n{indented(form)}\n\n{form}"
    html = python_markdown.markdown(f'=== "one"\n\n    a\n\n{tab("web console", plain(way, DEV, TRAINING))}', extensions=[
        "admonition", "attr_list", "def_list", "tables", "pymdownx.details", "pymdownx.superfences", "pymdownx.tabbed"])
    assert shown(html, "title") == ["*A* _form_ of `code` & <tags>"] * 4
    assert shown(html, "desc") == [f"A [link](x): *b* _c_ `d` <e> & f https://x.example/ ==g==; {one.project}: ticked."
                                   for one in (DEV, DEV, TRAINING, TRAINING)]
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert set(re.findall(r"<(\w+)", svg)) <= {"svg", "title", "desc", "rect", "path", "text"}


def shown(html, tag):
    """Return the texts of the elements of this name, as a browser reads them."""
    return [unescape(found) for found in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)]


def test_a_wrong_placeholder_on_a_page_is_told_with_file_and_line(tmp_path):
    page = tmp_path / "redis.md"
    page.write_text("# A\n\n```step redis.add\nWhy.\n=== web console\n{redis.nam}\n```\n")
    with pytest.raises(WrongUse, match=r"redis\.md:3: \{redis\.nam\}"):
        pages.page(page, pages.fences(pages.Sections(RUNBOOK, [DEV]), ROOT))
