"""A failing test leads to the page: pytest's own report and the JUnit file name it with its line."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from runbook.cli import page

ROOT = Path(__file__).parents[2]


def run(folder, text, name="test_any.py"):
    (folder / name).write_text(text)
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "tests.reporting", "-p", "no:cacheprovider", "--junitxml=junit.xml",
                           "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder / name)],
                          cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    return done.stdout, ET.parse(folder / "junit.xml")


def steps(junit):
    return [each.get("value") for each in junit.iter("property") if each.get("name") == "step"]


def test_a_failing_test_names_page_and_line_of_the_step_in_its_code(tmp_path):
    said, junit = run(tmp_path, "def test_it():\n    assert 'redis.add' == 1\n")
    assert f"{page('redis.add')}: redis.add" in said
    assert steps(junit) == [f"redis.add {page('redis.add')}"]


def test_a_file_of_a_procedure_names_its_steps(tmp_path):
    said, _ = run(tmp_path, "def test_it():\n    assert False\n", "test_redis.py")
    assert f"{page('redis.add')}: redis.add" in said


def test_a_test_that_passes_is_told_in_the_junit_file_only(tmp_path):
    said, junit = run(tmp_path, "def test_it():\n    assert 'redis.add'\n")
    assert page("redis.add") not in said
    assert steps(junit) == [f"redis.add {page('redis.add')}"]


def test_a_test_of_no_step_names_none(tmp_path):
    said, junit = run(tmp_path, "def test_it():\n    assert False\n")
    assert "steps of the guide" not in said
    assert steps(junit) == []
