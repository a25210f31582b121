"""Dividing rows into sft, pref, unlabeled and eval: by prompt, by hash, filling what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.formats import divide as division
from pipeline.formats import splits
from pipeline.formats.splits import Entry, Imported, Limits, Shares
from pipeline.records import Message
from tests.given import splits as whole

ROOT = Path(__file__).parents[2]
SYSTEM = Message("system", "s")


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str) -> Message:
    return Message("assistant", text)


def entry(prompt: str, split: str, answers: int = 0, label: bool | None = None, fixed: bool = False) -> Entry:
    texts = [f"{prompt} answer {i}" for i in range(answers)]
    return Entry("f:1", splits.group_of([user(prompt)], texts, label, "set", ""), split, fixed)


def pairs(number: int) -> list[Entry]:
    return [entry(f"question {i}", "pref", 2) for i in range(number)]


def divide(entries: list[Entry], shares: Shares | None = None, limits: Limits | None = None) -> Imported:
    return division.divide(lambda problems, dropped: iter(entries), shares or Shares(), limits or Limits())


def prompts(made: Imported, split: str) -> set[str]:
    return {group.messages[0].content for group in whole(made)[split]}


def test_pairs_alone_fill_all_four_splits_in_the_protocols_proportions() -> None:
    """4,080 prompts at 10 : 10 : 20 : 0.8 are 1000, 1000, 2000 and 80 on average; four standard deviations allowed."""
    made = divide(pairs(4080))
    sizes = {split: len(groups) for split, groups in whole(made).items()}
    assert sum(sizes.values()) == 4080
    for split, mean, share in (("sft", 1000, 10), ("pref", 1000, 10), ("unlabeled", 2000, 20), ("eval", 80, 0.8)):
        deviation = (4080 * share / 40.8 * (1 - share / 40.8)) ** 0.5
        assert abs(sizes[split] - mean) < 4 * deviation
    completions = {split: {len(g.completions) for g in groups} for split, groups in whole(made).items()}
    assert completions == {"sft": {1}, "pref": {2}, "unlabeled": {0}, "eval": {0}}
    assert all(g.completions[0].text.endswith("answer 0") for g in whole(made)["sft"])  # the preferred one


def test_a_share_of_0_uses_up_no_pair_as_a_demonstration() -> None:
    """Without SFT every prompt is a pair, one to sample from or one to evaluate on; demonstrations give prompts."""
    made = divide(pairs(300), Shares(sft=0))
    assert made.counts["sft"] == 0 and sum(made.counts.values()) == 300 and min(
        made.counts[split] for split in ("pref", "unlabeled")) > 50
    shown = divide([entry(f"show {i}", "sft", 1) for i in range(40)], Shares(sft=0, eval=0))
    assert shown.counts == {"sft": 0, "pref": 0, "unlabeled": 40, "eval": 0}


def test_a_split_with_rows_of_its_own_takes_no_others() -> None:
    entries = pairs(50) + [entry(f"show {i}", "sft", 1) for i in range(50)]
    entries += [entry(f"ask {i}", "unlabeled") for i in range(50)] + [entry(f"judge {i}", "eval") for i in range(5)]
    made = divide(entries)
    assert {split: len(groups) for split, groups in whole(made).items()} == {
        "sft": 50, "pref": 50, "unlabeled": 50, "eval": 5}


def test_prompts_come_from_demonstrations_before_pairs_and_pairs_are_never_made_up() -> None:
    made = divide(pairs(40) + [entry(f"show {i}", "sft", 1) for i in range(400)])
    assert len(whole(made)["pref"]) == 40
    others = prompts(made, "sft") | prompts(made, "unlabeled") | prompts(made, "eval")
    assert others == {f"show {i}" for i in range(400)}
    only_demonstrations = divide([entry(f"show {i}", "sft", 1) for i in range(40)])
    assert whole(only_demonstrations)["pref"] == ()


def test_a_share_of_zero_gives_nothing() -> None:
    made = divide([entry(f"show {i}", "sft", 1) for i in range(100)], Shares(unlabeled=0, eval=0))
    assert {split: len(groups) for split, groups in whole(made).items()} == {
        "sft": 100, "pref": 0, "unlabeled": 0, "eval": 0}


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["sft", "pref", "unlabeled", "eval"])), max_size=60))
def test_no_prompt_is_in_two_splits(rows: list[tuple[int, str]]) -> None:
    """Whatever kinds of rows share a prompt, up to case, punctuation and white space."""
    answers = {"sft": 1, "pref": 2, "unlabeled": 0, "eval": 0}
    spelt = ["Is {} odd?", "is  {} ODD", "Is {}, odd!"]
    entries = [entry(spelt[i % 3].format(n), split, answers[split]) for i, (n, split) in enumerate(rows)]
    made = divide(entries)
    keys = [{splits.prompt_key(g) for g in groups} for groups in whole(made).values()]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert sum(map(len, whole(made).values())) + sum(made.dropped.values()) == len(entries)


def test_the_evaluation_keeps_its_prompt_and_the_training_row_goes() -> None:
    made = divide([*pairs(3), entry("Question 1!", "eval")])
    assert prompts(made, "eval") == {"Question 1!"}
    assert made.dropped == {division.ELSEWHERE: 1}


def test_where_the_user_named_every_split_rows_stay_where_they_were_put() -> None:
    entries = [entry("same", split, k, fixed=True) for split, k in (("sft", 1), ("pref", 2), ("eval", 0))]
    made = divide(entries)
    assert {split: len(groups) for split, groups in whole(made).items()} == {
        "sft": 1, "pref": 1, "unlabeled": 0, "eval": 1}
    assert made.dropped == {}


def test_a_split_that_is_filled_takes_no_prompt_of_a_named_file() -> None:
    """Demonstrations fill `unlabeled` and `eval`; those whose prompt is also a pair's stay demonstrations."""
    entries = [entry(f"q{i}", split, k, fixed=True) for i in range(100) for split, k in (("sft", 1), ("pref", 2))]
    entries += [entry(f"r{i}", "sft", 1, fixed=True) for i in range(100)]
    made = divide(entries)
    assert prompts(made, "pref") == {f"q{i}" for i in range(100)}
    filled = prompts(made, "unlabeled") | prompts(made, "eval")
    assert filled
    assert {prompt[0] for prompt in filled} == {"r"}


