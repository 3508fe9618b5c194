"""A step's section, and the fences of a page: from values and text to text."""

import re
from pathlib import Path
from types import ModuleType
from typing import Annotated

import markdown as python_markdown
import pytest

from procedures import RUNBOOK
from runbook import markdown, options, pages
from runbook.errors import WrongUse
from runbook.observed import Observed
from runbook.plan import Apply, Credential, Execute, StartBuild, secret
from runbook.step import Runbook, step

ROOT = Path(__file__).parents[2]
INSTANCES = pages.load(ROOT)
INSTANCE = INSTANCES[0]
STEPS = pytest.mark.parametrize("known", RUNBOOK.steps, ids=lambda known: known.name)


@step(see="A lamp is lit.", otherwise=(("It is dark.", "Look for the switch."),), unconfirmed="Is there a lamp?")
def light(instance, observed, *, colour: Annotated[str, "Colour of the lamp."] = "red"):
    """Light the lamp."""
    yield Apply(secret("lamp", {"key": Credential("lamp", "key of the lamp", generated=True)}), data=True)
    yield Execute("CREATE ROLE lamp", unless="SELECT 1", undo="DROP ROLE lamp", data=True)


def parts():
    return markdown.section(light, INSTANCES, "It was dark.\n\n=== web console\nPress {host}.")


def test_a_section_goes_from_command_to_what_is_seen_to_what_else_to_reason_to_the_ways():
    text = parts()
    places = [text.index(part) for part in (
        "## test_markdown.light", "Light the lamp.", "invoke test_markdown.light --build=dev\n", "**You should see:** A lamp is lit.",
        "It is dark.\n:   Look for the switch.", "Not confirmed at CERN", "It was dark.", '=== "invoke"', "What it does", "Options",
        "Undo", '=== "oc"', '=== "web console"')]
    assert places == sorted(places)


def test_a_command_stands_there_for_each_place_and_instance():
    text = parts()
    first = text[:text.index("**You should see")]
    assert re.findall("invoke .*", first) == [
        "invoke test_markdown.light --build=dev", "invoke test_markdown.light --build=training --target=local",
        "invoke test_markdown.light --build=production --target=local", "invoke test_markdown.light --build=dev --target=cern",
        "invoke test_markdown.light --build=training --target=cern", "invoke test_markdown.light --build=production --target=cern"]
    assert re.findall('=== "(.*)"', first) == ["local", "dev", "training", "production", "CERN", "dev", "training", "production"]


def test_each_instance_has_its_own_values_and_what_is_the_same_is_said_once():
    for instance in INSTANCES:
        assert f"Press {instance.host}." in parts()
        assert f"-n {instance.project} " in parts()
    assert markdown.tabs({"a": "same", "b": "same"}) == "same"


def test_a_persons_deeds_are_boxes_that_are_told_apart():
    text = markdown.section(RUNBOOK.find("project.request"), INSTANCES)
    ticks = re.findall(r'<label><input type="checkbox" data-tick="project.request/(\w+)/\d+"> (.*)</label>', text)
    assert {name for name, _ in ticks} == {"dev", "training", "production"}
    assert any(INSTANCE.project in deed for _, deed in ticks)
    names = re.findall('data-tick="(.*?)"', text)
    assert len(names) == len(set(names))


def test_the_source_is_linked_where_it_can_be_edited():
    redis = RUNBOOK.find("redis.add")
    sections = pages.Sections(RUNBOOK, INSTANCES, edit="https://x.example/edit/main/")
    assert "[source](https://x.example/edit/main/procedures/redis.py)" in sections.stamped(redis, "")
    assert "source]" not in pages.Sections(RUNBOOK, INSTANCES).stamped(redis, "")


def test_a_credential_shows_as_its_label():
    assert "key: <key of the lamp>" in parts()


