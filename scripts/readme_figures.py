"""Regenerate the figures of README.md and data/README.md: run the demo for several seeds, rewrite the marked blocks.

    python scripts/readme_figures.py                  # seeds 0 to 4: five whole runs
    python scripts/readme_figures.py --seeds 0        # one run
    python scripts/readme_figures.py --words engine=transformers     # further words of `align run`, named in the blocks

Both differences, iteration 1 less the SFT model and iteration 2 less iteration 1, are also given with the seeds pooled:
a prompt's value is its mean over seeds and samples, and the interval is a bootstrap over prompts.

Every seed has a workspace of its own, FOLDER/w<seed>. A run that is finished is read, not repeated: what it printed is
in FOLDER/w<seed>.txt, when and where it ran in FOLDER/w<seed>.json. A run of other code is refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.stages.report import prompt_outcomes

ROOT = Path(__file__).resolve().parent.parent
CODE = ("pipeline", "flows", "conf", "data", ":!data/README.md")  # what a result depends on
PRECISION = "float32"  # bfloat16, which `auto` takes where a CPU has it, gives other numbers
HEAD, LAST = 3, 2  # steps shown at the start and at the end of the demo's output


@dataclass(frozen=True)
class Origin:
    """Where a run's numbers come from."""

    date: str  # ISO, of the run's end
    commit: str
    cores: int
    precision: str = PRECISION
    words: tuple[str, ...] = ()  # of `align run`, beside recipe, precision and seed


@dataclass(frozen=True)
class Seed:
    """The numbers of one run. Pairs are of iterations 1 and 2; rates are in [0, 1], lengths in tokens, KL in nats."""

    seed: int
    gold: tuple[tuple[float, float, float], ...]  # win rate, lower and upper end of its Wilson interval
    gain: tuple[float, float, float]  # of iteration 2 on 1, paired by prompt: mean, lower and upper end
    learned: tuple[float, ...]  # win rate by the learned reward
    length: tuple[float, ...]  # SFT model, iteration 1, iteration 2
    kl: tuple[float, ...]  # to the SFT model
    controlled: tuple[float, ...]  # win rate at the same length
    outcomes: tuple[dict[str, float], ...]  # prompt -> mean outcome against the SFT model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--words", nargs="*", default=[], help="further words of `align run`: engine=transformers")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default=PRECISION)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "readme", help="where the runs are")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--world", type=Path, default=ROOT / "data" / "README.md", help="gets the seeds' block, too")
    options = parser.parse_args()
    commit = _clean_commit()
    for seed in options.seeds:
        measure(options.folder.resolve(), seed, commit, options.precision, options.words)
    origins = [origin_of(options.folder / f"w{seed}.json") for seed in options.seeds]
    printed = (options.folder / f"w{options.seeds[0]}.txt").read_text()
    text = options.readme.read_text()
    text = rewrite(text, "demo", demo_block(printed, origins[0]))
    block = seeds_block([read(options.folder / f"w{s}", s) for s in options.seeds], origins)
    options.readme.write_text(rewrite(text, "seeds", block))
    options.world.write_text(rewrite(options.world.read_text(), "seeds", block))
    print(block)
    return 0


def origin_of(about: Path) -> Origin:
    found = json.loads(about.read_text())
    return Origin(**{**found, "words": tuple(found["words"])})


def measure(folder: Path, seed: int, commit: str, precision: str, words: Sequence[str]) -> None:
    """Run the demo with this seed unless it is there. SystemExit for a run of other code or words, or one half done."""
    about, printed, workspace = folder / f"w{seed}.json", folder / f"w{seed}.txt", folder / f"w{seed}"
    if about.exists():
        before, asked = origin_of(about).commit, [origin_of(about).precision, *origin_of(about).words]
        if asked != [precision, *words]:
            raise SystemExit(f"{about}: the run has {asked}, expected {[precision, *words]}; give another --folder")
        if subprocess.run(["git", "diff", "--quiet", before, commit, "--", *CODE], cwd=ROOT, check=False).returncode:
            raise SystemExit(f"{about}: the run is of commit {before}, whose {', '.join(CODE)} differ from those of "
                             f"{commit}; remove it and {workspace}, or give another --folder")
        return
    if workspace.exists():
        raise SystemExit(f"{workspace}: a run that did not end; remove the folder, its time would be of a part only")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flows.cli", "run", "recipe=pco", f"precision={precision}", f"seed={seed}",
               "run=demo", f"workspace={workspace}", *words]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.replace(str(workspace), "workspace"))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    printed.write_text("".join(lines))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    origin = {"date": today, "commit": commit, "cores": os.cpu_count(), "precision": precision,
              "words": list(words)}
    about.write_text(json.dumps(origin) + "\n")


def read(workspace: Path, seed: int) -> Seed:
    """The numbers of a finished two-iteration run called demo, from its report and the artifacts it names."""
    steps = {step["step"]: step for step in json.loads((workspace / "runs/demo/report.json").read_text())["steps"]}

    def artifact(name: str, file: str) -> Any:
        step = steps[name]
        return json.loads((workspace / "artifacts" / step["kind"] / step["key"] / file).read_text())

    entries = artifact("report[2]", "comparison.json")
    diagnosed = [artifact(f"diagnose[{i}]", "diagnostics.json") for i in (1, 2)]
    gold = [entry["scores"][entry["score"]] for entry in entries]
    gain = entries[1]["gain"]
    judged = [steps[f"evaluate[{i}]"] for i in (1, 2)]
    return Seed(
        seed, tuple((v["win_rate"], v["low"], v["high"]) for v in gold), (gain["mean"], gain["low"], gain["high"]),
        tuple(entry["scores"]["reward"]["win_rate"] for entry in entries),
        (entries[0]["baseline"]["tokens"], *(entry["policy"]["tokens"] for entry in entries)),
        tuple(found["kl"]["per_answer"] for found in diagnosed),
        tuple(entry["length_controlled"]["win_rate"] for entry in entries),
        tuple(prompt_outcomes(workspace / "artifacts" / step["kind"] / step["key"] / "outcomes.jsonl")
              for step in judged))


