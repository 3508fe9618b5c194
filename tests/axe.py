"""What axe says of a page in a browser: what is against WCAG A or AA, with as few parts looked at as that needs."""

from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
FEWER_WORDS_OF_CODE = """() => {
    const kinds = new Set();
    for (const word of document.querySelectorAll(".highlight span, .highlight a")) {
        if (word.children.length) continue;
        const kind = word.tagName + word.className, tooShort = word.textContent.trim().length < 2;
        tooShort || kinds.has(kind) ? word.replaceWith(word.textContent) : kinds.add(kind);
    }
}"""
"""Leaves the first word of code of each colour: axe would look at thousands of them. Single signs it never judges."""
# A text looks like another when its own letters and all that lies behind them do: of each look, the first text is enough.
LOOKS_OF_TEXTS = """window.markLooks = () => {
    const first = new Map();
    document.querySelectorAll("[data-look]").forEach(one => one.removeAttribute("data-look"));
    for (const one of document.querySelectorAll("body *")) {
        if (![...one.childNodes].some(node => node.nodeType === 3 && node.data.trim().length > 1) || !one.checkVisibility()) continue;
        const own = getComputedStyle(one), look = [own.color, own.fontSize, own.fontWeight];
        for (let behind = one; behind; behind = behind.parentElement) {
            const style = getComputedStyle(behind);
            look.push(style.opacity, style.backgroundImage, style.backgroundColor);
            if (/^rgb\\(/.test(style.backgroundColor)) break;
        }
        const key = look.join();
        if (!first.has(key)) first.set(key, one);
    }
    first.forEach(one => one.setAttribute("data-look", ""));
}
axe.configure({ rules: [{ id: "color-contrast", selector: "[data-look]" }] });"""


def prepare(page: Page) -> None:
    """Leave of the code on a page one word of each colour."""
    page.evaluate(FEWER_WORDS_OF_CODE)


def violations(page: Page, *, only_colours: bool = False, by_finger: bool = True) -> dict[str, Any]:
    """Return what is against WCAG A or AA on a page, with the first place of each; of texts that look alike one is looked at.

    Where nothing is pressed `by_finger`, what is too small for one is not looked for: of all rules that takes longest.
    """
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
        page.evaluate(LOOKS_OF_TEXTS)
    found = page.evaluate("""async ([rules, byFinger]) => {
        markLooks();
        return (await axe.run({ resultTypes: ["violations"], runOnly: rules,
                                rules: { "target-size": { enabled: byFinger } } })).violations;
    }""", [["color-contrast"] if only_colours else WCAG, by_finger])
    return {one["id"]: (one["nodes"][0]["target"], one["nodes"][0]["failureSummary"]) for one in found}
