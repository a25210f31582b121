"""`align data show` and `align data check`: a look at what a run will learn from, before it learns. `align data build`
makes it (data_build.py).

Both import and tokenise the data as the run would (the same artifacts, so the run finds them done) and train nothing.
"""

import importlib
import itertools
import statistics
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import data_build, data_read, screen
from flows.failures import InputDamaged, StepFailed
from flows.prepare import prepare
from flows.step import Launch, ensure
from pipeline import plan, runs, store
from pipeline.errors import UserError
from pipeline.records import Group
from pipeline.statistics import normalised_edit_distance

SHOWN = "pipeline.lm.shown"  # imports transformers
WHOLE = ["recipe=sft", "data.require=[]"]  # where no recipe is named: every split that the data can fill
RUN = "data"  # whose folder the logs are in
_STAGES = ("import_data", "init_model", "tokenize")
_LETTERS = 200  # of each text, for its script
_MOST = 1200  # characters of a text of an example


def data(action: str, words: list[str], rows: int) -> int:
    """Show the data of the run that `words` describe, or check every row against the token contract."""
    if action == "build":
        return data_build.build(words)
    try:
        made, notes = _made(words)
    except (StepFailed, InputDamaged) as error:
        screen.problems([str(error)])
        return 1
    for line in notes:
        screen.paragraph(line)
    tokens, folder = made["tokenize"], made["tokenize"].path
    counts, dropped = tokens.manifest["counts"], tokens.manifest["dropped"]
    held = [split for split in data_read.SPLITS if counts.get(split)]
    if action == "show":
        found = {split: _measured(folder / split) for split in held}
        screen.table("tokens: median (and the length that 5 % exceed)",
                     ["split", "groups", "prompt", "answer", "longest", "turns", "same prompt"],
                     [[split, *one.cells()] for split, one in found.items()])
        if dropped:
            screen.paragraph("left out or cut as tokens: " + "; ".join(
                f"{split}: {lost}" for split in data_read.SPLITS if (lost := left_out(dropped, split)) != "-")
                + " (model.max_prompt_tokens, model.max_completion_tokens)")
        for split in held:
            for line in found[split].sentences(split):
                screen.paragraph(line)
        for split in held if rows else []:
            _examples(split, list(itertools.islice(_groups(folder / split), rows)), made["init_model"].path / "model")
        return 0
    imported = made["import_data"].manifest["counts"]
    screen.table("token contract: BOS, stop ids, boundaries", ["split", "rows", "kept", "left out or cut"],
                 [[split, str(imported[split]), str(counts[split]), left_out(dropped, split)]
                  for split in data_read.SPLITS if split in counts])
    noted = {key: number for key, number in counts.items() if key.partition("_")[0] in data_read.SPLITS
             and "_tokens" not in key and "_" in key and number}
    for key, number in noted.items():
        screen.say(f"{key}: {number}")
    screen.say("every kept row holds the token contract; nothing was trained")
    return 0


def _made(words: list[str]) -> tuple[dict[str, store.Artifact], list[str]]:
    """The artifacts of the data steps by stage, made where they are not there, and what was read."""
    given = {word.partition("=")[0] for word in words}
    prepared = prepare([*([] if "recipe" in given else WHOLE), *words])
    runs.folder(prepared.workspace, RUN).mkdir(parents=True, exist_ok=True)
    launch, done = Launch(prepared.workspace, RUN, 20.0, 0.0), dict[str, store.Artifact]()
    made = dict[str, store.Artifact]()
    for step in prepared.steps:
        if step.stage not in _STAGES:
            continue
        item = plan.look_up(prepared.workspace, step, done)
        if not item.cached:
            screen.say(f"  {step.name} ...")
        done[step.name], _ = ensure(launch, item, done, {}, lambda name, state: None)
        made.setdefault(step.stage, done[step.name])
        if step.stage == "tokenize":
            break
    if len(made) < len(_STAGES):
        raise UserError("recipe: has no steps that import and tokenise data; take recipe=pco")
    return made, data_read.notes(prepared.workspace, plan.look_up_all(prepared.workspace, prepared.steps)[:1])


def _groups(table: Path) -> Iterator[Group]:
    tables: Any = importlib.import_module("pipeline.tables")  # pyarrow
    return iter(tables.read(table))