def test_neither_order_nor_more_rows_move_a_prompt() -> None:
    small, large = divide(pairs(200)[::-1]), divide(pairs(400))
    for split in splits.SPLITS:
        assert prompts(small, split) <= prompts(large, split)


def test_a_larger_limit_only_adds_and_what_is_cut_is_counted() -> None:
    cut, more = divide(pairs(300), limits=Limits(pref=10)), divide(pairs(300), limits=Limits(pref=20))
    assert (len(whole(cut)["pref"]), len(whole(more)["pref"])) == (10, 20)
    assert prompts(cut, "pref") < prompts(more, "pref")
    everything = len(whole(divide(pairs(300)))["pref"])
    assert cut.dropped == {"over data.format.limits.pref": everything - 10}


def test_a_limit_takes_from_everywhere_not_the_first_ids() -> None:
    """Of 100 numbered prompts, 50 are kept: 25 +- 2.5 of them from the first half; four deviations allowed."""
    turns = [[user(f"q{i}")] for i in range(100)]
    rows = [Entry(f"f:{i}", splits.group_of(t, [], None, "", f"{i:03}"), "eval") for i, t in enumerate(turns)]
    kept = [int(group.id) for group in whole(divide(rows, limits=Limits(eval=50)))["eval"]]
    assert len(kept) == 50
    assert 15 <= sum(i < 50 for i in kept) <= 35
    assert kept == sorted(kept)  # the rows' own order stays


def test_repeated_rows_and_prompts_are_counted() -> None:
    """The same demonstration twice is one; another answer to it is a second demonstration, but no second prompt."""
    first = entry("a", "sft", 1, fixed=True)
    other = Entry("f:3", splits.group_of([user("a")], ["another"], None, "set", ""), "sft", True)
    ask = entry("b", "unlabeled", fixed=True)
    made = divide([first, first, other, ask, ask, entry("c", "eval")])
    assert len(whole(made)["sft"]) == 2
    assert len(whole(made)["unlabeled"]) == 1
    assert made.dropped == {division.REPEATED: 1, division.REPEATED_PROMPT: 1}


def test_an_undesirable_answer_is_no_demonstration() -> None:
    entries = [entry(f"q{i}", "pref", 1, label=i % 2 == 0) for i in range(200)]
    made = divide(entries, Shares(unlabeled=0, eval=0))
    assert {g.label for g in whole(made)["pref"]} == {True, False}
    assert {int(g.messages[0].content[1:]) % 2 for g in whole(made)["sft"]} == {0}
    assert all(g.label is None for g in whole(made)["sft"])
    assert made.dropped[division.UNDESIRABLE] > 0


def test_ids_are_the_rows_own_or_come_from_the_content() -> None:
    group = splits.group_of([user("a")], ["b"], None, "set", "")
    assert len(group.id) == 16
    assert group.id == splits.group_of([user("a")], ["b"], None, "another file", "").id
    turns = [user("a")]
    others = [(turns, ["c"], None), (turns, [], None), (turns, ["b"], True), ([SYSTEM, *turns], ["b"], None)]
    assert len({group.id, *(splits.group_of(m, a, label, "set", "").id for m, a, label in others)}) == 5
    assert splits.group_of([user("a")], ["b"], None, "set", "mine").id == "mine"


