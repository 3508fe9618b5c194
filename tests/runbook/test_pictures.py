"""Pictures: every edge goes down, nothing overlaps, and whoever does not see them can read them."""

import dataclasses
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from procedures import RUNBOOK
from runbook import pages, pictures
from runbook.pictures import Box, drawn, layered, placed

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
