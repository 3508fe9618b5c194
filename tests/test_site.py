"""The site as it is read: in a real browser, bright and dark, on a phone and on a desk, by keyboard, on paper, in a folder.

Each check has its twin: a page that is broken on purpose, on which the same check must find what is wrong. Pictures of
the main pages go into `screenshots/`, for a person to look at.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from markdown import markdown
from playwright.sync_api import expect

import tasks
from procedures import RUNBOOK
from runbook import pages, shell
from runbook.markdown import command
from tests import axe
from tests.browser import visitor as visiting
from tests.site import DOCS, ROOT, published

STEMS = sorted(path.stem for path in DOCS.glob("*.md"))
MAIN = ["index", "project", "redis", "troubleshooting", "cheatsheet", "differs"]
LOOKS = [("light", 360), ("light", 1400), ("dark", 1400), ("dark", 360)]
"""Of colours and of the window's width, in the order in which a page changes from one to the next."""
SCHEMES = {"light": "default", "dark": "slate"}
"""What the theme calls them."""
SHOTS = ROOT / "screenshots"
HIGHEST = 6000
"""Pixels of a page that its picture shows."""
A4 = {"width": 703, "height": 1032}
"""The pixels of a sheet within its margins."""


@pytest.fixture(scope="module")
def address(built_site):
    with published(built_site) as found:
        yield found


@pytest.fixture(scope="module")
def windows(browser, built_site):
    """Gives a page in a window of a scheme and a width, one for all tests; nothing is remembered in it, and nothing is searched."""
    opened = {}

    def window(scheme="light", width=1400):
        if (scheme, width) not in opened:
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
            context.set_default_timeout(20_000)
            context.add_init_script("try { localStorage.clear() } catch {}")  # about:blank has none
            unsearched(context, built_site)
            opened[scheme, width] = context.new_page()
        return opened[scheme, width]

    yield window
    for page in opened.values():
        page.context.close()


@pytest.fixture
def searching(visitor):
    """A fresh window on a desk: what a reader chooses in it is gone afterwards."""
    visitor.grant_permissions(["clipboard-read", "clipboard-write"])
    found = visitor.new_page()
    found.set_viewport_size({"width": 1400, "height": 800})
    return found


@pytest.fixture
def page(searching, built_site):
    """A fresh window on a desk for somebody who searches nothing."""
    unsearched(searching.context, built_site)
    return searching


@pytest.fixture(scope="module")
def expanded():
    return {name.removesuffix(".md"): text for name, text in tasks.site_pages().items()}


def unsearched(window, site):
    """Give the pages of a window an empty index: the theme reads the whole one into memory on every page, for a second."""
    index = json.loads((site / "search" / "search_index.json").read_text()) | {"docs": []}
    window.route("**/search/search_index.json", lambda route: route.fulfill(json=index))


def unfold(page, tabs=""):
    """Show all that a page has: what is folded, and every tab, or those that a selector chooses."""
    page.evaluate("""tabs => {
        document.querySelectorAll("details").forEach(box => box.open = true);
        const style = document.querySelector("#unfolded") ?? document.head.appendChild(document.createElement("style"));
        style.id = "unfolded";
        style.textContent = `.md-typeset .tabbed-block${tabs} { display: block !important }`;
    }""", tabs)


# Every page, on a desk and on a phone; the main ones bright and dark, the others in turn


@dataclass
class Visit:
    """What a page did to the browser, and where it leads."""

    links: list[str]
    names: set[str]
    """What a link may lead to on it."""
    code: list[str]
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    too_wide: dict[int, int] = field(default_factory=dict)
    """By the width of the window: how many pixels are outside."""
    wrong: dict[tuple[str, int], dict] = field(default_factory=dict)
    """By the look: what is against WCAG A or AA."""


