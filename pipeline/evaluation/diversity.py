"""How much answers repeat: themselves, their prompt, each other. On token ids, the stop id included."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Repeats:
    """Mean number of repeated n-gram occurrences of an answer; not divided by its length."""

    either: float  # occurs in the prompt, or occurred earlier in the answer: Repeat@n-gram
    in_prompt: float
    in_answer: float


def distinct(answers: Iterable[Sequence[int]], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams of all answers, in (0, 1]; None where no answer
    is n tokens long.

    Falls with the number of answers, so compare tables of the same size.
    """
    seen: set[tuple[int, ...]] = set()
    total = 0
    for answer in answers:
        grams = ngrams(answer, n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else None


def repeats(answers: Sequence[tuple[Sequence[int], Sequence[int]]], n: int = 3) -> Repeats:
    """Repeat@n-gram of (prompt ids, answer ids) pairs (Xu et al. 2023, section 4.2, where n = 3), mean over answers.

    An occurrence counts once where its n-gram is in the prompt or occurred earlier in the answer; where both are true
    it is still one, so `either` may be less than `in_prompt + in_answer`. Raises ValueError for no answers.
    """
    if not answers:
        raise ValueError("repeats of no answers are undefined")
    either = in_prompt = in_answer = 0
    for prompt, answer in answers:
        given, earlier = set(ngrams(prompt, n)), set[tuple[int, ...]]()
        for gram in ngrams(answer, n):
            either += gram in given or gram in earlier
            in_prompt += gram in given
            in_answer += gram in earlier
            earlier.add(gram)
    return Repeats(either / len(answers), in_prompt / len(answers), in_answer / len(answers))


def duplicate_share(groups: Iterable[Sequence[Sequence[int]]]) -> float:
    """Share of answers that an earlier answer to the same prompt equals token for token. Raises ValueError for none."""
    total = same = 0
    for answers in groups:
        total += len(answers)
        same += len(answers) - len({tuple(answer) for answer in answers})
    if not total:
        raise ValueError("the share of duplicates among no answers is undefined")
    return same / total


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Every n-gram in order, repeated ones too."""
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
