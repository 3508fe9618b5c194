"""Pictures: every edge goes down, nothing overlaps, and whoever does not see them can read them."""

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from procedures import RUNBOOK
from runbook import pages, pictures
from runbook.errors import WrongUse
from runbook.pictures import Box, drawn, form, layered, placed

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def parsed(figure):
    return ET.fromstring(figure)


def test_every_edge_goes_down_and_long_ones_keep_a_place():
    edges = [("a", "b"), ("b", "c"), ("a", "c")]
    layers = layered(["a", "b", "c"], edges)
    depth = {name: level for level, layer in enumerate(layers) for name in layer}
    assert all(depth[upper] < depth[lower] for upper, lower in edges)
    assert len(layers[1]) == 2


def test_boxes_of_a_layer_do_not_overlap():
    boxes = {name: Box(name, name * 9, "a note") for name in "abcdef"}
    places, width = placed([list("abc"), list("def")], boxes)
    for layer in ("abc", "def"):
        for one, other in itertools.combinations(layer, 2):
            assert abs(places[one][0] - places[other][0]) >= (boxes[one].width + boxes[other].width) / 2
    assert all(boxes[name].width / 2 <= x <= width - boxes[name].width / 2 for name, (x, _) in places.items())


def test_a_picture_has_title_description_and_escaped_text():
    figure = parsed(drawn([Box("a", "<a>"), Box("b", "b & c")], [("a", "b")], "A & B", "from <a> to b"))
    assert figure.find(f"{SVG}svg/{SVG}title").text == "A & B"
    assert figure.find(f"{SVG}svg/{SVG}desc").text == "from <a> to b"
    assert [text.text for text in figure.iter(f"{SVG}text")] == ["<a>", "b & c"]


def test_the_order_shows_every_standing_step_and_leads_to_it():
    figure = parsed(pictures.order(RUNBOOK))
    assert {a.get("href") for a in figure.iter(f"{SVG}a")} == {f"{s.procedure}.html#{s.name}" for s in RUNBOOK.standing}


def test_what_follows_from_another_need_is_not_drawn():
    step = RUNBOOK.find("environment.check")
    longer = dataclasses.replace(step, needs=(*step.needs, RUNBOOK.find("app.create")))  # which environment.set needs too
    assert [need.name for need in pictures.reduced(longer)] == ["environment.set"]


@pytest.mark.parametrize("edge", ["Route certification-helper refers to Service certification-helper",
                                  "Deployment certification-helper refers to Secret certification-helper-database",
                                  "BuildConfig certification-helper refers to ImageStream certification-helper",
                                  "Deployment certification-helper refers to outside database"])
def test_the_topology_comes_from_the_manifests(edge):
    figure = parsed(pictures.topology(RUNBOOK, pages.load(ROOT)[0]))
    assert edge in figure.find(f"{SVG}svg/{SVG}desc").text


def test_a_chain_is_told_line_by_line():
    figure = parsed(pictures.chain("A way", "one: first\ntwo\none > three\nthree: last"))
    assert figure.find(f"{SVG}svg/{SVG}desc").text == "from one to two; from one to three."


LINES = ["# Part <1>", "Name*: a & b", "Note: ", "Empty:", "[x] Ticked > not", "[ ] Left out", "(o) Chosen", "( ) Other one", "<Go & see>"]


def test_a_form_tells_every_field_to_whoever_does_not_see_it():
    figure = parsed(form("Form <A> & B", LINES))
    assert figure.get("role") == "img"
    assert figure.find(f"{SVG}title").text == "Form <A> & B"
    assert figure.find(f"{SVG}desc").text == (
        "below Part <1>; Name (must be given): a & b; Note: empty; Empty: empty; Ticked > not: ticked; Left out: not ticked; "
        "Chosen: chosen; Other one: not chosen; button Go & see.")


def test_a_form_shows_every_field_to_whoever_sees_it():
    figure = parsed(form("Form <A> & B", LINES))
    assert [text.text for text in figure.iter(f"{SVG}text")] == [
        "Form <A> & B", "Part <1>", "Name*", "a & b", "Note", "Empty", "Ticked > not", "Left out", "Chosen", "Other one", "Go & see"]
    assert len(figure.findall(f"{SVG}path[@class='tick']")) == len(figure.findall(f"{SVG}circle[@class='dot']")) == 1


@pytest.mark.parametrize("value", ["https://training-certhelper.web.cern.ch/accounts/oidc/cern/login/callback/", "word " * 40, "w" * 200])
def test_nothing_of_a_form_leaves_it_or_lies_upon_another(value):
    figure = parsed(form("A form", [f"Value: {value}", f"[x] {value}", f"(o) {value}", "<Go>"]))
    _, _, width, height = map(float, figure.get("viewBox").split())
    assert width <= 330
    texts = [(float(text.get("x")), float(text.get("y")), text.text) for text in figure.iter(f"{SVG}text")]
    assert all(x + len(text) * pictures.CHARACTER <= width for x, _, text in texts)
    assert all(low - high >= pictures.LINE for (_, high, _), (_, low, _) in itertools.pairwise(texts))
    assert texts[-1][1] < height
    assert "".join(text for _, _, text in texts).replace(" ", "").count(value.replace(" ", "")) == 3


@pytest.mark.parametrize("line", ["no sign", "[y] Label", "(x) Label", "<>", ": value", "Label:value"])
def test_a_line_that_is_none_of_a_form_is_named(line):
    with pytest.raises(WrongUse, match=re.escape(repr(line))):
        form("A form", [line])
