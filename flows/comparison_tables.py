"""A comparison as tables: for the terminal, Markdown, LaTeX and the page, and as a CSV with every number's origin."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import screen
from pipeline import markdown, statistics
from pipeline.arms import CONFIDENCE, Judged, Rate
from pipeline.errors import UserError
from pipeline.markdown import LEFT, RIGHT
from pipeline.report import NONE

if TYPE_CHECKING:
    from flows.comparison import Comparison

FORMS = (".csv", ".md", ".tex")
_LEVEL = f"{CONFIDENCE:.0%}"
# Header -> a number of a Judged, and how it is written.
_MORE = {"LC %": ("length_controlled", 100, ".1f"), "learned %": ("learned", 100, ".1f"),
         "length": ("length", 1, ".1f"), "KL": ("kl", 1, ".2f"), "cut %": ("truncated", 100, ".1f")}


@dataclass(frozen=True)
class Table:
    """A title, headers and cells, all text. left: the headers of columns of words."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    left: tuple[str, ...] = ()


def tables(found: Comparison) -> list[Table]:
    """What is shown: the arms, their rates, the differences; those without a row are left out."""
    keys = list(dict.fromkeys(key for arm in found.arms for key in arm.settings))
    names = Table("settings that differ", ["arm", *keys, "runs"], [
        [arm.name, *(arm.settings[key] for key in keys), str(len(arm.runs))] for arm in found.arms], ("arm", *keys))
    rates = Table(f"win rate by {found.score}: mean ± deviation over seeds, {_LEVEL} over prompts",
                  ["arm", "iter", "seeds", "win %", _LEVEL, *_MORE], [
        [arm.name, str(i), str(len(rate.seeds)), _spread(100 * rate.mean, 100 * rate.sd, len(rate.seeds), ".1f"),
         f"{100 * rate.low:.1f} to {100 * rate.high:.1f}", *(_number(judged, *more) for more in _MORE.values())]
        for arm in found.arms for i, judged in arm.judged.items() for rate in [found.rates[arm.name, i]]],
        ("arm", _LEVEL))
    tests = Table("difference in win rate on the same prompts, points",
                  ["difference", "points", _LEVEL, "p", "Holm", "seeds above 0", "prompts"], [
        _difference(f"{one.ours[0]}{one.ours[1]} - {one.theirs[0]}{one.theirs[1]}", one.found)
        for one in found.differences], ("difference", _LEVEL, "seeds above 0"))
    return [table for table in (names, rates, tests) if table.rows and len(table.headers) > 2]


def _difference(what: str, found: Rate | str) -> list[str]:
    if isinstance(found, str):
        return [what, "", found, "", "", "", ""]
    above = sum(value > 0 for value in found.by_seed)
    return [what, f"{100 * found.mean:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
            f"{found.p_value:.3f}", f"{found.adjusted:.3f}", f"{above} of {len(found.by_seed)}", str(found.prompts)]


def _number(judged: Sequence[Judged], name: str, scale: float, form: str) -> str:
    values = [scale * one.numbers[name] for one in judged if name in one.numbers]
    return _spread(*statistics.spread(values), len(values), form) if values else NONE


def _spread(mean: float, sd: float, seeds: int, form: str) -> str:
    """77.1 ± 1.2; the deviation of one seed is none."""
    return f"{mean:{form}}" + (f" ± {sd:{form}}" if seeds > 1 else "")


def show(found: Comparison) -> None:
    for i, table in enumerate(tables(found)):
        if i:
            screen.say("")
        screen.table(table.title, table.headers, table.rows)


def written(found: Comparison, form: str) -> str:
    """As a file of that ending. Raises UserError for one that is not in FORMS."""
    if form not in FORMS:
        raise UserError(f"--to: {form or 'no ending'!r} is none of {', '.join(FORMS)}")
    if form == ".csv":
        return _csv(found)
    return "\n".join(map(markdown_of if form == ".md" else _latex, tables(found)))


def markdown_of(table: Table) -> str:
    sides = {header: LEFT if header in table.left else RIGHT for header in table.headers}
    return f"{table.title[0].upper()}{table.title[1:]}:\n\n{markdown.table(sides, table.rows)}\n"


def _latex(table: Table) -> str:
    """With \\usepackage{booktabs}."""
    sides = "".join("l" if header in table.left else "r" for header in table.headers)
    head, *rows = (" & ".join(map(_escaped, row)) + r" \\" for row in [table.headers, *table.rows])
    return "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{_escaped(table.title)}}}",
                      rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule",
                      r"\end{tabular}", r"\end{table}", ""])


def _escaped(text: str) -> str:
    plain = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return plain.replace("±", r"$\pm$").replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")


def _csv(found: Comparison) -> str:
    """A line for each number: of an arm (win_rate, length ...) or of two (difference), with runs and artifacts."""
    keys = list(dict.fromkeys(key for arm in found.arms for key in arm.settings))
    head = ["number", "arm", "iteration", "against_arm", "against_iteration", "mean", "sd_over_seeds", "low", "high",
            "p_value", "p_holm", "seeds", "prompts", "runs", "artifacts", *keys]
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(head)
    for arm in found.arms:
        own = [arm.settings[key] for key in keys]
        for i, judged in arm.judged.items():
            made, names = found.rates[arm.name, i], " ".join(one.run for one in judged)
            out.writerow(["win_rate", arm.name, i, "", "", made.mean, made.sd, made.low, made.high, "", "",
                          ", ".join(made.seeds), made.prompts, names,
                          " ".join(f"evaluate/{one.key}" for one in judged), *own])
            for name, *_ in _MORE.values():
                having = [one for one in judged if name in one.numbers]
                if having:
                    mean, sd = statistics.spread([one.numbers[name] for one in having])
                    out.writerow([name, arm.name, i, "", "", mean, sd, "", "", "", "",
                                  ", ".join(one.seed for one in having), "", " ".join(one.run for one in having),
                                  " ".join(one.origins[name] for one in having), *own])
    for one in found.differences:
        if isinstance(rate := one.found, Rate):
            out.writerow(["difference", *one.ours, *one.theirs, rate.mean, rate.sd, rate.low, rate.high, rate.p_value,
                          rate.adjusted, ", ".join(rate.seeds), rate.prompts, "", "", *[""] * len(keys)])
    return file.getvalue()
