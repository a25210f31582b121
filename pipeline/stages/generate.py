"""Sample completions for every prompt with a policy, shard by shard.

Ids in, ids out: the prompt's ids go to the engine as they are and the sampled ids come back; nothing is tokenised
here. Every sample has a seed of its own, from (run seed, iteration, prompt id, temperature, sample), so samples are
the same whatever the shards, the batch or the order. A finished part is never sampled again after a crash.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.build import load_part, part_problems, setting
from pipeline.engines.engine import Answer, Engine, Request, model_facts
from pipeline.records import LENGTH, Completion, Group, UserError
from pipeline.stage import Context, derive_seed

VERSION = 1
INPUTS = {"model": "one", "prompts": "one"}
USES_ENGINE = True  # a run keeps one engine service alive for the steps that say so
SEEDED = True
_SHOWN = 10  # problems of one kind shown at once


@dataclass(frozen=True)
class Settings:
    """Xu et al. 2023 sample 4 completions at temperature 0.7; OnMC-PO 2 at each of three temperatures."""

    engine: str  # what samples, by its module: two engines draw different samples from the same seeds
    dtype: str  # the number format it computes in
    n: int = setting(4, low=1)  # samples per prompt *at each temperature*: K = n x number of temperatures
    temperatures: tuple[float, ...] = setting((0.7,), low=0.0)  # 0: greedy
    top_p: float = setting(1.0, above=0.0, high=1.0)
    top_k: int = setting(0, low=0)  # 0: off
    max_tokens: int = setting(300, low=1)  # per completion, its stop token included
    truncated: str = setting("keep", choices=("keep", "drop"))  # completions cut at max_tokens
    logprobs: bool = False  # keep the log-prob of every sampled token
    context_length: int | None = None  # the engine's, if less than the model's: longer prompts drop out
    engine_arguments: tuple[str, ...] = ()  # more arguments of the engine: they may change what it samples

    def check(self) -> list[tuple[str, str]]:
        if not self.temperatures:
            return [("temperatures", "is empty, expected at least one number")]
        if len(set(self.temperatures)) < len(self.temperatures):
            return [("temperatures", f"{list(self.temperatures)} names one twice; raise n for more samples")]
        return []


@dataclass(frozen=True)
class Runtime:
    engine: dict[str, Any]  # the engine's module and its settings
    part_size: int = setting(256, low=1)  # prompts per part, the unit of resuming

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.engine, "engine")


@dataclass
class Tally:
    """What became of one part's prompts. Kept beside the table, so that a resumed stage still knows all of it."""

    prompts: int = 0
    completions: int = 0  # sampled, dropped ones included
    tokens: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def drop(self, reason: str, number: int) -> None:
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + number

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.prompts + other.prompts,
            self.completions + other.completions,
            self.tokens + other.tokens,
            self.truncated + other.truncated,
            dict(Counter(self.dropped) + Counter(other.dropped)),
            self.seconds + other.seconds,
        )


def run(context: Context) -> None:
    """Writes `groups/`: the prompts in order with their K samples, K = 0 where the prompt does not fit the context.

    Raises UserError for prompts without ids, with ids outside the vocabulary, or with an id used twice.
    """
    from pipeline import tables

    model, prompts, out = context.one("model"), context.one("prompts"), context.out / "groups"
    check_prompts(prompts, model, context.settings)
    for torn in out.glob(".*.tmp"):
        torn.unlink()
    total = tables.count(prompts)
    if total == 0:
        write_tally(context.work, 0, Tally())
        tables.write_part(out, 0, [])
    elif tables.count(out) < total:
        part = load_part(context.runtime.engine, "engine")
        began = time.monotonic()
        with part.module.open_engine(model, part.settings, context.work / "engine.log") as engine:
            context.report.count(seconds_to_open_engine=round(time.monotonic() - began, 2))
            _sample_parts(engine, prompts, out, context)
            context.report.count(**engine.facts)
    _report(sum((_tally(context.work, index) for index in range(len(tables.parts(out)))), Tally()), context)


def check_prompts(prompts: Path, model: Path, settings: Settings) -> None:
    """Everything that can be wrong with the prompts, before anything is sampled. Raises UserError."""
    from pipeline import tables

    facts = model_facts(model)
    vocab_size, window = facts.vocab_size, min(facts.max_position, settings.context_length or facts.max_position)
    shortest = window
    seen: set[str] = set()
    wrong: dict[str, list[str]] = {"twice": [], "bare": [], "foreign": []}
    for group in tables.read(prompts):
        if group.id in seen:
            wrong["twice"].append(group.id)
        elif not group.prompt_ids:
            wrong["bare"].append(group.id)
        elif not 0 <= min(group.prompt_ids) <= max(group.prompt_ids) < vocab_size:
            wrong["foreign"].append(group.id)
        shortest = min(shortest, len(group.prompt_ids))
        seen.add(group.id)
    texts = {
        "twice": "an id that an earlier prompt has too (their samples would be the same); make the ids unique",
        "bare": "no prompt_ids; run the tokenize stage on them first",
        "foreign": f"a token id outside the vocabulary of {model} ({vocab_size}); tokenise with this model's tokenizer",
    }
    problems = [f"{prompts}: {len(ids)} prompts have {texts[kind]}: {', '.join(ids[:_SHOWN])}"
                for kind, ids in wrong.items() if ids]
    if seen and shortest + settings.max_tokens > window:
        problems.append(f"sampling.max_tokens: {settings.max_tokens} leaves no room for any prompt of {prompts}: the "
                        f"shortest has {shortest} tokens, the context {window}; lower sampling.max_tokens")
    if problems:
        raise UserError(*problems)


