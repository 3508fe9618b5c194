"""The site: every step on its page, every page in order, no warning, nothing from elsewhere, no made-up command.

A promise that a build without a warning means something has its twin here: a broken page that must fail.
"""

import re
import subprocess
import tomllib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.utils.yaml import yaml_load

import tasks
from procedures import RUNBOOK, environment
from runbook import console, pages
from runbook.observed import Observed
from runbook.options import outline
from tasks import ns
from tests.serving import copied, served
from tests.site import DOCS, EDIT, ROOT, build

STEMS = [module.__name__.rpartition(".")[2] for module in RUNBOOK.procedures]
STEPS = pytest.mark.parametrize("step", RUNBOOK.steps, ids=lambda step: step.name)


@pytest.fixture(scope="module")
def site(built_site):
    return built_site


@pytest.fixture(scope="module")
def expanded():
    return {Path(name).stem: text for name, text in tasks.site_pages().items()}


@STEPS
def test_every_step_has_one_fence_on_the_page_of_its_procedure(step):
    found = {path.stem: pages.steps_named(path.read_text()).count(step.name) for path in DOCS.glob("*.md")}
    wanted = {stem: int(stem == step.procedure) for stem in found}
    where = ":".join(map(str, step.source))
    assert found == wanted, f"{step.name} ({where}) wants one ```step fence, in docs/{step.procedure}.md"


def test_every_fence_names_a_step():
    known = {step.name for step in RUNBOOK.steps}
    for path in DOCS.glob("*.md"):
        assert set(pages.steps_named(path.read_text())) <= known, path.name


@pytest.mark.parametrize("stem", STEMS)
def test_a_page_shows_its_steps_in_the_order_of_the_module(stem):
    wanted = [step.name for step in RUNBOOK.steps if step.procedure == stem]
    assert pages.steps_named((DOCS / f"{stem}.md").read_text()) == wanted


def test_the_navigation_has_every_page_and_the_procedures_in_the_runbooks_order():
    nav = [page for part in yaml_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in leaves(part)]
    assert [page for page in nav if page.removesuffix(".md") in STEMS] == [f"{stem}.md" for stem in STEMS]
    assert sorted(nav) == sorted(path.name for path in DOCS.glob("*.md"))


def leaves(node):
    if isinstance(node, str):
        return [node]
    return [leaf for inner in (node.values() if isinstance(node, dict) else node) for leaf in leaves(inner)]


def test_the_command_line_lists_every_step_in_the_runbooks_order():
    assert [name for name in ns.collections if name in STEMS] == STEMS
    for stem in STEMS:
        assert [f"{stem}.{name}" for name in ns.collections[stem].tasks] == [
            step.name for step in RUNBOOK.steps if step.procedure == stem]


def console_ways():
    """Yield each step and its web console way, as it is written."""
    for path in sorted(DOCS.glob("*.md")):
        for found in pages.FENCE.finditer(path.read_text()):
            if found["name"] == "step" and (way := console.split(found["body"])[1]):
                yield pytest.param(RUNBOOK.find(found["argument"]), way, id=found["argument"])


WAYS = pytest.mark.parametrize(("step", "way"), list(console_ways()))
INSTANCES = pages.load(ROOT)


@WAYS
@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance.name)
def test_every_placeholder_of_a_web_console_way_is_filled(step, way, instance):
    text = console.ways(way, [instance], lambda one: outline(step, one, Observed()))
    assert not console.PLACEHOLDER.search(text)
    assert "~~~" not in text


def typed(way):
    """Return the values of an instance that a way repeats, though it could name them."""
    parts = [vars(part) for one in INSTANCES for part in (one, one.site, one.source, one.database, one.redis, one.sso, one.eos)]
    values = {value for part in parts for value in part.values() if isinstance(value, str) and len(value) > 7}
    return {value for value in values if value in way}


@WAYS
def test_a_web_console_way_repeats_no_value_of_an_instance(step, way):
    assert typed(way) == set()


def test_a_repeated_value_would_be_found():
    assert "certhelper.web.cern.ch" in typed("Open https://certhelper.web.cern.ch/.")


COMMAND = re.compile(r"(?:invoke|\./inv) +([a-z][\w-]*(?:\.[\w-]+)?)((?: +--[a-z-]+(?:=[^\s,`\"')]+)?)*)")


