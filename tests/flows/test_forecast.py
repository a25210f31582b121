"""How long it still takes, by hand."""

import pytest

from flows.forecast import Forecast, left_of_step, pace

LOOP = Forecast({"train[1]": "train", "judge[1]": "judge", "train[2]": "train", "judge[2]": "judge"},
                {"train": 100.0, "judge": 20.0})


def test_the_run_takes_what_its_steps_took_in_earlier_runs():
    assert LOOP.left({"train[1]": (0.0, None)}) == (240.0, True)
    assert LOOP.left({"train[1]": (30.0, None)}) == (210.0, True)  # 30 s of them have passed
    assert LOOP.left({"train[1]": (130.0, None)}) == (140.0, True)  # overdue: nothing is left, not less
    assert LOOP.left({"train[1]": (30.0, 5.0)}) == (145.0, True)  # the step itself knows better


def test_steps_that_have_finished_correct_it():
    """train took 300 s instead of 100: the next one is expected to, and the judge three times its 20."""
    assert LOOP.after("train[1]", 300.0).left({"judge[1]": (0.0, None)}) == (60.0 + 300.0 + 60.0, True)
    both = LOOP.after("train[1]", 300.0).after("judge[1]", 10.0)
    assert both.left({"train[2]": (0.0, None)}) == (310.0, True)


def test_a_cached_step_is_no_measurement():
    assert LOOP.after("train[1]", None).left({"judge[1]": (0.0, None)}) == (140.0, True)


def test_a_stage_that_nothing_was_measured_for_makes_it_a_lower_bound():
    assert Forecast({"a": "x", "b": "y"}, {"x": 5.0}).left({"a": (0.0, None)}) == (5.0, False)
    learned = Forecast({"a": "x", "b": "x"}, {}).after("a", 7.0)
    assert learned.left({"b": (0.0, None)}) == (7.0, True)


def test_the_pace_is_of_this_process_alone():
    """An earlier process did 20 of 100; this one 30 in 60 s, 0.5/s: 50 more take 100 s, 10 of which have passed."""
    state = {"done": 50, "total": 100, "unit": "steps", "time": 160.0, "began": {"done": 20, "time": 100.0}}
    assert pace(state) == 0.5
    assert left_of_step(state, now=170.0) == pytest.approx(90.0)
    assert left_of_step({**state, "done": 20}, now=170.0) is None
    assert left_of_step({**state, "total": 0}, now=170.0) is None
    assert left_of_step(None) is None