def visit(page, url, pictured=()):
    """Load a page and show all of it; pictures of it go into files before that, each named after its look."""
    asked, said = [], []

    def hear(message):
        if message.type in {"error", "warning"}:
            said.append(message.text)

    def throw(error):
        said.append(str(error))

    def ask(request):
        asked.append(request.url)

    handlers = {"console": hear, "pageerror": throw, "request": ask}
    for name, handler in handlers.items():
        page.on(name, handler)
    page.goto(url)
    for look in pictured:
        wear(page, *look)
        high = page.evaluate("document.documentElement.scrollHeight")
        page.screenshot(path=SHOTS / f"{Path(urlsplit(url).path).stem}-{look[0]}-{look[1]}.png", full_page=True,
                        clip={"x": 0, "y": 0, "width": look[1], "height": min(high, HIGHEST)})
    unfold(page)
    found = Visit(**page.evaluate("""() => ({
        links: [...document.querySelectorAll("a[href]")].map(link => link.href instanceof SVGAnimatedString
            ? new URL(link.href.baseVal, document.baseURI).href : link.href),
        names: [...document.querySelectorAll("[id]")].map(one => one.id),
        code: [...document.querySelectorAll("article pre > code")].map(code => code.textContent.trimEnd())})"""), asked=asked, said=said)
    found.too_wide[page.viewport_size["width"]] = too_wide(page)
    for name, handler in handlers.items():
        page.remove_listener(name, handler)
    return found


def too_wide(page):
    """Return by how many pixels a page is wider than its window, once nothing moves any more."""
    return page.evaluate("""async () => {
        await Promise.allSettled(document.getAnimations().map(one => one.finished));
        return document.documentElement.scrollWidth - innerWidth;
    }""")


def looks_of(stem):
    """Return the looks in which a page is judged: a main page in all, another in one; all have their colours and parts from the same sheets."""
    others = [other for other in STEMS if other not in MAIN]
    return LOOKS if stem in MAIN else [LOOKS[others.index(stem) % len(LOOKS)]]


@pytest.fixture(scope="module")
def visits(windows, address):
    """All that is seen on one way through the site; a window that has become narrow is as good as a phone's."""
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir()
    found, page = {}, windows()
    for stem in STEMS:
        (scheme, width), *_ = looks_of(stem)
        page.goto("about:blank")  # without a page in it a window changes in no time
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 1760 - width, "height": 800})
        seen = found[stem] = visit(page, f"{address}/{stem}.html", [("dark", 360), ("light", 1400)] if stem in MAIN else [])
        page.set_viewport_size({"width": width, "height": 800})
        seen.too_wide[width] = too_wide(page)
        # Of tabs the last is judged too, the one between is made as its neighbours are.
        unfold(page, ":last-child")
        axe.prepare(page)
        for look in looks_of(stem):
            wear(page, *look)
            # A main page's parts are the same in the second scheme: only its colours are others.
            seen.wrong[look] = axe.violations(page, only_colours=stem in MAIN and look[0] == "dark", by_finger=look[1] == 360)
    return found


