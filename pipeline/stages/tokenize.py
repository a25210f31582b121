"""Ids, made once where text enters: prompt ids with the generation prompt, completion ids with the stop id.

Output: the tables of `data` (`sft/ pref/ unlabeled/ eval/`) with ids, part by part: a killed stage goes on behind its
last whole one. Rows beyond the length limits are dropped, cut
or refused as the settings say, and every one is accounted for by split and reason.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import files
from pipeline.config import setting
from pipeline.engines.engine import model_facts
from pipeline.errors import UserError
from pipeline.formats.splits import SPLITS
from pipeline.lm import rationales
from pipeline.lm.template import Encoder, Limits, limit
from pipeline.records import Group
from pipeline.stage import Context, Kinds, Stage, told

_BATCH = 2048  # groups tokenised at once


@dataclass(frozen=True)
class Settings:
    """Limits in tokens. A cut completion has finish_reason "length" and no stop id; cut pairs lose what tells the two
    sides apart, so pairs are dropped instead.
    """

    max_prompt_tokens: int = setting(512, low=1)  # longer prompts: overlong_prompts
    max_completion_tokens: int = setting(512, low=1)  # longer ones: overlong_sft, overlong_pref
    overlong_prompts: str = setting("drop", choices=("drop", "error"))  # error: the first one ends the stage
    overlong_sft: str = setting("truncate", choices=("drop", "truncate", "error"))  # answers to imitate
    overlong_pref: str = setting("drop", choices=("drop", "truncate", "error"))  # pairs with a longer answer
    # Where the chat template refuses system turns or leaves them out: in front of the first user's text, or no such row
    system_turns: str = setting("fold", choices=("fold", "drop"), added=True)
    rationale_order: str = setting("random", choices=rationales.ORDERS, added=True)  # of the answers in its question
    # a rationale with the question it answers: a longer one is left out and its pair stays; null: the model's context
    max_rationale_tokens: int | None = setting(None, low=1, added=True)


def kinds(settings: Settings, given: Kinds) -> Kinds:
    """What the data set brings is known once it is read."""
    return Kinds(frozenset({"data"}))


def run(context: Context) -> None:
    from pipeline import tables
    from pipeline.lm import folders

    settings, model, data = context.settings, context.one("model"), context.one("data")
    encoder = folders.policy_encoder(model)
    _check_context(settings, model)
    parts = [(split, part) for split in SPLITS for part in tables.parts(data / split)]
    whole, rows, total = dict[str, _Part](), Counter[str](), sum(tables.rows(part) for _, part in parts)
    for split, part in parts:
        policy = settings.overlong_sft if split == "sft" else settings.overlong_pref
        limits = Limits(settings.max_prompt_tokens, settings.max_completion_tokens, settings.overlong_prompts, policy)
        made = _encoded(context, part, split, encoder, limits)
        whole[split] = whole.get(split, _Part()) + made
        rows[split] += tables.rows(part)
        context.report.progress(rows.total(), total, "groups")
    for split, found in whole.items():
        for reason, number in found.dropped.items():
            context.report.drop(f"{split}_{reason}", number)
        named = {f"{split}_{name}": number for name, number in found.noted.items() if number}
        context.report.count(**{f"{split}_tokens": found.tokens}, **named, **{split: found.kept})
        if found.kept == 0 and rows[split]:
            raise UserError(f"tokenize: no group of {split} is left; dropped {context.report.dropped}; raise "
                            "max_prompt_tokens or max_completion_tokens")


@dataclass
class _Part:
    """What is counted of some groups of a split."""

    kept: int = 0
    tokens: int = 0
    noted: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "_Part") -> "_Part":
        return _Part(self.kept + other.kept, self.tokens + other.tokens, self.noted + other.noted,
                     self.dropped + other.dropped)


def _encoded(context: Context, part: Path, split: str, encoder: Encoder, limits: Limits) -> _Part:
    """Encode one part of a table, unless a killed process has."""
    from pipeline import tables

    target = context.out / split / part.name
    mark = context.work / "encoded" / f"{split}-{part.stem}.json"
    if target.exists() and (known := files.read_sealed(mark)) is not None:
        return _Part(known["kept"], known["tokens"], Counter(known["noted"]), Counter(known["dropped"]))
    counted = _Part()
    tables.put_groups(target, _groups(context, part, split, encoder, limits, counted))
    files.write_sealed(mark, vars(counted))
    return counted


def _groups(context: Context, part: Path, split: str, encoder: Encoder, limits: Limits, counted: _Part
            ) -> Iterator[Group]:
    from pipeline import tables

    room = context.settings.max_rationale_tokens or model_facts(context.one("model")).max_position
    for batch in tables.batches(_usable(context, tables.read_part(part), encoder, counted), _BATCH):
        for group in rationales.encoded(batch, encoder, context.settings.rationale_order):
            counted.noted.update(f"unread_{name}" for name in encoder.rendering.unread(group))
            kept, reasons = limit(group, limits)
            counted.dropped.update(reasons)
            if kept is not None:
                kept = _explained(kept, room, counted)
                counted.kept += 1
                counted.tokens += len(kept.prompt_ids) + sum(len(c.token_ids) for c in kept.completions)
                yield kept


def _explained(group: Group, room: int, counted: _Part) -> Group:
    """The group, without its rationale where that is too long; either is counted."""
    if group.rationale is None:
        return group
    if len(group.rationale.prompt_ids) + len(group.rationale.token_ids) > room:
        counted.dropped["long_rationale"] += 1
        return replace(group, rationale=None)
    counted.noted["rationales"] += 1
    return group


def _usable(context: Context, groups: Iterable[Group], encoder: Encoder, counted: _Part) -> Iterator[Group]:
    """The groups, without those whose system turn the template refuses where the settings say so, and those with a text
    that the tokenizer cannot write; each is counted."""
    for group in groups:
        if encoder.rendering.unwritable(group):
            counted.dropped["special_text"] += 1
            continue
        refused = encoder.rendering.refuses(group)
        if refused and context.settings.system_turns == "drop":
            counted.dropped["system_turn"] += 1
            continue
        counted.noted["system_folded"] += refused
        yield group


def _check_context(settings: Settings, model: Path) -> None:
    room, wanted = model_facts(model).max_position, settings.max_prompt_tokens + settings.max_completion_tokens
    if wanted > room:
        raise UserError(f"tokenize: max_prompt_tokens + max_completion_tokens = {wanted}, but the model's context is "
                        f"{room} tokens; lower them or take "
                        "a model with a longer context")


STAGE = Stage(Settings, run, version=1, inputs={"data": "one", "model": "one"}, seeded=False, kinds=kinds,
              says=told("sft {sft:,.0f}", "pref {pref:,.0f}", "unlabeled {unlabeled:,.0f}", "eval {eval:,.0f}"))