def commands(text):
    """Yield every command of ours that a page shows in code: its name and its options."""
    code = re.findall(r"^( *`{3,})[^\n]*\n(.*?)^\1[ \t]*$", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", text)
    for shown in [block for _, block in code] + spans:
        for name, options in COMMAND.findall(shown):
            yield name, options.split()


@pytest.mark.fault(13)
def test_every_command_on_any_page_is_a_task_with_these_options(expanded):
    known_tasks = {name: ns[name] for name in ns.task_names}
    shown = 0
    for stem, text in expanded.items():
        for name, options in commands(text):
            assert name in known_tasks, f"docs/{stem}.md shows `invoke {name}`, which is no task"
            known = {"--" + argument.name.replace("_", "-") for argument in known_tasks[name].get_arguments()}
            used = {option.partition("=")[0] for option in options}
            assert used <= known | {"--help"}, f"docs/{stem}.md: invoke {name} has no {used - known}"
            shown += 1
    assert shown > 2 * len(RUNBOOK.steps)


def test_a_wrong_command_would_be_found():
    assert list(commands("x `invoke no.such --thing=1` y\n\n```sh\n./inv test --only=x\n```\n")) == [
        ("test", ["--only=x"]), ("no.such", ["--thing=1"])]


OC_ONLY = re.compile(r"\boc (?:login|process|start-build|new-app|new-project|set env|create route|logs build|sso-login)\b")


def test_what_only_the_real_oc_has_is_marked(expanded):
    """The tests run with kubectl in place of oc; whoever reads a command that they cannot run is told so beside it."""
    marked = 0
    for stem, text in expanded.items():
        if stem == "differs":  # speaks of commands, and gives none to run
            continue
        for found in OC_ONLY.finditer(text):
            beside = text[max(0, found.start() - 200):found.end() + 80]
            assert re.search("not run here|[Nn]ot confirmed|would tell", beside), f"docs/{stem}.md: {found[0]} is not marked"
            marked += 1
    assert marked


@STEPS
def test_a_page_shows_the_whole_step(step, site):
    html = (site / f"{step.procedure}.html").read_text()
    part = html[html.index(f'id="{step.name}"'):]
    for wanted in (">oc<", "You should see:", "What it does", "Options", *(() if step.undoes else ("Undo",))):
        assert wanted in part


def test_prose_is_edited_on_its_page_and_a_step_in_its_source(site):
    html = (site / "redis.html").read_text()
    assert re.search(rf'<a href="{EDIT}docs/redis.md"[^>]*rel="edit"', html)
    assert f'href="{EDIT}procedures/redis.py"' in html
    for path in re.findall(rf'href="{EDIT}([^"]+)"', html):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize(("origin", "environment", "wanted"), [
    ("https://github.com/some/guide.git", {}, "https://github.com/some/guide/edit/main/"),
    ("git@github.com:some/guide.git", {}, "https://github.com/some/guide/edit/main/"),
    ("https://ci-token:canary@gitlab.cern.ch/some/guide.git", {"CI_COMMIT_REF_NAME": "master"},
     "https://gitlab.cern.ch/some/guide/-/edit/master/"),
    ("ssh://git@gitlab.cern.ch:7999/some/guide.git", {}, "https://gitlab.cern.ch/some/guide/-/edit/main/"),
    ("/srv/guide", {}, ""),
    ("", {}, ""),
    ("/srv/guide", {"RUNBOOK_EDIT": "https://x.example/edit/"}, "https://x.example/edit/"),
])
def test_where_the_guide_is_edited_follows_from_where_it_was_cloned(tmp_path, monkeypatch, origin, environment, wanted):
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path)], check=True)
    if origin:
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", origin], check=True)
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    assert tasks.edit_address(environment) == wanted


def test_copying_a_command_copies_the_command(site):
    """The button copies the text of the block; nothing stands in it but the command."""
    html = (site / "database.html").read_text()
    blocks = [unescape(re.sub(r"<[^>]+>", "", found)) for found in re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)]
    assert "invoke database.create --build=dev\n" in blocks


