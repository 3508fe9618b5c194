"""Steps know their name, words and options; the runbook knows their order."""

import types
from typing import Annotated

import pytest

from runbook.errors import WrongUse
from runbook.instance import Instance
from runbook.observed import Observed
from runbook.plan import Require
from runbook.step import Runbook, Step, step, suggestion


def module(stem, *names, **steps):
    """Return a procedure whose steps yield nothing but their own name."""
    made = types.ModuleType(f"procedures.{stem}")
    for name in names:
        steps[name] = {}
    for name, words in steps.items():
        def function(_instance: Instance, _observed: Observed, _name: str = name):
            """Do it."""
            yield Require(_name, "", "")
        function.__name__, function.__module__ = name, made.__name__
        setattr(made, name, step(**words)(function))
    return made


def names(steps):
    return [found.name for found in steps]


def test_a_step_is_named_after_its_procedure_and_function():
    eos = module("eos", "mount")
    assert (eos.mount.procedure, eos.mount.name, eos.mount.manager) == ("eos", "eos.mount", "guide/eos.mount")


def test_the_summary_is_the_first_line():
    @step()
    def create(_instance, _observed):
        """Create it.

        Not this.
        """
        yield Require("", "", "")

    assert create.summary == "Create it."


def test_options_are_the_keyword_only_parameters():
    @step()
    def create(_instance, _observed, *, size: Annotated[int, "How big."] = 3):
        """Create it."""
        yield Require(str(size), "", "")

    assert list(create.options) == ["size"]
    assert create.options["size"].default == 3
    assert create.options["size"].annotation.__metadata__ == ("How big.",)
    assert [value.what for value in create.plan(None, Observed(), size=4)] == ["4"]


def test_the_source_is_the_functions_own_line():
    eos = module("eos", "mount")
    path, line = eos.mount.source
    assert path == __file__
    assert line > 1


def test_steps_stand_in_the_order_of_their_procedures():
    runbook = Runbook((module("b", "two", "one"), module("a", "three")))
    assert names(runbook.steps) == ["b.two", "b.one", "a.three"]


def test_an_imported_step_is_listed_once():
    one = module("one", "a")
    two = module("two", "b")
    two.a = one.a
    assert names(Runbook((one, two)).steps) == ["one.a", "two.b"]


def test_needs_come_first_and_else_the_guides_order_holds():
    late = module("late", "x", "y")
    early = module("early", first={"needs": (late.y,)}, second={})
    assert names(Runbook((early, late)).standing) == ["early.second", "late.x", "late.y", "early.first"]


def test_operations_do_not_stand():
    assert names(Runbook((module("p", a={"operation": True}, b={}),)).standing) == ["p.b"]


def test_a_circle_is_named():
    one, two = (Step(lambda _i, _o: iter(()), (), False, False, lambda _: True, "", "", ()) for _ in range(2))
    for found, name in ((one, "one"), (two, "two")):
        found.function.__name__, found.function.__module__ = name, "procedures.p"
    object.__setattr__(one, "needs", (two,))
    object.__setattr__(two, "needs", (one,))
    circle = types.ModuleType("procedures.p")
    circle.one, circle.two = one, two
    with pytest.raises(ValueError, match=r"in a circle: .*p\.one.*p\.two|in a circle: .*p\.two.*p\.one"):
        _ = Runbook((circle,)).standing


@pytest.fixture
def chain():
    p = module("p", "a", "other")
    q = module("q", b={"needs": (p.a,)}, c={})
    r = module("r", d={"needs": (q.b,)}, e={"needs": (q.c,), "operation": True}, f={"needs": (q.b,)})
    return Runbook((p, q, r))


def test_before_a_step_come_only_those_that_it_needs(chain):
    assert names(chain.before(chain.find("r.d"))) == ["p.a", "q.b", "r.d"]


def test_an_operation_comes_last(chain):
    assert names(chain.before(chain.find("r.e"))) == ["q.c", "r.e"]


def test_a_mistyped_step_gets_a_suggestion(chain):
    with pytest.raises(WrongUse, match=r"there is no step 'p\.othr'") as error:
        chain.find("p.othr")
    assert error.value.cure == "did you mean p.other?"
    assert error.value.code == 2


def test_what_resembles_nothing_gets_the_whole_list():
    assert suggestion("zzz", ["one", "two"]) == "there are: one, two"


def test_what_is_not_wanted_is_for_the_instance_to_say():
    p = module("p", a={"wanted": lambda instance: instance == "dev"})
    assert p.a.wanted("dev")
    assert not p.a.wanted("production")
