"""Set the evaluations of several iterations side by side: did each one gain on the one before?

Reads the artifacts of `evaluate` in the order of the iterations. All judged the same prompts against the same
baseline, so two iterations are compared prompt by prompt, which tells more than two separate intervals. Writes

    comparison.json    one entry per iteration; `gain` is its paired gain in win rate on the one before
    comparison.md      the same as a table to read

What the run cost (seconds, memory, tokens per second) differs from machine to machine and is no artifact: see
`pipeline.report`, which the run's report.md comes from.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import markdown, statistics
from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.evaluation import comparison
from pipeline.markdown import LEFT, RIGHT
from pipeline.stage import Context, Stage, derive_seed, told


@dataclass(frozen=True)
class Settings:
    """How the gain between iterations is stated."""

    confidence: float = setting(0.95, above=0.5, below=1.0)  # of the interval around each gain
    resamples: int = setting(2000, low=100, high=100_000)  # of the bootstrap over prompts
    fixed_baseline: bool = True  # false: every iteration has a baseline of its own, so rates cannot be subtracted


@dataclass(frozen=True)
class Gain:
    """Paired difference in win rate of an iteration and the one before, in [-1, 1]."""

    mean: float
    low: float  # bootstrap over prompts
    high: float
    prompts: int  # judged in both
    p_value: float  # two-sided, of "both iterations are alike": paired sign-flip test over prompts


def run(context: Context) -> None:
    settings: Settings = context.settings
    folders = context.inputs["evaluations"]
    results = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    scores = sorted({result["score"] for result in results})
    if len(scores) > 1:
        raise UserError(f"report: the evaluations were decided by different scores ({', '.join(scores)}); use one")
    outcomes = [prompt_outcomes(folder / "outcomes.jsonl") for folder in folders]
    seed = derive_seed(context.seed, "report", "bootstrap")
    gains: list[Gain | None] = [None] * len(folders)
    controlled: list[dict[str, Any] | None] = [None] * len(folders)
    if settings.fixed_baseline:
        gains[1:] = [gain(a, b, settings, seed) for a, b in itertools.pairwise(outcomes)]
        controlled = with_difficulties(folders, settings, seed)
    entries = [
        {"iteration": i, "gain": None if found is None else asdict(found), "length_controlled_jointly": joint, **result}
        for i, (result, found, joint) in enumerate(zip(results, gains, controlled, strict=True), start=1)]
    (context.out / "comparison.json").write_text(json.dumps(entries, indent=2, allow_nan=False) + "\n")
    (context.out / "comparison.md").write_text(to_markdown(entries))
    context.report.count(evaluations=len(entries), win_rate=results[-1]["scores"][scores[0]]["win_rate"])
    last = gains[-1]
    if last is not None:
        context.report.count(gain=last.mean, gain_low=last.low, gain_high=last.high, gain_p_value=last.p_value)


def with_difficulties(folders: Sequence[Path], settings: Settings, seed: int) -> list[dict[str, Any] | None]:
    """Each iteration's length-controlled win rate with the prompts' difficulties estimated from all iterations.

    One iteration alone says nothing of difficulties: None. Prompts that not all of them judged are left out. The
    bootstrap takes the difficulties as they are.
    """
    from pipeline.evaluation import length_control

    if len(folders) < 2:
        return [None] * len(folders)
    paths = [folder / "outcomes.jsonl" for folder in folders]
    known = length_control.difficulties({str(i): prompt_outcomes(path) for i, path in enumerate(paths)})
    found: list[dict[str, Any] | None] = []
    for path in paths:
        common = [row for row in map(json.loads, path.read_text().splitlines()) if row["id"] in known]
        found.append(asdict(length_control.control([row["id"] for row in common], [row["outcome"] for row in common],
                                                   [row["characters"] - row["baseline_characters"] for row in common],
                                                   seed, settings.resamples, settings.confidence, known)))
    return found


def prompt_outcomes(path: Path) -> dict[str, float]:
    """Prompt id -> mean outcome of its samples, in [0, 1]."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return comparison.by_prompt([row["id"] for row in rows], [row["outcome"] for row in rows])


def gain(before: dict[str, float], after: dict[str, float], settings: Settings, seed: int) -> Gain:
    """The mean of (after - before) over the prompts both judged. Raises UserError where there is none."""
    common = sorted(before.keys() & after.keys())
    if not common:
        raise UserError("report: two evaluations share no prompt; evaluate every iteration on the same prompts")
    differences = [after[name] - before[name] for name in common]
    low, high = statistics.bootstrap(differences, seed, settings.resamples, settings.confidence)
    p_value = statistics.sign_flip(differences, seed, settings.resamples)
    return Gain(statistics.mean(differences), low, high, len(common), p_value)


def to_markdown(entries: Sequence[dict[str, Any]]) -> str:
    """A table with one row per iteration and score; the deciding score comes first."""
    level = f"{entries[0]['confidence']:.0%}"
    columns = {"iteration": RIGHT, "score": LEFT, "win rate": RIGHT, f"{level} interval": LEFT,
               "wins / ties / losses": LEFT, "mean": RIGHT, "baseline": RIGHT,
               f"gain on the iteration before ({level})": LEFT, "p": RIGHT, f"length-controlled ({level})": LEFT,
               "words": RIGHT, "truncated": RIGHT}
    rows = []
    for entry in entries:
        for name, v in entry["scores"].items():
            deciding = name == entry["score"]
            won = f"{v['wins']} / {v['ties']} / {v['losses']}"
            found = entry["gain"] if deciding else None
            gained = f"{found['mean']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})" if found else ""
            p_value = f"{found['p_value']:.3f}" if found else ""
            rows.append((entry["iteration"], name, f"{v['win_rate']:.1%}", f"{v['low']:.1%} to {v['high']:.1%}", won,
                         _number(v["mean"]), _number(v["baseline_mean"]), gained, p_value,
                         _rate(entry["length_controlled"]) if deciding else "", f"{entry['policy']['words']:.1f}",
                         f"{entry['policy']['truncated']:.1%}"))
    return "\n\n".join(filter(None, [markdown.table(columns, rows), _by_category(entries)])) + "\n"


def _by_category(entries: Sequence[dict[str, Any]]) -> str:
    """Win rates by category, a column per iteration; nothing where the prompts have one category only."""
    columns = {"category": LEFT, "prompts": RIGHT, **{f"iteration {entry['iteration']}": LEFT for entry in entries}}
    rows = []
    for name in sorted({name for entry in entries for name in entry["categories"]}):
        found = [entry["categories"].get(name) for entry in entries]
        prompts = max(v["prompts"] for v in found if v is not None)
        rows.append((name or "(none)", prompts, *map(_rate, found)))
    return markdown.table(columns, rows)


def _rate(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['win_rate']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# seeded: the bootstrap draws
STAGE = Stage(Settings, run, version=4, inputs={"evaluations": "many"}, seeded=True,
              says=told("win rate {win_rate:.1%}", "gain {gain:+.1%}-points ({gain_low:+.1%} to {gain_high:+.1%})"))