def test_options_are_the_steps_own_and_those_that_its_plan_gives():
    plan = options.outline(light, INSTANCE, Observed())
    assert [option.name for option in options.options(plan)] == [
        "build", "target", "dry", "commands", "undo", "data", "force", "rotate", "yes", "json", "debug"]
    assert "| `--colour` | Colour of the lamp. | `red` |" in parts()
    assert "again" in [option.name for option in options.options([StartBuild("a", "a", "a", "")])]


def test_undo_says_what_needs_data():
    assert "- Executes `DROP ROLE lamp`, only with `--data`." in parts()
    assert "- Deletes Secret lamp, once no other step has fields in it. It holds data: only with `--data`." in parts()


@STEPS
def test_every_step_says_what_is_seen_and_what_else_to_do(known):
    assert known.see.endswith(".")
    assert known.otherwise
    assert known.summary.endswith(".")


@STEPS
def test_every_section_is_whole(known):
    text = python_markdown.markdown(markdown.section(known, INSTANCES), extensions=[
        "admonition", "attr_list", "def_list", "tables", "pymdownx.details", "pymdownx.superfences", "pymdownx.tabbed"])
    assert f'id="{known.name}"' in text
    assert "```" not in text
    assert "???" not in text
    assert text.count("<details") == (2 if known.undoes else 3)  # an undo is not undone


def test_fences_are_replaced_and_code_blocks_are_not():
    text = "a\n```step x.y\nwhy\n```\n\n```sh\nls\n```\n````text\n```step z\n```\n````\nb\n"
    made = pages.expand(text, {"step": lambda name, body: f"<{name}|{body}>"})
    assert made == "a\n<x.y|why>\n\n```sh\nls\n```\n````text\n```step z\n```\n````\nb\n"
    assert pages.steps_named(text) == ["x.y"]


def test_a_fence_that_names_no_step_is_told_with_its_line(tmp_path):
    page = tmp_path / "database.md"
    page.write_text("# A\n\ntext\n\n```step database.creat\n```\n")
    with pytest.raises(WrongUse, match=r"database\.md:5: .*'database\.creat'.*database\.create"):
        pages.page(page, pages.fences(pages.Sections(RUNBOOK, INSTANCES), ROOT))


def test_statements_come_from_docstrings_without_an_import(tmp_path):
    (tmp_path / "lamp.py").write_text(
        '"""A lamp.\n\nStands for: the\nsun.\nDiffers: it is small.\n"""\nimport nothing\n')
    (tmp_path / "plain.py").write_text('"""Stays out."""\n')
    assert pages.differs(tmp_path).splitlines()[2:] == ["| `lamp` | The sun. | It is small. |"]


def test_settings_show_every_key_with_its_default():
    text = pages.settings(type(INSTANCE))
    assert "| `project` | Name of the project (namespace) on OpenShift. | text | **must be given** |" in text
    assert "### [database]" in text
    assert "| `private` | Whether cloning needs a user and token. | true or false | `false` |" in text


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown.table(("a",), [("x|y `p|q`",)]).splitlines()[2] == "| x\\|y `p|q` |"


def test_the_table_of_contents_is_the_guides_order():
    module = ModuleType("procedures.lamp")
    module.light = light
    light.function.__module__ = "procedures.lamp"
    try:
        row = "| 1 | [lamp.light](lamp.md#lamp.light) | Light the lamp. | the guide | stale |"
        assert row in pages.overview(Runbook([module]), {"lamp.light": "stale"}, pages.NOTHING)
    finally:
        light.function.__module__ = __name__


def test_every_secret_that_a_step_needs_is_listed_once_with_its_source():
    text = pages.credential_table(RUNBOOK, INSTANCE)
    wanted = {found.name for known in RUNBOOK.steps if known.wanted(INSTANCE) and not known.undoes
              for found in options.credentials(options.outline(known, INSTANCE, Observed()))}
    for name in wanted:
        assert text.count(f"| `{Credential(name, '').variable}` |") == 1
    assert text.count("https://account.cern.ch/") == 1
    assert "the guide makes it | Secret `redis`, key `database-password`" in text