class Fetched(HTMLParser):
    """Collects what a browser fetches for a page by itself; a link that a reader follows is not fetched."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed", "input", "track"}:
            self.urls += [given.get("src") or "", *(given.get("srcset") or "").split()]
        if tag == "link" and given.get("rel") != "canonical":
            self.urls.append(given.get("href") or "")
        self.urls += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


def test_a_page_fetches_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        page = Fetched()
        page.feed(path.read_text())
        assert page.urls
        assert [url for url in page.urls if re.match(r"\s*(?:https?:)?//", url)] == [], path.name
        # The theme's script fetches two things when a page asks for them: a repository's stars, and mermaid.
        assert 'data-md-component="source"' not in path.read_text()
        assert 'class="mermaid"' not in path.read_text()
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", path.read_text()), path.name


@pytest.fixture
def copy(tmp_path):
    """The site's sources, to be broken."""
    return copied(tmp_path)


@pytest.mark.parametrize(("broken", "said"), [
    ("\n[gone](no-such-page.md)\n", "no-such-page.md"),
    ("\n[gone](database.md#no.such)\n", "no.such"),
    ("\n```step database.creat\n```\n", "did you mean database.create"),
    ("\n```commands\nguide.staus\n```\n", "did you mean guide.status"),
    ("\n```step redis.add\n=== web console\n{redis.nam}\n```\n", "{redis.nam} is no setting"),
])
def test_a_broken_page_fails(copy, broken, said):
    with (copy / "docs" / "redis.md").open("a") as page:
        page.write(broken)
    built = build(copy, copy / "site")
    assert built.returncode != 0
    assert said in built.stdout + built.stderr


def test_each_fault_of_the_former_guide_is_answered_by_a_step_and_proved_by_a_test():
    listed = tomllib.loads((DOCS / "faults.toml").read_text())["fault"]
    assert [fault["number"] for fault in listed] == list(range(1, 41))
    for fault in listed:
        for name in fault["steps"]:
            RUNBOOK.find(name)
    assert set(pages.proved_faults(ROOT / "tests")) == {fault["number"] for fault in listed}


def test_serving_shows_a_changed_page_and_a_changed_procedure_and_keeps_the_rest(tmp_path):
    with served(copied(tmp_path)) as site:
        page, procedure = tmp_path / "docs" / "eos.md", tmp_path / "procedures" / "redis.py"
        page.write_text(page.read_text() + "\nA sentence that was not there.\n")
        site.wait("eos.html", "A sentence that was not there.")
        procedure.write_text(procedure.read_text().replace("Add a Redis server", "Bring a Redis server"))
        site.wait("redis.html", "Bring a Redis server")
        assert "A sentence that was not there." in site.page("eos.html")
        index = site.page("search/search_index.json")
        assert "Bring a Redis server" in index and "A sentence that was not there." in index and "database.html#database.create" in index


def test_a_page_outside_the_navigation_fails(copy):
    (copy / "docs" / "stray.md").write_text("# Stray\n")
    assert build(copy, copy / "site").returncode != 0


def test_what_differs_from_cern_is_said_for_every_part(expanded):
    told = expanded["differs"]
    for path in (ROOT / "stack").rglob("*.py"):
        if re.search(r"^Stands for", path.read_text(), re.MULTILINE):
            assert path.stem in told or path.parent.name in told
    for step in RUNBOOK.steps:
        assert not step.unconfirmed or step.name in told


def test_every_variable_is_on_the_page(expanded):
    for variable in environment.VARIABLES:
        assert f"| `{variable.name}` |" in expanded["environment"]


WORDS = {"oc": r"`?\boc\b`?", "shift leader": "shift leader", "field manager": "field managers?", "drift": "[Dd]rift(?:ed)?"}
"""Words that a newcomer need not know, and how a page's prose writes them."""


def undefined(text):
    """Return the words that a page's prose uses before it leads to what they mean."""
    prose = re.sub(r"^( *`{3,}).*?^\1[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [word for word, written in WORDS.items() if (found := re.search(written, prose))
            and not re.match(r"\]\(glossary\.md#", prose[found.end():])]


@pytest.mark.parametrize("stem", ["index", "daily", "deploy", "architecture"])
def test_a_word_is_explained_where_it_is_first_used(stem, site):
    assert undefined((DOCS / f"{stem}.md").read_text()) == []
    assert undefined("A drift. [drift](glossary.md#drift)") == ["drift"]
    for word in WORDS:
        assert f'<dt id="{word.replace(" ", "-")}">' in (site / "glossary.html").read_text()
