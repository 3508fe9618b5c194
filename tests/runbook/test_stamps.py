"""Stamps say what a test run proved, and nothing that it did not."""

from pathlib import Path

import pytest

from procedures import RUNBOOK
from runbook import pages, stamps
from runbook.markdown import section
from runbook.observed import Observed
from runbook.options import outline
from runbook.stamps import Proof, Verified
from tests import stamping

ROOT = Path(__file__).parents[2]
INSTANCES = pages.load(ROOT)
INSTANCE = INSTANCES[0]
STEP = RUNBOOK.find("redis.add")
CHECK = RUNBOOK.find("source.check")
PERSON = RUNBOOK.find("project.request")


def word(step, proof, text=""):
    verified = Verified("2026-01-02", "c" * 40, {"Kubernetes": "1.34.1"}, {step.name: proof} if proof else {})
    return stamps.state(step, outline(step, INSTANCE, Observed()), verified, text)


@pytest.mark.parametrize(("step", "proof", "wanted"), [
    (STEP, None, "not verified in this build"),
    (STEP, Proof(True, 1.0, stamps.digest(STEP, "")), "tested with a stand-in"),
    (CHECK, Proof(True, 1.0, stamps.digest(CHECK, "")), "tested"),
    (PERSON, Proof(True, 1.0, stamps.digest(PERSON, "")), "person"),
    (STEP, Proof(False, 1.0, stamps.digest(STEP, "")), "failed"),
    (STEP, Proof(True, 1.0, stamps.digest(STEP, "as it was")), "stale"),
])
def test_each_word_has_its_reason(step, proof, wanted):
    assert word(step, proof) == wanted


def test_a_changed_page_is_stale_and_an_unchanged_one_is_not():
    text = section(STEP, INSTANCES, "A reason.")
    verified = Verified("2026-01-02", "c" * 40, {}, {STEP.name: Proof(True, 1.0, stamps.digest(STEP, text))})
    assert "**Tested**" in pages.Sections(RUNBOOK, INSTANCES, verified).stamped(STEP, "A reason.")
    assert "**Stale**" in pages.Sections(RUNBOOK, INSTANCES, verified).stamped(STEP, "Another reason.")


def test_without_a_test_run_nothing_is_claimed():
    assert "Not verified in this build" in pages.Sections(RUNBOOK, INSTANCES).stamped(STEP, "")


def test_the_file_is_read_as_it_was_written(tmp_path):
    written = Verified("2026-01-02", "c" * 40, {"Redis": "7"}, {"redis.add": Proof(True, 2.5, "abc")})
    written.write(tmp_path / "verified.json")
    assert Verified.read(tmp_path / "verified.json") == written
    assert Verified.read(tmp_path / "none.json") == Verified()


@pytest.mark.parametrize(("failures", "passed"), [(set(), True), ({"test_redis"}, False), ({"test_guide"}, False), ({"test_sso"}, True)])
def test_a_failed_test_takes_the_proof_of_its_steps(failures, passed):
    entries = [{"step": "redis.add", "state": state, "seconds": seconds}
               for state, seconds in (("unchanged", 0.1), ("changed", 2.0), ("changed", 4.0))]
    found = stamping.proved(failures, entries)
    assert found.steps["redis.add"] == Proof(passed, 3.0, stamps.digest(STEP, stamping.text(STEP)))
    assert set(found.steps) == {"redis.add"}
    assert found.pages["eos.md"] == stamps.fingerprint((ROOT / "docs" / "eos.md").read_text())


def test_no_page_is_proved_when_a_test_of_the_pages_failed():
    assert stamping.proved({"test_docs"}, []).pages == {}


@pytest.mark.parametrize(("words", "known", "wanted", "kind"), [
    (["tested", "tested", "person"], "text", "**3 steps**: 2 tested, 1 a person's · 2026-01-02, commit `cccccccc` · Redis 7", "person"),
    (["tested", "stale"], "text", "**2 steps**: 1 tested, 1 stale", "stale"),
    ([], "text", "**Checked**", "tested"),
    (["tested"], "another text", "**Stale**", "stale"),
    (["tested"], None, "**Not verified in this build**", "not"),
])
def test_a_page_says_what_was_proved_of_it(words, known, wanted, kind):
    pages_known = {} if known is None else {"x.md": stamps.fingerprint(known)}
    line = stamps.page_stamp("x.md", "text", words, Verified("2026-01-02", "c" * 40, {"Redis": "7"}, {}, pages_known))
    assert line.startswith(wanted)
    assert line.endswith(f"{{ .stamp .stamp-{kind} }}")


def test_the_overview_says_stale_where_a_page_has_changed_since():
    text = section(STEP, INSTANCES, pages.body(ROOT / "docs", STEP))
    proof = Proof(True, 1.0, stamps.digest(STEP, text))
    verified = Verified("2026-01-02", "c" * 40, {}, {STEP.name: proof, CHECK.name: Proof(True, 1.0, "as it was")})
    words = pages.Sections(RUNBOOK, INSTANCES, verified).states(ROOT / "docs")
    assert (words[STEP.name], words[CHECK.name], words[PERSON.name]) == ("tested with a stand-in", "stale", stamps.UNPROVED)
