"""`align reproduce NAME`: a paper's table in the built-in world, side by side with the paper's numbers.

conf/reproduce/NAME.yaml holds the runs, the rows and the claims, written before any run. A claim is `reproduced` where
the paired interval of the difference lies above 0, `not reproduced` where it lies below, else `undecided at this size`.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flows import comparison, measures, screen, sweep
from flows.comparison import Comparison
from flows.comparison_tables import Table, markdown_of
from flows.compose import CONF
from flows.measures import SFT, Measure
from flows.settings import plain
from flows.sweep_record import Arm, Sweep
from pipeline import arms, files, store
from pipeline.arms import Judged, Rate
from pipeline.config import build
from pipeline.errors import UserError, nearest

RULE = ("Rule, written before the runs: reproduced where the paired 95 % interval of the difference (prompts as units, "
        "seeds pooled) lies above 0, not reproduced where it lies below, else undecided at this size.")

Found = Mapping[str, Mapping[int, Sequence[Judged]]]  # arm -> iteration -> of each seed


@dataclass(frozen=True)
class Row:
    """A line of the paper's table: one arm in one iteration."""

    title: str
    arm: str
    iteration: int
    paper: str
    measure: str = ""  # the name of one; "": the win rate


@dataclass(frozen=True)
class Claim:
    """The paper says that `ours` is above `theirs`; "sft" is the model that answers are judged against."""

    says: str
    ours: tuple[str, int]
    theirs: tuple[str, int]
    measure: str = ""  # as of a row


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
    measures: dict[str, Measure] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # what must be there first, with the command that makes it


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
    measures: dict[str, Measure]
    files: dict[str, str]


