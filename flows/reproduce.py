"""`align reproduce NAME`: a paper's table in the built-in world, side by side with the paper's numbers.

conf/reproduce/NAME.yaml holds the runs, the rows and the claims, written before any run. A claim is `reproduced` where
the paired interval of the difference lies above 0, `not reproduced` where it lies below, else `undecided at this size`.
"""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flows import comparison, screen, sweep
from flows.comparison import Comparison
from flows.comparison_tables import Table, markdown_of
from flows.compose import CONF
from flows.settings import plain
from flows.sweep_record import Arm, Sweep
from pipeline import arms, files, store
from pipeline.arms import Judged, Rate
from pipeline.config import build
from pipeline.errors import UserError, nearest

SFT = "sft"  # what every answer is judged against: a win rate of one half
RULE = ("Rule, written before the runs: reproduced where the paired 95 % interval of the difference (prompts as units, "
        "seeds pooled) lies above 0, not reproduced where it lies below, else undecided at this size.")


@dataclass(frozen=True)
class Row:
    """A line of the paper's table: one arm in one iteration."""

    title: str
    arm: str
    iteration: int
    paper: str


@dataclass(frozen=True)
class Claim:
    """The paper says that `ours` is above `theirs`."""

    says: str
    ours: tuple[str, int]
    theirs: tuple[str, int]


@dataclass(frozen=True)
class _File:
    """conf/reproduce/NAME.yaml as it is written."""

    about: str
    paper: str  # what its numbers are
    words: list[str]  # of every run
    seeds: list[int]
    arms: dict[str, list[str]]
    rows: list[list[Any]]
    claims: list[list[Any]]


@dataclass(frozen=True)
class Paper:
    """A table to reproduce."""

    name: str
    about: str
    paper: str
    words: list[str]
    seeds: list[int]
    arms: dict[str, list[str]]
    rows: list[Row]
    claims: list[Claim]