def wear(page, scheme, width):
    """Change a page's look as its reader does: with the switch of its colours, and the window."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    if worn(page) != scheme:
        page.locator(".md-header [for^=__palette]:visible").click()
        expect(page.locator(f"body[data-md-color-scheme={SCHEMES[scheme]}]")).to_have_count(1)


def worn(page):
    """Return the scheme of a page's colours."""
    shown = page.locator("body").get_attribute("data-md-color-scheme")
    return next(scheme for scheme, name in SCHEMES.items() if name == shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_wears_what_its_readers_machine_does(windows, address, scheme):
    page = windows(scheme, 360)
    page.goto(f"{address}/glossary.html")
    assert worn(page) == scheme


def foreign(url, visit):
    """Return what a page asked of another host than its own."""
    return [asked for asked in visit.asked if urlsplit(asked).netloc not in ("", urlsplit(url).netloc)]


def broken(address, visits):
    """Return the links of pages that lead nowhere within the site."""
    known = {f"{address}/{stem}.html": set(visit.names) for stem, visit in visits.items()}
    found = []
    for stem, visit in visits.items():
        for link in visit.links:
            page, name = urldefrag(link)
            if link.startswith(address) and (page not in known or (name and unquote(name) not in known[page])):
                found.append((stem, link))
    return found


@pytest.mark.parametrize("width", [1400, 360], ids=["desk", "phone"])
def test_no_page_is_wider_than_the_window(visits, width):
    assert {stem for stem, visit in visits.items() if width in visit.too_wide} == set(STEMS)
    assert {stem: visit.too_wide[width] for stem, visit in visits.items() if visit.too_wide[width] > 0} == {}


def test_no_page_asks_anything_of_another_host(visits, address):
    assert {stem: foreign(address, visit) for stem, visit in visits.items() if foreign(address, visit)} == {}


def test_no_script_complains(visits, searching, address):
    assert {stem: visit.said for stem, visit in visits.items() if visit.said} == {}
    assert visit(searching, f"{address}/index.html").said == [], "with the whole index of the search"


def test_every_link_leads_to_a_page_and_a_place_on_it(visits, address):
    assert broken(address, visits) == []


BROKEN = """<!doctype html><html lang="en"><title>x</title><body><div style="width: 5000px">wide</div>
<img src="http://elsewhere.invalid/x.png"><a href="gone.html">x</a><a href="#nowhere">x</a><script>missing()</script>"""


def test_a_broken_page_would_be_found(tmp_path, page):
    (tmp_path / "broken.html").write_text(BROKEN)
    with published(tmp_path) as address:
        found = visit(page, f"{address}/broken.html")
        assert found.too_wide[1400] > 0
        assert foreign(address, found) == ["http://elsewhere.invalid/x.png"]
        assert any("missing is not defined" in said for said in found.said)
        assert [link for _, link in broken(address, {"broken": found})] == [f"{address}/gone.html", f"{address}/broken.html#nowhere"]


@pytest.mark.parametrize("look", LOOKS, ids=[f"{scheme}-{width}" for scheme, width in LOOKS])
def test_everybody_can_read_every_page(visits, look):
    judged = {stem: visit.wrong[look] for stem, visit in visits.items() if look in visit.wrong}
    assert len(judged) >= len(STEMS) // len(LOOKS)
    assert {stem: wrong for stem, wrong in judged.items() if wrong} == {}


def test_every_page_is_judged_in_some_look_and_the_main_ones_in_all(visits):
    assert visits.keys() == set(STEMS) and all(visit.wrong for visit in visits.values())
    assert {stem for stem, visit in visits.items() if visit.wrong.keys() == set(LOOKS)} == set(MAIN)


def test_the_main_pages_are_pictured_for_a_person_to_look_at(visits):
    assert {path.name for path in SHOTS.glob("*.png")} >= {f"{stem}-{look}.png" for stem in MAIN for look in ("light-1400", "dark-360")}


def test_what_some_cannot_read_would_be_found(windows, address):
    page = windows()
    page.goto(f"{address}/glossary.html")
    page.evaluate("""() => {
        document.querySelector("article p").style.color = "#ccc";
        document.querySelector("article").append(document.createElement("img"));
    }""")
    assert set(axe.violations(page)) == {"color-contrast", "image-alt"}
    page.goto(f"{address}/volume.html")
    unfold(page, ":last-child")
    axe.prepare(page)
    page.evaluate("""() => [...document.querySelectorAll(".highlight span[class]")]
        .find(word => !word.children.length && word.textContent.trim().length > 1 && word.checkVisibility()).style.color = '#ccc'""")
    assert set(axe.violations(page)) == set(axe.violations(page, only_colours=True)) == {"color-contrast"}


# With the keyboard alone

KINDS = {
    "search": "[data-md-component=search-query]",
    "menu": ".md-header [for=__drawer]",
    "navigation": ".md-nav--primary a",
    "contents": ".md-nav--secondary a",
    "colours": "[data-md-component=palette] input",
    "tab": ".tabbed-set > input",
    "copy": ".md-code__nav button",
    "folded": "details > summary",
    "tick": "[data-tick]",
    "picture": "figure.picture",
    "link": "article p a",
}


def reached(page):
    """Return the kinds of parts that the Tab key stops at, from the top of a page to its end."""
    page.evaluate("document.activeElement.blur()")
    found = set()
    for _ in range(2000):
        page.keyboard.press("Tab")
        here = page.evaluate("""kinds => {
            const active = document.activeElement, mark = active.dataset.reached;
            active.dataset.reached = true;
            const shown = active.checkVisibility({ visibilityProperty: true });
            return active === document.body || mark ? null
                : Object.keys(kinds).filter(kind => shown && active.matches(kinds[kind]));
        }""", KINDS)
        if here is None:
            break
        found.update(here)
    return found


def test_the_tab_key_reaches_all_that_can_be_used(page, address):
    page.goto(f"{address}/project.html")
    expect(page.locator(".md-code__nav").first).to_be_attached()
    assert reached(page) == set(KINDS) - {"menu", "picture"}
    page.goto(f"{address}/architecture.html")
    assert "picture" in reached(page)


def test_on_a_phone_the_menu_opens_with_the_keyboard(page, address):
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto(f"{address}/redis.html")
    assert "menu" in reached(page)
    page.locator(".md-header [for=__drawer]").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#__drawer")).to_be_checked()


def test_what_needs_a_mouse_would_be_found(page, address):
    page.goto(f"{address}/redis.html")
    expect(page.locator(".md-code__nav").first).to_be_attached()
    page.evaluate("document.querySelectorAll('summary, .md-code__nav button').forEach(one => one.tabIndex = -1)")
    assert {"folded", "copy"} & reached(page) == set()


def scrolling(page):
    """Return what scrolls sideways or down inside the text and cannot take the focus."""
    return page.evaluate("""() => [...document.querySelectorAll("article *")].filter(box =>
        /auto|scroll/.test(getComputedStyle(box).overflowX + getComputedStyle(box).overflowY)
        && (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1)
        && box.clientWidth && box.tabIndex < 0 && !box.closest(".tabbed-labels")).map(box => box.outerHTML.slice(0, 200))""")


@pytest.mark.parametrize("look", [("light", 1400), ("dark", 360)], ids=["desk", "phone"])
def test_what_scrolls_can_be_scrolled_with_the_keyboard(windows, address, look):
    page = windows(*look)
    for stem in ("database", "app", "environment"):
        page.goto(f"{address}/{stem}.html")
        unfold(page)
        page.wait_for_function("document.querySelectorAll('article .highlight[tabindex]').length > 0")
        assert scrolling(page) == []
    page.evaluate("document.querySelectorAll('article [tabindex]').forEach(box => box.removeAttribute('tabindex'))")
    assert scrolling(page)


def torn(page):
    """Return the options in the text that a line's end tears apart although they would fit on one."""
    return page.evaluate("""() => [...document.querySelectorAll("article :not(pre) > code")].flatMap(code => {
        const words = document.createTreeWalker(code, NodeFilter.SHOW_TEXT), found = [];
        for (let text; (text = words.nextNode());) {
            for (const option of text.data.matchAll(/--\\w\\S*/g)) {
                const range = document.createRange();
                range.setStart(text, option.index);
                range.setEnd(text, option.index + option[0].length);
                const lines = new Set([...range.getClientRects()].map(line => line.top));
                if (lines.size > 1 && option[0].length < 30) found.push(option[0]);
            }
        }
        return found;
    })""")


def test_an_option_stays_in_one_piece_on_a_phone(windows, address):
    page = windows("dark", 360)
    page.goto(f"{address}/troubleshooting.html")
    expect(page.locator(".option").first).to_be_attached()
    assert torn(page) == []
    page.add_style_tag(content=".option { display: inline !important }")
    assert torn(page)


# The reader's choice


def choose(page, label):
    """Choose a tab by its name, as a reader does."""
    page.locator(".tabbed-labels > label:visible", has_text=re.compile(f"^{re.escape(label)}$")).first.click()


def chosen(page):
    """Return the names of all tabs that are chosen on a page, shown or not."""
    return set(page.evaluate("""() => [...document.querySelectorAll(".tabbed-set > input:checked")]
        .map(input => document.querySelector(`label[for="${input.id}"]`).textContent.trim())"""))


def test_the_choice_of_a_tab_is_kept_on_every_page(page, address):
    page.goto(f"{address}/redis.html")
    before = chosen(page)
    assert before.isdisjoint({"oc", "training"})
    choose(page, "oc")
    choose(page, "training")
    for stem in ("redis", "eos"):
        page.goto(f"{address}/{stem}.html")
        assert {"oc", "training"} <= chosen(page)
        assert before.isdisjoint(chosen(page) - {"local", "CERN"}), "another tab of the same group is still chosen"


FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})[^\n`]*\n(?P<body>.*?)^(?P=indent)(?P=ticks)[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks(text):
    """Return the code blocks of a page's Markdown, as they were before they were indented."""
    return {re.sub(f"^{found['indent']}", "", found["body"], flags=re.MULTILINE).rstrip() for found in FENCE.finditer(text)}


def copies(page):
    """Return what the copy buttons of a page give, each where a choice of tabs first shows it."""
    found = set()
    page.evaluate("document.querySelectorAll('article details').forEach(box => box.open = true)")
    labels = dict.fromkeys(page.locator("article .tabbed-labels > label").all_text_contents())
    ways = [label for label in labels if label in {"invoke", "oc", "web console"}]
    others = [label for label in labels if label not in ways and label not in {"local", "CERN"}]
    for way in ways:
        choose(page, way)
        for place in ("local", "CERN"):
            choose(page, place)
            for other in others:
                choose(page, other)
                for button in page.locator("article .md-code__nav button:not([data-clicked]):visible").element_handles():
                    button.click()
                    button.evaluate("button => { button.dataset.clicked = '' }")
                    found.add(page.evaluate("navigator.clipboard.readText()"))
    return found


def test_a_copied_block_is_the_tested_text(page, address, expanded):
    page.goto(f"{address}/redis.html")
    found = copies(page)
    assert found == blocks(expanded["redis"])
    for instance in pages.load(ROOT):
        assert shell.block(RUNBOOK.find("redis.add"), instance).rstrip() in found
        assert any(copied.startswith(command(RUNBOOK.find("redis.add"), instance)) for copied in found)


def test_the_blocks_of_every_page_are_the_tested_texts(visits, expanded):
    """What a button copies is its block: that is seen on one page, by clicking; here all blocks of all pages are read."""
    assert {stem: set(visit.code) ^ blocks(expanded[stem]) for stem, visit in visits.items()
            if set(visit.code) != blocks(expanded[stem])} == {}


def test_a_prompt_in_a_block_would_be_copied_and_found(page, address, expanded):
    page.goto(f"{address}/redis.html")
    page.evaluate("document.querySelectorAll('article pre > code').forEach(code => code.prepend('$ '))")
    page.locator("article .md-code__nav button:visible").first.click()
    assert page.evaluate("navigator.clipboard.readText()") not in blocks(expanded["redis"])


def test_a_tick_stays(page, address):
    page.goto(f"{address}/database.html")
    ticks = page.locator("[data-tick]")
    assert ticks.count() > 1
    assert not any(tick.is_checked() for tick in ticks.all())
    first = page.locator("[data-tick]:visible").first
    first.focus()
    page.keyboard.press("Space")
    page.goto(f"{address}/redis.html")
    page.goto(f"{address}/database.html")
    assert [tick.is_checked() for tick in ticks.all()].count(True) == 1
    expect(first).to_be_checked()
    again = page.get_by_role("button", name="Untick all")
    expect(again).to_have_count(1)
    again.focus()
    page.keyboard.press("Enter")
    expect(again).to_have_count(0)
    expect(first).to_be_focused()
    page.reload()
    assert not any(tick.is_checked() for tick in ticks.all())


# The search

MESSAGES = {
    'FATAL:  no pg_hba.conf entry for host "188.184.1.2", user "admin", database "postgres", no encryption': "database.access",
    'psql: error: connection to server at "dbod-devcertdb.cern.ch" (188.185.1.1), port 6611 failed: FATAL:  password '
    'authentication failed for user "admin"': "database.password",
    "stat: cannot stat '/eos/project/t/tkdqmdoc': No such file or directory": "eos.mount",
    "0 pods scaling to 1": "deploy.build",
    "allauth.socialaccount.models.SocialApp.MultipleObjectsReturned: get() returned more than one SocialApp -- it returned 2!":
        "sso.verify",
    "Invalid parameter: redirect_uri": "sso.register",
    "decouple.UndefinedValueError: OMS_CLIENT_ID not found. Declare it as envvar or define a default value.": "environment.set",
    'error: Apply failed with 1 conflict: conflict with "kubectl-set" using apps/v1: '
    '.spec.template.spec.containers[name="certification-helper"].image': "",
    'nginx: [emerg] host not found in upstream "certification-helper" in /etc/nginx/conf.d/default.conf:4': "nginx.add",
    "ERROR: Could not find a version that satisfies the requirement psycopg2==2.9.99 (from versions: 2.8, 2.9)": "deploy.build",
    "error: You must be logged in to the server (Unauthorized)": "",
}
"""Messages as a terminal or a browser prints them, and the step that cures each; "" where no single step does."""

RESULTS = ".md-search-result__link:visible"


SHOWN = "document.querySelector('.md-search-result__link')?.checkVisibility()"
SAID = "document.querySelector('.md-search-result__meta')"


def searched(page, text):
    """Paste a text into the search, by keyboard, and return where the results lead, best first."""
    # The search answers to the empty line too, and says of that answer that nothing matches what stands there by then. It answers
    # in turn: after something that is found the next answer is to the text.
    page.keyboard.press("/")
    paste(page, "redis")
    page.wait_for_function(SHOWN)
    paste(page, text)
    page.wait_for_function(f"/No matching/.test({SAID}.textContent) || {SHOWN}")
    return [link.get_attribute("href") for link in page.locator(RESULTS).all()]


def best(page):
    """Return where the Enter key leads from what was found: of the first page's places to the one that matches best."""
    return page.evaluate("""() => [...document.querySelectorAll(".md-search-result__item:first-child a[href]")]
        .map(link => [link.firstElementChild.dataset.mdScore, link.href]).sort(([one], [other]) => other - one)[0][1]""")


def paste(page, text):
    """Paste a text into the search line in place of what stands there, after taking away what was found before."""
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.evaluate(f"""() => {{
        {SAID}.textContent = "";
        document.querySelector(".md-search-result__list").replaceChildren();
    }}""")
    page.keyboard.press("Control+a")
    page.keyboard.press("Control+v")


@pytest.fixture(scope="module")
def reader(browser, address):
    """A page of somebody who pastes one message after the other into the search of the site's first page."""
    with visiting(browser) as window:
        window.grant_permissions(["clipboard-read", "clipboard-write"])
        found = window.new_page()
        found.goto(f"{address}/index.html")
        yield found


@pytest.fixture(scope="module")
def cures(windows, address):
    """The page of what ails, on which every message is cured."""
    found = windows("dark")
    found.goto(f"{address}/troubleshooting.html")
    return found


@pytest.mark.parametrize(("message", "step"), MESSAGES.items(), ids=lambda text: text[:40])
def test_a_pasted_message_leads_to_its_cure(reader, cures, message, step):
    assert searched(reader, message)
    page, _, place = best(reader).partition("#")
    assert page.partition("?")[0].endswith("troubleshooting.html")
    shown = cures.locator(f'h4[id="{unquote(place)}"]')
    words = re.findall(r"\w{4,}", message.lower())
    assert sum(word in words for word in re.findall(r"\w{4,}", shown.inner_text().lower())) >= 2 or len(words) < 3
    if step:
        cure = shown.locator(f"xpath=following-sibling::p[a[contains(@href, '#{step}')]][1]")
        assert cure.evaluate("(cure, head) => { let one = head; do one = one.nextElementSibling; "
                             "while (one !== cure && one.tagName !== 'H4'); return one === cure }", shown.element_handle())


def test_without_our_script_the_message_is_not_found(searching, address):
    searching.route("**/extra.js", lambda route: route.abort())
    searching.goto(f"{address}/index.html")
    assert searched(searching, next(iter(MESSAGES))) == []


def test_a_message_pasted_without_a_key_is_found_on_a_phone(searching, address):
    page = searching
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto(f"{address}/index.html")
    page.locator(".md-header__button[for=__search]").click()
    page.keyboard.insert_text("Invalid parameter: redirect_uri")  # an input without a key, as a finger pastes
    expect(page.locator(RESULTS).first).to_be_visible()


# On paper, in a folder, without a script


def printed(page):
    """Let a page think that it is printed on A4."""
    page.set_viewport_size(A4)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def cut_off(page):
    """Return what a sheet of paper would not show whole, or not at all."""
    return page.evaluate("""() => [...document.querySelectorAll("article *")].filter(box => {
        const style = getComputedStyle(box);
        if (!box.checkVisibility() || box instanceof SVGElement || style.position === "absolute") return false;
        return box.getBoundingClientRect().right > innerWidth + 1
            || style.overflowX !== "visible" && box.scrollWidth > box.clientWidth + 1
            || style.overflowY !== "visible" && box.scrollHeight > box.clientHeight + 1;
    }).map(box => box.outerHTML.slice(0, 200))""")


@pytest.mark.parametrize("stem", MAIN)
def test_paper_shows_everything_of_what_was_chosen(page, address, stem):
    page.goto(f"{address}/{stem}.html")
    printed(page)
    expect(page.locator("article details:not([open])")).to_have_count(0)
    assert cut_off(page) == []
    for group in page.locator("article .tabbed-set").filter(visible=True).all():
        expect(group.locator("> .tabbed-labels > label:visible")).to_have_count(1)
        expect(group.locator("> .tabbed-content > .tabbed-block:visible")).to_have_count(1)
    assert not page.locator(".md-header, .md-sidebar, .md-footer, .md-code__nav").filter(visible=True).count()


def test_what_paper_cuts_off_would_be_found(page, address):
    page.goto(f"{address}/database.html")
    printed(page)
    page.add_style_tag(content="pre > code { white-space: pre !important; overflow: hidden !important }")
    assert cut_off(page)


def sheets(page):
    """Return how many sheets of paper a page takes."""
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True)))


def test_the_cheat_sheet_is_one_sheet(page, address):
    page.goto(f"{address}/cheatsheet.html")
    assert sheets(page) == 1
    page.evaluate("document.querySelector('article').append(document.querySelector('article table').cloneNode(true))")
    assert sheets(page) > 1


def test_without_a_script_the_pages_can_be_read(browser, address):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 780})
    page = context.new_page()
    page.goto(f"{address}/app.html")
    expect(page.locator("html.no-js")).to_have_count(1)
    for picture in page.locator("figure.picture svg").all():
        assert picture.bounding_box()["height"] > 100
    expect(page.locator("[data-md-component=search-query]")).to_be_hidden()
    page.locator("article summary:visible").first.click()
    expect(page.locator("article details[open]").first).to_be_visible()
    choose(page, "oc")
    expect(page.locator("article .tabbed-block:visible", has_text="oc apply").first).to_be_visible()
    context.close()


def test_in_a_folder_the_site_can_be_read_and_searched(searching, built_site):
    page = searching
    page.goto((built_site / "index.html").as_uri())
    page.locator("article a", has_text="The instance file").first.click()
    page.wait_for_url("**/settings.html")
    assert searched(page, next(iter(MESSAGES)))
    there = best(page)
    page.keyboard.press("Enter")
    page.wait_for_url("**/troubleshooting.html*#no-pg_hbaconf-entry-for-host-no-encryption")
    assert page.url == there


def test_the_readme_fits_one_screen(page):
    text = (ROOT / "README.md").read_text()
    page.set_viewport_size({"width": 1012, "height": 1080})
    page.set_content("<body style='font: 16px/1.5 sans-serif; margin: 32px'>"
                     + markdown(text, extensions=["tables", "fenced_code"]))
    assert page.evaluate("document.documentElement.scrollHeight") <= 1080
    for path in re.findall(r"\]\(([^):]+)\)|src=\"([^\":]+)\"", text):
        assert (ROOT / "".join(path)).is_file()