class Measures:
    """What is measured of one split's groups."""

    def __init__(self) -> None:
        self.prompt, self.answer, self.turns, self.gaps = list[int](), list[int](), list[int](), list[int]()
        self.scores, self.margins, self.distances = list[float](), list[float](), list[float]()
        self.seen, self.scripts = Counter[int](), Counter[str]()
        self.lists = self.labels = self.desirable = 0

    def add(self, group: Group) -> None:
        self.prompt.append(len(group.prompt_ids))
        self.turns.append(len(group.messages))
        self.answer += [len(c.token_ids) for c in group.completions]
        self.seen[hash(tuple(m.content for m in group.messages))] += 1
        for text in (group.messages[-1].content, *(c.text for c in group.completions)):
            self.scripts.update({_script(text)})
        self.lists += len(group.completions) > 2
        self.labels += group.label is not None
        self.desirable += group.label is True
        if len(group.completions) > 1:
            chosen, *others = group.completions
            self.gaps += [len(chosen.token_ids) - len(one.token_ids) for one in others]
            self.distances += [normalised_edit_distance(chosen.token_ids, one.token_ids) for one in others]
            if "given" in chosen.scores:
                self.scores.append(chosen.scores["given"])
                self.margins += [chosen.scores["given"] - one.scores["given"] for one in others]

    def cells(self) -> list[str]:
        again = sum(number - 1 for number in self.seen.values())
        longest = max(p + a for p, a in itertools.zip_longest(self.prompt, self.answer[:len(self.prompt)], fillvalue=0))
        return [str(len(self.prompt)), _spread(self.prompt), _spread(self.answer), str(longest),
                f"{statistics.fmean(self.turns):.1f}", str(again)]

    def sentences(self, split: str) -> Iterator[str]:
        if self.gaps:
            longer = sum(gap > 0 for gap in self.gaps) / len(self.gaps)
            equal = sum(gap == 0 for gap in self.gaps) / len(self.gaps)
            yield (f"{split}: chosen minus rejected {statistics.fmean(self.gaps):+.1f} tokens on average; longer in "
                   f"{longer:.0%} of {len(self.gaps)} comparisons, as long in {equal:.0%}; {self.lists} lists of more "
                   "than two answers")
            distance = f"{statistics.fmean(self.distances):.1%} of the tokens"
            yield (f"{split}: normalised edit distance of chosen and rejected {distance}; where it is small, DPO can "
                   "make the chosen ones less likely, too (objective=dpop)")
        if self.margins:
            tied = sum(margin == 0 for margin in self.margins)
            yield (f"{split}: scores of the chosen {min(self.scores) + 0:g} to {max(self.scores) + 0:g}; above the "
                   f"rejected by {statistics.fmean(self.margins):.3g} on average, {tied} ties, "
                   f"{sum(margin < 0 for margin in self.margins)} reversed")
        if self.labels:
            yield f"{split}: {self.labels} single answers with a label, {self.desirable} desirable"
        total = sum(self.scripts.values())
        yield f"{split}: scripts: " + ", ".join(f"{name} {n / total:.1%}" for name, n in self.scripts.most_common(6))


def _measured(table: Path) -> Measures:
    found = Measures()
    for group in _groups(table):
        found.add(group)
    return found


def _spread(lengths: list[int]) -> str:
    """Median and the length that 5 % exceed."""
    if not lengths:
        return "-"
    ordered = sorted(lengths)
    return f"{ordered[len(ordered) // 2]} ({ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]})"


def _script(text: str) -> str:
    """The script of most of a text's first letters: "latin", "cyrillic", "cjk"; "none" without letters."""
    names = Counter(unicodedata.name(one, "?").partition(" ")[0].lower() for one in text[:_LETTERS] if one.isalpha())
    return names.most_common(1)[0][0] if names else "none"


def left_out(dropped: dict[str, int], split: str) -> str:
    """"truncated 3, long_prompt 1" of a split's rows, "-" where none was left out or cut."""
    found = [f"{reason.removeprefix(f'{split}_')} {number}" for reason, number in dropped.items()
             if reason.startswith(f"{split}_")]
    return ", ".join(found) or "-"


def _examples(split: str, groups: list[Group], model: Path) -> None:
    shown: Any = importlib.import_module(SHOWN)
    for number, (group, (prompt, answers)) in enumerate(zip(groups, shown.rendered(model, groups), strict=True), 1):
        screen.say(f"\n{split} {number} of {len(groups)}: id {group.id}, {len(group.prompt_ids)} tokens of prompt"
                   + (f", label {group.label}" if group.label is not None else ""))
        _indented(prompt)
        names = ["answer"] * len(answers) if len(answers) < 2 else ["chosen", *["rejected"] * (len(answers) - 1)]
        for name, text, completion in zip(names, answers, group.completions, strict=True):
            given = f", score {completion.scores['given'] + 0:g}" if "given" in completion.scores else ""
            screen.say(f"  {name} ({len(completion.token_ids)} tokens{given}):")
            _indented(text)


def _indented(text: str) -> None:
    """A text at 80 columns, special tokens visible, what would act on a terminal shown as it is written."""
    short = text if len(text) <= _MOST else f"{text[:_MOST // 2]} ... {len(text) - _MOST} more characters ... " \
                                            f"{text[-_MOST // 2:]}"
    for line in screen.harmless(short).split("\n"):
        for part in textwrap.wrap(line, 76, replace_whitespace=False, drop_whitespace=False) or [""]:
            screen.say(f"    {part}")