def pooled(seeds: Sequence[Seed]) -> list[tuple[float, float, float]]:
    """Iteration 1 less the SFT model, iteration 2 less iteration 1, in win rate: mean, lower and upper end of the 95 %
    interval. A prompt's value is its mean over the seeds, and prompts are what is drawn."""
    found = []
    for before, after in (None, 0), (0, 1):
        names = sorted(set.intersection(*(set(seed.outcomes[after]) for seed in seeds)))
        values = [statistics.mean([seed.outcomes[after][name] - (0.5 if before is None else seed.outcomes[before][name])
                                   for seed in seeds]) for name in names]
        found.append((statistics.mean(values), *statistics.bootstrap(values, 0, 10_000)))
    return found


# ---- from numbers to Markdown ----------------------------------------------------------------------------------------


def demo_block(printed: str, origin: Origin) -> str:
    """What the demo printed: without lines of progress, most steps and the paths at the end."""
    lines = [line.rstrip() for line in printed.splitlines() if not line.startswith("  ...")]
    steps = [i for i, line in enumerate(lines) if line.startswith(("  done", "  cached"))]
    kept = [line for i, line in enumerate(lines) if i not in steps[HEAD:-LAST]]
    kept.insert(steps[HEAD - 1] + 1, "  ...")
    end = next(i for i, line in enumerate(kept) if line.startswith("report "))
    return f"{_where([origin])}:\n\n```\n" + "\n".join(kept[:end]).rstrip() + "\n```"


def seeds_block(seeds: Sequence[Seed], origins: Sequence[Origin]) -> str:
    """The table over seeds, its mean, and what it shows."""
    head = ["seed", "iteration 1", "iteration 2", "gain of 2 on 1", "learned reward's win rate, 1 and 2",
            "at the same length, 1 and 2", "answer length in tokens: SFT, 1, 2", "KL to the SFT model, 1 and 2"]
    rows = [[str(s.seed), *(f"{p:.1%} ({low:.1%} to {high:.1%})" for p, low, high in s.gold),
             f"{100 * s.gain[0]:+.1f} ({100 * s.gain[1]:+.1f} to {100 * s.gain[2]:+.1f})",
             *_rest(s.learned, s.controlled, s.length, s.kl)] for s in seeds]
    if len(seeds) > 1:
        rows.append(["mean", *(f"{rate:.1%}" for rate in _means([[v[0] for v in s.gold] for s in seeds])),
                     f"{100 * _means([s.gain for s in seeds])[0]:+.1f}",
                     *_rest(*(_means([getattr(s, name) for s in seeds])
                              for name in ("learned", "controlled", "length", "kl")))])
    rule = ["---:", *["---"] * (len(head) - 1)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
    return f"{table}\n\n{seen(seeds)} ({_where(origins)}.)"


def seen(seeds: Sequence[Seed]) -> str:
    """What the intervals say, in words: an iteration is above or below only where its whole interval is."""
    n = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    clear = sum(s.gold[0][1] > 0.5 for s in seeds)
    above, below = sum(s.gain[1] > 0 for s in seeds), sum(s.gain[2] < 0 for s in seeds)
    first, second = map(_points, pooled(seeds))
    return (f"{n} pooled, in points: iteration 1 less the SFT model {first}, iteration 2 less iteration 1 {second}. "
            f"Seed by seed, the whole interval of iteration 1 is above 50 % with {clear} of {n}; the interval of the "
            f"gain is above zero with {above} of {n}, below with {below}, and holds zero with "
            f"{len(seeds) - above - below}.")


def _points(found: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in found)
    clear = "clear of zero" if low > 0 or high < 0 else "not clear of zero"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}, {clear})"


def rewrite(text: str, name: str, block: str) -> str:
    """The text with the block between `<!-- figures: NAME -->` and `<!-- end -->` replaced. SystemExit without them."""
    start, end = f"<!-- figures: {name} -->", "<!-- end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"README: no block between {start} and {end}")
    return f"{before}{start}\n{block}\n{end}{after}"


def _rest(learned: Sequence[float], controlled: Sequence[float], length: Sequence[float],
          kl: Sequence[float]) -> list[str]:
    return [*(", ".join(f"{v:.1%}" for v in rates) for rates in (learned, controlled)),
            *(", ".join(f"{v:.1f}" for v in values) for values in (length, kl))]


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each column."""
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _where(origins: Sequence[Origin]) -> str:
    dates, commits = sorted({o.date for o in origins}), sorted({o.commit for o in origins})
    words = "".join(f", {word}" for word in origins[0].words)
    return (f"{' and '.join(dates)}, commit {' and '.join(commits)}, {max(o.cores for o in origins)} cores, "
            f"{origins[0].precision}{words}")


def _clean_commit() -> str:
    """The short name of HEAD. SystemExit where the code differs from it."""
    changed = subprocess.run(["git", "status", "--porcelain", "--", *CODE], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout
    if changed:
        raise SystemExit(f"commit first, the figures name a commit. Changed:\n{changed}")
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
