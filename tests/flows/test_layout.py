"""Tables in terminals of 80, 100 and 140 columns, and where there is none, line by line."""

import pytest

from flows import layout

STEPS = ["step", "state", "time", "key", "result"]
TRAIN = ["train[1]", "done", "42.0 s", "0123456789abcdef", "steps 64, loss 0.5721, margin 1.204, groups 512"]
JUDGE = ["evaluate[1]", "running 40 %", "", "fedcba9876543210",
         "win rate 77.1% (69.5% to 83.3%), length-controlled 70.6%, gain +3.8 points (-0.3 to +7.9)"]


def test_at_80_columns_a_row_keeps_step_state_and_time_and_its_result_stands_below():
    assert layout.lines(STEPS, [TRAIN, JUDGE], 80, spare=("key",)) == [
        "step         state           time",
        "    result",
        "train[1]     done          42.0 s",
        "    steps 64, loss 0.5721, margin 1.204, groups 512",
        "evaluate[1]  running 40 %",
        "    win rate 77.1% (69.5% to 83.3%), length-controlled 70.6%, gain +3.8 points",
        "    (-0.3 to +7.9)",
        "(no room for key; with | cat every column is shown)"]


def test_at_100_columns_the_result_is_folded_in_its_own_column():
    assert layout.lines(STEPS, [TRAIN, JUDGE], 100, spare=("key",)) == [
        "step         state           time  result",
        "train[1]     done          42.0 s  steps 64, loss 0.5721, margin 1.204, groups 512",
        "evaluate[1]  running 40 %          win rate 77.1% (69.5% to 83.3%), length-controlled 70.6%, gain",
        "                                   +3.8 points (-0.3 to +7.9)",
        "(no room for key; with | cat every column is shown)"]


def test_a_last_column_that_can_be_spared_is_folded_first_and_left_out_below_100():
    plan = [["tokens", "run", "data, init/model " * 6]]
    assert layout.lines(["step", "state", "inputs"], plan, 100, spare=("inputs",))[1:] == [
        "tokens  run    data, init/model data, init/model data, init/model data, init/model data, init/model",
        "               data, init/model"]
    assert layout.lines(["step", "state", "inputs"], plan, 80, spare=("inputs",))[:2] == [
        "step    state", "tokens  run"]


def test_at_140_columns_as_at_100_and_where_there_is_no_terminal_a_row_is_a_line():
    assert layout.lines(STEPS, [TRAIN, JUDGE], 140, spare=("key",)) == [
        "step         state           time  result",
        "train[1]     done          42.0 s  " + TRAIN[-1],
        "evaluate[1]  running 40 %          " + JUDGE[-1],
        "(no room for key; with | cat every column is shown)"]
    assert layout.lines(STEPS, [TRAIN, JUDGE], None, spare=("key",)) == [
        "step         state           time  key               result",
        "train[1]     done          42.0 s  0123456789abcdef  " + TRAIN[-1],
        "evaluate[1]  running 40 %          fedcba9876543210  " + JUDGE[-1]]


def test_many_numbers_stand_below_their_row_each_with_its_name():
    columns = ["iteration", "prompts", "samples", "kept", "dropped", "reward mean", "best of N", "margin",
               "win rate (interval)", "length", "why"]
    row = ["1", "512", "2,048", "490", "22", "0.512", "1.370", "1.204", "77.1% (69.5% to 83.3%)", "40.0", "a gate"]
    assert layout.lines(columns, [row], 80) == [
        "iteration  prompts  samples  kept  dropped  reward mean  best of N  margin",
        "1              512    2,048   490       22        0.512      1.370   1.204",
        "    win rate (interval) 77.1% (69.5% to 83.3%), length 40.0",
        "    why: a gate"]


@pytest.mark.parametrize("width", [20, 40, 80, 100, 140])
def test_no_word_of_a_row_is_cut_or_lost(width: int):
    printed = " ".join(layout.lines(STEPS, [TRAIN, JUDGE], width)).split()
    assert set(" ".join([*TRAIN, *JUDGE]).split()) <= set(printed)


def test_a_column_with_nothing_in_it_is_left_out():
    assert layout.lines(["step", "made by", "inputs"], [["data", "", ""], ["init", "", "data"]], None) == [
        "step  inputs", "data", "init  data"]


def test_a_path_longer_than_the_terminal_stays_whole():
    path = "/a/very/long/folder/" + "x" * 60
    assert layout.lines(["what", "found"], [["workspace", path]], 40) == [
        "what", "    found", "workspace", f"    {path}"]


def test_wide_characters_take_two_cells():
    assert layout.lines(["run", "state"], [["试验", "done"], ["first", "done"]], 80) == [
        "run    state", "试验   done", "first  done"]


def test_a_command_in_a_paragraph_is_never_folded():
    text = "it was interrupted, every finished step is kept; go on with\n    align run run=first workspace=/elsewhere"
    assert layout.wrapped(text, 30, below="  ") == [
        "it was interrupted, every", "  finished step is kept; go on", "  with",
        "    align run run=first workspace=/elsewhere"]
