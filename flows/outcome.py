"""What a run came to: every iteration's answers beside the SFT model's, and in one line whether the last one gained."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import NONE

HEADERS = ("iteration", "win rate (interval)", "learned", "same length", "KL", "length", "truncated")
Entry = Mapping[str, Any]  # of comparison.json: see pipeline/stages/report.py


def rows(entries: Sequence[Entry], kl: Mapping[int, float], reward: str = "reward") -> list[list[str]]:
    """One row per iteration under HEADERS; row 0 is the SFT model, where all were compared with it.

    entries: of comparison.json. kl: iteration -> KL to the SFT model, nats an answer; none where it was not measured.
    reward: the name of the score that the loop optimises.
    """
    found = [_row(str(entry["iteration"]), rate_of(entry), _learned(entry, reward),
                  entry["length_controlled"]["win_rate"], kl.get(entry["iteration"]), entry["policy"])
             for entry in entries]
    start = _row("0", "50.0%", None if _learned(entries[0], reward) is None else 0.5, 0.5, 0.0, entries[0]["baseline"])
    return [start, *found] if _one_baseline(entries) else found


def title(entries: Sequence[Entry]) -> str:
    whom = "the SFT model's, row 0" if _one_baseline(entries) else "those of the iteration before"
    return f"answers to {entries[0]['prompts']} evaluation prompts against {whom}, by {entries[0]['score']}"


def seen(entries: Sequence[Entry]) -> str:
    """Whether the last iteration is above what it was compared with, in points of win rate, and by its interval."""
    last, before = entries[-1], "SFT"
    verdict = last["scores"][last["score"]]
    gain = {"mean": verdict["win_rate"] - 0.5, "low": verdict["bootstrap_low"] - 0.5,
            "high": verdict["bootstrap_high"] - 0.5}
    if len(entries) > 1:
        before = str(entries[-2]["iteration"])
        gain = last["gain"] or gain
    mean, low, high = (100 * gain[name] for name in ("mean", "low", "high"))
    clear = "clear of zero" if low > 0 or high < 0 else "not clear of zero"
    return (f"iteration {last['iteration']} {'above' if mean > 0 else 'below' if mean < 0 else 'level with'} {before} "
            f"by {last['score']}: {mean:+.1f} points ({low:+.1f} to {high:+.1f}), {clear}")


def rate_of(entry: Entry) -> str:
    verdict = entry["scores"][entry["score"]]
    return f"{verdict['win_rate']:.1%} ({verdict['low']:.1%} to {verdict['high']:.1%})"


def _learned(entry: Entry, reward: str) -> float | None:
    """The win rate by the score that the loop optimises; None where it judges itself, or was not given."""
    return None if reward == entry["score"] else (entry["scores"].get(reward) or {}).get("win_rate")


def _one_baseline(entries: Sequence[Entry]) -> bool:
    """Only rates against one baseline were subtracted."""
    return all(entry["gain"] is not None for entry in entries[1:])


def _row(name: str, rate: str, learned: float | None, controlled: float | None, kl: float | None,
         answers: Mapping[str, float]) -> list[str]:
    return [name, rate, NONE if learned is None else f"{learned:.1%}",
            NONE if controlled is None else f"{controlled:.1%}", NONE if kl is None else f"{kl:.1f}",
            f"{answers['tokens']:.1f}", f"{answers['truncated']:.1%}"]
