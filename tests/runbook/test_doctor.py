"""Messages are recognized by their own words, and a command that helps comes with each."""

import pytest

from procedures import RUNBOOK
from runbook.doctor import Evidence, diagnoses, recognized
from runbook.step import Symptom
from tasks import ns

FORMER = {
    'django.db.utils.OperationalError: connection to server at "dbod-birdup.cern.ch" (188.184.1.2), port 6601 failed: FATAL:  '
    'no pg_hba.conf entry for host "188.185.3.4", user "admin", database "certhelperdb", no encryption': "database.access",
    'FATAL:  no pg_hba.conf entry for host "188.185.3.4", user "admin", database "certhelperdb", SSL encryption': "database.access",
    "decouple.UndefinedValueError: OMS_CLIENT_ID not found. Declare it as envvar or define a default value.": "environment.set",
    "Back-off restarting failed container: CrashLoopBackOff": "deploy.build",
}
"""What the former guide quotes, or meets without a word of what to do."""


@pytest.mark.parametrize(("message", "step"), FORMER.items())
def test_what_the_former_guide_quotes_is_recognized(message, step):
    assert recognized(RUNBOOK, message)[0].step.name == step


def test_the_longest_match_comes_first():
    text = 'FATAL:  no pg_hba.conf entry for host "::1", user "a", database "b", SSL encryption; the log says CrashLoopBackOff'
    assert [found.step.name for found in recognized(RUNBOOK, text)][:2] == ["database.access", "deploy.build"]


def test_another_message_is_not_recognized():
    assert recognized(RUNBOOK, "the kettle boils") == []


@pytest.mark.parametrize(("seen", "text", "matched"), [
    ("`a thing … gone`", "a thing of mine is gone", True),
    ("`a thing … gone`", "gone is a thing", False),
    ("It says `400`.", "port 400", False),
    ("It says nothing.", "It says nothing.", False),
])
def test_only_a_quotation_is_matched_and_dots_stand_for_anything(seen, text, matched):
    assert bool(Symptom(seen, "Because.", "invoke x").matched(text)) is matched


def test_each_symptom_is_told_once_with_where_it_was_seen_first():
    said = [Evidence("pod a", "OOMKilled"), Evidence("pod b", "OOMKilled"), Evidence("pod c", "nothing known")]
    assert [(one.evidence.origin, one.symptom.seen) for one in diagnoses(RUNBOOK, said)] == [("pod a", "`OOMKilled`")]


@pytest.mark.parametrize("symptom", RUNBOOK.symptoms, ids=lambda symptom: symptom.seen[:40])
def test_every_symptom_has_a_cause_and_a_command_that_there_is(symptom):
    assert symptom.cause.rstrip(")*").endswith(".")
    command = symptom.command.format(build="dev", project="x", api="https://y")
    words = command.split()
    assert words[0] in {"invoke", "oc", "df"}
    if words[0] == "invoke":
        task = ns[words[1]]
        known = {"--" + argument.name.replace("_", "-") for argument in task.get_arguments()}
        assert {word.partition("=")[0] for word in words[2:]} <= known
