"""Where samples went, and whether the reward was right, by hand."""

import math

from pipeline.evaluation.signal import account, ordering_accuracy
from pipeline.records import LENGTH, STOP, Completion, Group, Message


def group(name: str, *answers: tuple[tuple[int, ...], float], cut: bool = False) -> Group:
    completions = tuple(
        Completion("x", ids, LENGTH if cut else STOP, {"reward": value}) for ids, value in answers)
    return Group(name, (Message("user", "q"),), completions)


def test_every_prompt_is_accounted_for_once():
    sampled = [
        group("kept", ((1,), 1.0), ((2,), 0.0)),
        group("tie", ((1,), 1.0), ((2,), 1.0)),
        group("same", ((1,), 1.0), ((1,), 1.0), cut=True),
        group("few", ((1,), 1.0)),
        group("unscored", ((1,), 1.0), ((2,), math.nan)),
        group("rule", ((1,), 1.0), ((2,), 0.5)),
    ]
    found = account(sampled, {"kept"}, "reward")
    assert found == {
        "prompts": 6, "samples": 11, "kept": 1, "lost_same_score": 1, "lost_same_text": 1, "lost_too_few_answers": 2,
        "lost_other": 1, "duplicate_samples": 1, "truncated_samples": 2, "unscored_samples": 1,
    }
    lost = sum(number for name, number in found.items() if name.startswith("lost_"))
    assert found["kept"] + lost == found["prompts"]


def test_accuracy_by_hand():
    """Gold 3 > 2 > 1 (three pairs), learned 0.9, 0.1, 0.5: right for 3>2 and 3>1, wrong for 2>1. A pair that gold ties
    does not count; one that the learned score ties counts half: (2 + 0.5) / 4."""
    def scored(*values: tuple[float, float]) -> Group:
        return Group("a", (), tuple(Completion("x", scores={"reward": r, "gold": g}) for r, g in values))

    tied = scored((0.4, 1.0), (0.6, 1.0))
    groups = [scored((0.9, 3.0), (0.1, 2.0), (0.5, 1.0)), tied, scored((0.5, 1.0), (0.5, 2.0))]
    found = ordering_accuracy(groups, "reward", "gold")
    assert (found.pairs, found.accuracy) == (4, 0.625)
    assert ordering_accuracy([tied], "reward", "gold").accuracy is None