def load(name: str, conf: Path = CONF) -> Paper:
    """The table of that name. Raises UserError where there is none, or its rows name an arm that it does not have."""
    known = sorted(path.stem for path in (conf / "reproduce").glob("*.yaml"))
    if name not in known:
        raise UserError(f"NAME: no table named {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    where = f"conf/reproduce/{name}.yaml"
    found: _File = build(_File, plain(OmegaConf.load(conf / "reproduce" / f"{name}.yaml"), resolve=True), where)
    rows = [Row(str(title), str(arm), int(i), str(paper)) for title, arm, i, paper in found.rows]
    claims = [Claim(str(says), (str(a), int(i)), (str(b), int(j))) for says, a, i, b, j in found.claims]
    named = [row.arm for row in rows] + [arm for claim in claims for arm, _ in (claim.ours, claim.theirs)]
    if wrong := [arm for arm in dict.fromkeys(named) if arm not in {*found.arms, SFT}]:
        raise UserError(*(f"{where}: no arm named {arm!r}{nearest(arm, found.arms)}" for arm in wrong))
    return Paper(name, found.about, found.paper, found.words, found.seeds, found.arms, rows, claims)


def reproduce(words: list[str], quick: bool, only_plan: bool, to: str | None) -> int:
    """Run what is missing and show the table. Exit code as of `align sweep`.

    words: NAME, then key=value for every run, jobs=N, workspace=FOLDER.
    """
    if not words or "=" in words[0]:
        raise UserError("NAME: missing, say which table: align reproduce NAME; align reproduce help lists them")
    paper, typed = load(words[0]), dict(word.partition("=")[::2] for word in words[1:])
    place = Path(typed.get("workspace", "workspace")).expanduser().resolve()
    added = [word for word in words[1:] if word.partition("=")[0] not in ("jobs", "workspace", "sweep", "seed")]
    seeds = paper.seeds[:1] if quick else paper.seeds
    command = " ".join(["align reproduce", paper.name, *(["--quick"] if quick else []), *added])
    made = Sweep(f"reproduce-{paper.name}", [*paper.words, *added], [
        Arm(run_name(paper, arm, seed), [*paper.words, *own, *added, f"seed={seed}"])
        for seed in seeds for arm, own in paper.arms.items()], command)

    def conclude(done: list[str]) -> None:
        found = decided(paper, place, done)
        for table in found:
            screen.say("")
            screen.table(table.title, table.headers, table.rows)
        screen.paragraph(RULE)
        written = section(paper, place, done, found, command)
        files.write_atomic(place / "reproduce" / f"{paper.name}.md", written)
        screen.say(f"written to {place / 'reproduce' / f'{paper.name}.md'}")
        if to is not None:
            into(Path(to).expanduser(), paper.name, written)
            screen.say(f"and to its section of {to}")

    return sweep.go(made, place, typed.get("jobs", "1"), only_plan, conclude)


def run_name(paper: Paper, arm: str, seed: int) -> str:
    return f"{paper.name}-{arm}-s{seed}"


def decided(paper: Paper, place: Path, done: Sequence[str]) -> list[Table]:
    """The paper's table beside ours, and the claims."""
    found = comparison.of_runs(place, done)
    judged = {arm: _judged(found, {run_name(paper, arm, seed) for seed in paper.seeds}) for arm in paper.arms}
    rows = [[row.title, str(row.iteration), row.paper, *_ours(row, judged)] for row in paper.rows]
    claims = [[claim.says, str(claim.ours[1]), *verdict(claim, judged)] for claim in paper.claims]
    return [Table(f"{paper.about}; win % against the SFT model, by {found.score}",
                  ["row", "iter", "paper", "ours", "95%", "seeds", "artifacts"], rows, ("row", "95%", "artifacts")),
            Table("claims", ["claim", "it.", "points", "95%", "verdict", "seeds"], claims, ("claim", "95%", "verdict"))]


def _judged(found: Comparison, names: set[str]) -> dict[int, list[Judged]]:
    return {i: several for arm in found.arms if names & set(arm.runs) for i, several in arm.judged.items()}


def _ours(row: Row, judged: dict[str, dict[int, list[Judged]]]) -> list[str]:
    if row.arm == SFT:
        return ["50.0", "by definition", "", ""]
    several = judged[row.arm].get(row.iteration)
    if not several:
        return ["", "not run", "", ""]
    rate = arms.rate(several)
    spread = f" ± {100 * rate.sd:.1f}" if len(several) > 1 else ""
    return [f"{100 * rate.mean:.1f}{spread}", f"{100 * rate.low:.1f} to {100 * rate.high:.1f}", str(len(several)),
            " ".join(f"{one.run}: evaluate/{one.key[:8]}" for one in several)]


def verdict(claim: Claim, judged: dict[str, dict[int, list[Judged]]]) -> list[str]:
    """Difference in points, its interval, what the rule says of it, and the seeds: those it has, or, undecided, those
    that would tell at least, were the difference the one seen and a further seed worth as much as new prompts.
    """
    found = difference(claim, judged)
    if isinstance(found, str):
        return ["", "", found, ""]
    said, seeds = {1: "reproduced", -1: "not reproduced", 0: "undecided at this size"}[found.clear], len(found.seeds)
    needed = str(seeds) if found.clear else "?"
    if not found.clear and found.mean:
        times = ((found.high - found.low) / 2 / found.mean) ** 2
        needed = f"{seeds}, takes {max(seeds + 1, round(times * seeds + 0.5))}"
    return [f"{100 * found.mean:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}", said, needed]


def difference(claim: Claim, judged: dict[str, dict[int, list[Judged]]]) -> Rate | str:
    """The claim's difference; against the SFT model that of the win rate from one half."""
    (a, i), (b, j) = claim.ours, claim.theirs
    if not judged[a].get(i) or (b != SFT and not judged[b].get(j)):
        return "not run"
    if b != SFT:
        return arms.difference(judged[a][i], judged[b][j])
    rate = arms.rate(judged[a][i])
    return Rate(rate.mean - 0.5, rate.low - 0.5, rate.high - 0.5, rate.prompts, rate.sd, rate.seeds,
                tuple(value - 0.5 for value in rate.by_seed))


def section(paper: Paper, place: Path, done: Sequence[str], tables: Sequence[Table], command: str) -> str:
    """The Markdown of the table, with the machine, the time and the command that made it."""
    keys = {(step["stage"], step["key"]) for run in done for step in comparison.load_run(place, run).steps
            if step.get("key")}
    manifests = [found.manifest for kind, key in sorted(keys) if (found := store.find(place, kind, key)) is not None]
    hours = sum(one["process_seconds"] for one in manifests) / 3600
    revisions = sorted({one["git"] for one in manifests if one["git"]})
    precision = sorted({str(comparison.load_run(place, run).config["precision"]) for run in done})
    return "\n".join([
        f"## {paper.name}", "", f"{paper.about}. The paper's numbers: {paper.paper}. Ours are against another "
        "opponent, by another judge, so only the order can be compared.", "", *map(markdown_of, tables), RULE, "",
        f"Made by `{command}`: {len(done)} runs, {len(manifests)} different steps, {hours:.1f} hours of them on "
        f"{_machine()}, {', '.join(precision)}, code {', '.join(revisions) or 'of no revision'}.", ""])


def _machine() -> str:
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    return f"{found[1] if found else platform.machine()}"


def into(path: Path, name: str, written: str) -> None:
    """Put a section in its place in the file, or at its end."""
    before = path.read_text() if path.exists() else "# Reproduction\n"
    marks = f"<!-- {name}: written by align reproduce -->", f"<!-- end of {name} -->"
    body = f"{marks[0]}\n{written}{marks[1]}\n"
    there = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}\n", re.DOTALL)
    after = there.sub(lambda _: body, before) if there.search(before) else f"{before.rstrip()}\n\n{body}"
    files.write_atomic(path, after)