def requests_for(group: Group, settings: Settings, stop_ids: tuple[int, ...], run_seed: int) -> list[Request]:
    """One request of n samples per temperature. Seeds depend on (run, iteration, prompt, temperature) and no more."""
    return [
        Request(
            prompt_ids=group.prompt_ids,
            n=settings.n,
            temperature=temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
            stop_ids=stop_ids,
            logprobs=settings.logprobs,
            seed=derive_seed(run_seed, "generate", group.iteration, group.id, temperature) >> 1,
        )
        for temperature in settings.temperatures
    ]


def sample_groups(
    groups: Iterable[Group], engine: Engine, settings: Settings, stop_ids: tuple[int, ...], seed: int, policy: str
) -> Iterator[tuple[Group, Tally]]:
    """Each group with its samples, in order, and the tally of it. The engine reads `groups` ahead as it needs."""
    waiting: deque[tuple[Group, int]] = deque()  # read, and the number of answers each still awaits

    def requests() -> Iterator[Request]:
        for group in groups:
            fits = len(group.prompt_ids) + settings.max_tokens <= engine.context_length
            asked = requests_for(group, settings, stop_ids, seed) if fits else []
            waiting.append((group, len(asked)))
            yield from asked

    collected: list[Answer] = []
    for answer in engine.sample(requests()):
        while waiting[0][1] == 0:
            yield _completed(waiting.popleft()[0], [], settings, policy)
        collected.append(answer)
        if len(collected) == waiting[0][1]:
            yield _completed(waiting.popleft()[0], collected, settings, policy)
            collected = []
    while waiting:
        yield _completed(waiting.popleft()[0], [], settings, policy)


def _completed(group: Group, answers: list[Answer], settings: Settings, policy: str) -> tuple[Group, Tally]:
    """`answers` are one per temperature, or none for a prompt that is too long."""
    tally = Tally(prompts=1)
    completions = []
    for answer, temperature in zip(answers, settings.temperatures, strict=bool(answers)):
        for j, sample in enumerate(answer.samples):
            index = settings.temperatures.index(temperature) * settings.n + j
            completions.append(Completion(
                text=sample.text, token_ids=sample.token_ids, finish_reason=sample.finish_reason,
                sample=index, temperature=temperature, seed=sample.seed, policy=policy, logprobs=sample.logprobs,
            ))
    tally.completions = len(completions)
    tally.tokens = sum(len(c.token_ids) for c in completions)
    tally.truncated = sum(c.finish_reason == LENGTH for c in completions)
    if settings.truncated == "drop":
        completions = [c for c in completions if c.finish_reason != LENGTH]
        tally.drop("completion_truncated", tally.truncated)
    tally.drop("prompt_too_long", not answers)
    tally.drop("refused_by_engine", sum(bool(answer.refused) for answer in answers))
    for refused in {answer.refused for answer in answers if answer.refused}:
        print(f"prompt {group.id}: refused by the engine: {refused}", flush=True)
    return replace(group, completions=tuple(completions)), tally


def _sample_parts(engine: Engine, prompts: Path, out: Path, context: Context) -> None:
    """Sample what is not in `out` yet and write it part by part, each with its tally first."""
    from pipeline import tables

    start, total = tables.count(out), tables.count(prompts)
    stop_ids = model_facts(context.one("model")).stop_ids
    todo = (group for index, group in enumerate(tables.read(prompts)) if index >= start)
    sampled = sample_groups(todo, engine, context.settings, stop_ids, context.seed, context.digests["model"][0])
    began, done = time.monotonic(), start
    index = len(tables.parts(out))
    while rows := list(itertools.islice(sampled, context.runtime.part_size)):
        now = time.monotonic()
        tally = replace(sum((one for _, one in rows), Tally()), seconds=now - began)
        write_tally(context.work, index, tally)
        tables.write_part(out, index, [group for group, _ in rows])
        done += len(rows)
        if tally.seconds > 0:
            context.report.metric(done, tokens_per_second=round(tally.tokens / tally.seconds, 1))
        context.report.progress(done, total, "prompts")
        began, index = now, index + 1


def write_tally(work: Path, index: int, tally: Tally) -> None:
    """Before its part: a part that exists has its tally; a tally without a part is written again."""
    folder = work / "tallies"
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{index:05d}.tmp"
    temporary.write_text(json.dumps(asdict(tally)))
    temporary.replace(folder / f"{index:05d}.json")


def _tally(work: Path, index: int) -> Tally:
    return Tally(**json.loads((work / "tallies" / f"{index:05d}.json").read_text()))


def _report(tally: Tally, context: Context) -> None:
    refused = tally.dropped.get("refused_by_engine", 0)
    if tally.prompts and refused == tally.prompts * len(context.settings.temperatures):
        raise RuntimeError("the engine refused every prompt; its reasons are above")
    for reason, number in tally.dropped.items():
        context.report.drop(reason, number)
    context.report.count(
        prompts=tally.prompts,
        completions=tally.completions,
        tokens=tally.tokens,
        tokens_per_second=round(tally.tokens / tally.seconds, 1) if tally.seconds else 0.0,
        mean_length=round(tally.tokens / max(tally.completions, 1), 2),
        truncated_share=round(tally.truncated / max(tally.completions, 1), 4),
        seconds_sampling=round(tally.seconds, 2),
    )