def load(name: str, conf: Path = CONF) -> Paper:
    """The table of that name. Raises UserError where there is none, or its rows name an arm that it does not have."""
    known = sorted(path.stem for path in (conf / "reproduce").glob("*.yaml"))
    if name not in known:
        raise UserError(f"NAME: no table named {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    where = f"conf/reproduce/{name}.yaml"
    found: _File = build(_File, plain(OmegaConf.load(conf / "reproduce" / f"{name}.yaml"), resolve=True), where)
    rows = [Row(str(title), str(arm), int(i), str(paper), *more) for title, arm, i, paper, *more in found.rows]
    claims = [Claim(str(says), (str(a), int(i)), (str(b), int(j)), *more) for says, a, i, b, j, *more in found.claims]
    named = [row.arm for row in rows] + [arm for claim in claims for arm, _ in (claim.ours, claim.theirs)]
    used = {"arm": (named, {*found.arms, SFT}),
            "measure": ([row.measure for row in rows] + [one.measure for one in claims], {*found.measures, ""})}
    if wrong := [f"{where}: no {kind} named {one!r}{nearest(one, known)}" for kind, (ones, known) in used.items()
                 for one in dict.fromkeys(ones) if one not in known]:
        raise UserError(*wrong)
    return Paper(name, found.about, found.paper, found.words, found.seeds, found.arms, rows, claims, found.measures,
                 found.files)


def reproduce(words: list[str], quick: bool, only_plan: bool, to: str | None) -> int:
    """Run what is missing and show the table. Exit code as of `align sweep`.

    words: NAME, then key=value for every run, jobs=N, workspace=FOLDER.
    """
    if not words or "=" in words[0]:
        raise UserError("NAME: missing, say which table: align reproduce NAME; align reproduce help lists them")
    paper, typed = load(words[0]), dict(word.partition("=")[::2] for word in words[1:])
    if missing := [f"{path}: not there, make it first: {how}" for path, how in paper.files.items()
                   if not Path(path).is_file()]:
        raise UserError(*missing)
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
            page = Path(to).expanduser()
            short = f"{paper.name}, claims alone"
            if _marks(short)[0] in (page.read_text() if page.exists() else ""):
                into(page, short, f"{markdown_of(found[-1])}\n{RULE} Made by `{command}` ({_machine()}).\n")
            else:
                into(page, paper.name, written)
            screen.say(f"and to its section of {to}")

    return sweep.go(made, place, typed.get("jobs", "1"), only_plan, conclude)


def run_name(paper: Paper, arm: str, seed: int) -> str:
    return f"{paper.name}-{arm}-s{seed}"


def decided(paper: Paper, place: Path, done: Sequence[str]) -> list[Table]:
    """The paper's table beside ours, and the claims."""
    found = comparison.of_runs(place, done)
    named = {arm: [name for seed in paper.seeds if (name := run_name(paper, arm, seed)) in done] for arm in paper.arms}
    judged: dict[str, Found] = {name: measures.of_arms(place, named, one) for name, one in paper.measures.items()}
    judged[""] = {arm: _judged(found, set(names)) for arm, names in named.items()}
    made = []
    for measure in dict.fromkeys(row.measure for row in paper.rows):
        what = paper.measures[measure].says if measure else f"win % against the SFT model, by {found.score}"
        made.append(Table(f"{paper.about}; {what}", ["row", "iter", "paper", "ours", "95%", "seeds", "artifacts"],
                          [[row.title, str(row.iteration), row.paper, *_ours(row, judged[measure], paper)]
                           for row in paper.rows if row.measure == measure], ("row", "95%", "artifacts")))
    claims = [[one.says, str(max(one.ours[1], one.theirs[1])), *verdict(one, judged[one.measure])]
              for one in paper.claims]
    return [*made, Table("claims", ["claim", "it.", "difference", "95%", "verdict", "seeds"], claims,
                         ("claim", "95%", "verdict"))]


def _judged(found: Comparison, names: set[str]) -> dict[int, list[Judged]]:
    return {i: several for arm in found.arms if names & set(arm.runs) for i, several in arm.judged.items()}


def _ours(row: Row, judged: Found, paper: Paper) -> list[str]:
    if row.arm == SFT and (not row.measure or paper.measures[row.measure].start is None):
        return ["0" if row.measure else "50.0", "by definition", "", ""]
    several = judged[row.arm].get(row.iteration)
    if not several:
        return ["", "not run", "", ""]
    rate = arms.rate(several)
    origins = [(one.run, one.origins["value"] if row.measure else f"evaluate/{one.key[:8]}")
               for one in several if one.key]
    spread = f" ± {_number(rate.sd, row)}" if len(several) > 1 else ""
    return [f"{_number(rate.mean, row)}{spread}", f"{_number(rate.low, row)} to {_number(rate.high, row)}",
            str(len(several)), " ".join(f"{run}: {origin}" for run, origin in origins)]


def _number(value: float, of: Row | Claim, sign: str = "") -> str:
    """A win rate in points, a measure in its unit."""
    return f"{value:{sign}.3g}" if of.measure else f"{100 * value:{sign}.1f}"


def verdict(claim: Claim, judged: Found) -> list[str]:
    """Difference (of win rates in points), its interval, what the rule says of it, and the seeds: those it has, or,
    undecided, those that would tell at least, were the difference the one seen and a further seed worth as much as new
    prompts.
    """
    found = difference(claim, judged)
    if isinstance(found, str):
        return ["", "", found, ""]
    said, seeds = {1: "reproduced", -1: "not reproduced", 0: "undecided at this size"}[found.clear], len(found.seeds)
    needed = str(seeds) if found.clear else "?"
    if not found.clear and found.mean:
        times = ((found.high - found.low) / 2 / found.mean) ** 2
        needed = f"{seeds}, takes {max(seeds + 1, round(times * seeds + 0.5))}"
    mean, low, high = (_number(value, claim, "+") for value in (found.mean, found.low, found.high))
    return [mean, f"{low} to {high}", said, needed]


def difference(claim: Claim, judged: Found) -> Rate | str:
    """The claim's difference; of win rates against the SFT model that from one half."""
    (a, i), (b, j) = claim.ours, claim.theirs
    half = {SFT} if not claim.measure else set[str]()
    if any(arm not in half and not judged[arm].get(at) for arm, at in (claim.ours, claim.theirs)):
        return "not run"
    if not half & {a, b}:
        return arms.difference(judged[a][i], judged[b][j])
    rate, sign = (arms.rate(judged[a][i]), 1) if b == SFT else (arms.rate(judged[b][j]), -1)
    low, high = sorted(sign * (end - 0.5) for end in (rate.low, rate.high))
    return Rate(sign * (rate.mean - 0.5), low, high, rate.prompts, rate.sd, rate.seeds,
                tuple(sign * (value - 0.5) for value in rate.by_seed))


def section(paper: Paper, place: Path, done: Sequence[str], tables: Sequence[Table], command: str) -> str:
    """The Markdown of the table, with the machine, the time and the command that made it."""
    keys = {(step["stage"], step["key"]) for run in done for step in comparison.load_run(place, run).steps
            if step.get("key")}
    manifests = [found.manifest for kind, key in sorted(keys) if (found := store.find(place, kind, key)) is not None]
    hours = sum(one["process_seconds"] for one in manifests) / 3600
    revisions = sorted({one["git"] for one in manifests if one["git"]})
    precision = sorted({str(comparison.load_run(place, run).config["precision"]) for run in done})
    judge = ("" if all(row.measure for row in paper.rows) else
             " Ours are against another opponent, by another judge, so only the order can be compared.")
    return "\n".join([
        f"## {paper.name}", "", f"{paper.about}. The paper's numbers: {paper.paper}.{judge}", "",
        *map(markdown_of, tables), RULE, "",
        f"Made by `{command}`: {len(done)} runs, {len(manifests)} different steps, {hours:.1f} hours of them on "
        f"{_machine()}, {', '.join(precision)}, code {', '.join(revisions) or 'of no revision'}.", ""])


def _machine() -> str:
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    return f"{found[1] if found else platform.machine()}"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by align reproduce -->", f"<!-- end of {name} -->"


def into(path: Path, name: str, written: str) -> None:
    """Put a section in its place in the file, or at its end."""
    before = path.read_text() if path.exists() else "# Reproduction\n"
    marks = _marks(name)
    body = f"{marks[0]}\n{written}{marks[1]}\n"
    there = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}\n", re.DOTALL)
    after = there.sub(lambda _: body, before) if there.search(before) else f"{before.rstrip()}\n\n{body}"
    files.write_atomic(path, after)