def test_an_id_used_twice_in_a_split_is_told_with_both_places() -> None:
    group = splits.group_of([user("a")], ["b"], None, "set", "7")
    places = {"a:1": "sft", "b:9": "sft", "c:3": "pref"}
    twice = [Entry(where, group, split, named=True) for where, split in places.items()]
    with pytest.raises(UserError) as caught:
        divide([*twice, Entry("d:4", replace(group, id="8"), "sft", named=True)])
    assert caught.value.problems == [
        "b:9: id '7' is used before at a:1, expected each id once; rename it or leave the ids out"]


def test_prompt_key_looks_at_letters_and_digits_of_the_first_user_turn() -> None:
    def key(*messages: Message) -> str:
        return splits.prompt_key(splits.group_of(messages, [], None, "", ""))

    assert key(user("  How's\tThe _Café_ №1?")) == "how s the café no1"
    assert key(SYSTEM, user("Hi"), bot("Yes?"), user("Bye")) == "hi"
    assert key(user("?!")) == "?!"


def test_message_problems() -> None:
    problem = splits.message_problem
    assert problem([user("a")]) == problem([SYSTEM, user("a"), bot("b"), user("c")]) == ""
    assert problem([]) == problem([SYSTEM]) == "has no prompt, expected at least one user turn"
    assert problem([Message("human", "a")]) == "turn 1 has role 'human', expected one of system, user, assistant, tool"
    assert problem([user("a"), bot(" \n"), user("c")]) == "turn 2 (assistant) is empty, expected a text"
    assert problem([SYSTEM, bot("a")]) == "turn 2 is from assistant, expected user (they speak in turn)"
    assert problem([user("a"), user("b")]) == "turn 2 is from user, expected assistant (they speak in turn)"
    assert problem([user("a"), SYSTEM, user("b")]) == "turn 2 is from system, expected assistant (they speak in turn)"
    assert problem([user("a"), bot("b")]) == "the prompt ends with the assistant, expected the user's turn last"
    assert problem([user("a\ud800")]).startswith("turn 1 (user) holds half a surrogate pair at character 2, expected")


def test_faults_of_answers() -> None:
    assert [splits.fault_of(a) for a in ([], ["a"], ["a", "b"])] == ["", "", ""]
    assert splits.fault_of(["a", " a\n"]) == "identical"
    assert splits.fault_of(["", ""]) == splits.fault_of([" "]) == "empty"


@given(st.lists(st.integers(0, 5), max_size=30))
def test_rows_of_one_value_are_a_group_as_numpy_counts_them(values: list[int]) -> None:
    """What np.unique gives of marks, with less memory."""
    first, of = division._grouped(np.array(values, np.uint64))
    _, there, inverse = np.unique(np.array(values, np.uint64), return_index=True, return_inverse=True)
    assert first.tolist() == there.tolist() and of.tolist() == inverse.tolist()


DECIDE = """
import sys, tempfile
from collections import Counter
from pathlib import Path
import numpy as np
from pipeline.formats.divide import Index, check_ids, decided
from pipeline.formats.splits import SPLITS, Limits, Shares
from pipeline.stage import peak_memory
rows, rng = int(sys.argv[1]), np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    for number, start in enumerate(range(0, rows, 8192)):  # as an import leaves it, of pairs with ids
        n = min(8192, rows - start)
        marks = {name: rng.integers(0, 2**63, n, dtype=np.uint64) for name in ("prompt", "id", "messages")}
        points = {name: rng.random(n) for name in ("point", "rank")}
        bytes_of = {name: np.full(n, value, np.int8) for name, value in (
            ("split", 1), ("fixed", 0), ("named", 1), ("undesirable", 0), ("kind", 2))}
        np.savez(Path(folder) / f"part-{number:05d}.npz", **marks, **points, **bytes_of)
    index = Index(Path(folder))
    check_ids(index, None, None)
    made, _ = decided(index, Shares(), Limits(pref=rows // 5), SPLITS, Counter())
assert sum(made.counts.values()) > 0.9 * rows
print(peak_memory())
"""


@pytest.mark.long
def test_deciding_holds_forty_bytes_of_a_row() -> None:
    """So ten million rows take 400 MB: their import stays below 1 GB (docs/data.md). Peaks of two processes."""
    peaks = [int(subprocess.run([sys.executable, "-c", DECIDE, str(rows)], capture_output=True, text=True, check=True,
                                env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout) for rows in (500_000, 2_500_000)]
    assert (peaks[1] - peaks[0]) / 2_000_000 < 45
