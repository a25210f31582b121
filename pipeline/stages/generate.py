"""Sample completions for every prompt with a policy, shard by shard.

Ids in, ids out: the prompt's ids go to the engine as they are and the sampled ids come back; nothing is tokenised
here. Every sample has a seed of its own, from (run seed, iteration, prompt id, temperature, sample), so samples are
the same whatever the shards, the batch or the order. A finished part is never sampled again after a crash.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import load_part, part_problems, setting
from pipeline.engines.engine import Answer, Backend, Engine, Request, model_facts
from pipeline.engines.sampling import Draw, GroupSettings, draws, requests_for
from pipeline.engines.tally import REFUSED, TOO_LONG, Tally, read_tally, write_tally
from pipeline.errors import UserError
from pipeline.records import LENGTH, Completion, Group
from pipeline.stage import Context, Cost, Stage, told

_SHOWN = 10  # problems of one kind shown at once


@dataclass(frozen=True)
class Settings:
    """Xu et al. 2023 sample 4 completions at temperature 0.7; OnMC-PO 2 at each of three temperatures."""

    engine: str  # what samples, by its module: two engines draw different samples from the same seeds
    dtype: str  # the number format it computes in
    n: int = setting(4, low=1)  # samples per prompt *at each temperature*: K = n x number of temperatures
    temperatures: tuple[float, ...] = setting((0.7,), low=0.0)  # 0: greedy
    groups: tuple[GroupSettings, ...] = ()  # instead of n samples at each temperature; what they leave out is as here
    top_p: float = setting(1.0, above=0.0, high=1.0)  # mass of the likeliest tokens that are drawn from; 1: all
    top_k: int = setting(0, low=0)  # 0: off
    max_tokens: int = setting(300, low=1)  # per completion, its stop token included
    truncated: str = setting("keep", choices=("keep", "drop"))  # completions cut at max_tokens
    logprobs: bool = False  # keep the log-prob of every sampled token
    context_length: int | None = None  # the engine's, if less than the model's: longer prompts drop out
    engine_arguments: tuple[str, ...] = ()  # more arguments of the engine: they may change what it samples

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What is drawn for every prompt, in the order of its samples."""
        groups = self.groups or tuple(GroupSettings(temperature) for temperature in self.temperatures)
        return draws(groups, n=self.n, top_p=self.top_p, top_k=self.top_k, max_tokens=self.max_tokens)

    @property
    def samples(self) -> int:
        """Samples per prompt."""
        return sum(draw.n for draw in self.draws)

    @property
    def longest(self) -> int:
        """Most tokens of a completion."""
        return max(draw.max_tokens for draw in self.draws)

    def check(self) -> list[tuple[str, str]]:
        if not self.temperatures:
            return [("temperatures", "is empty, expected at least one number")]
        if len(set(self.temperatures)) < len(self.temperatures):
            return [("temperatures", f"{list(self.temperatures)} names one twice; raise n for more samples")]
        if greedy := [d.n for d in self.draws if d.temperature == 0.0 and d.n > 1]:
            return [("n", f"{greedy[0]} samples at temperature 0 are {greedy[0]} times the same answer; set n to 1 "
                     "there, or a temperature above 0")]
        alike = [replace(draw, n=0) for draw in self.draws]
        return [(f"groups[{i}]", f"draws as groups[{alike.index(one)}] does; raise its n for more samples")
                for i, one in enumerate(alike) if self.groups and alike.index(one) < i]


@dataclass(frozen=True)
class Runtime:
    engine: dict[str, Any]  # the engine's module and its settings
    part_size: int = setting(256, low=1)  # prompts per part, the unit of resuming
    max_refused_share: float = setting(0.5, low=0.0, high=1.0)  # of the prompts; more end the stage
    max_collapsed_share: float = setting(0.95, low=0.0, high=1.0)  # of samples: empty, of one token, alike

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.engine, "engine", Backend)


def check(settings: Settings, runtime: Runtime) -> list[str]:
    """Servers that the engine is told to use are asked now whether they can be; whether it searches with beams."""
    part = load_part(runtime.engine, "engine", Backend)
    searches = [i for i, draw in enumerate(settings.draws) if draw.beams > 1 or draw.no_repeat_ngram]
    problems = [f"sampling.logprobs: a search keeps none (sampling.groups[{i}].beams, no_repeat_ngram), expected false"
                for i in searches[:1] if settings.logprobs]
    return part.plugin.check_service(part.settings) + problems + [
        f"sampling.groups[{i}]: beams and no_repeat_ngram are not of {part.name}, expected 1 and 0; or set "
        "engine=transformers" for i in searches if not part.plugin.beams]


def run(context: Context) -> None:
    """Writes `groups/`: the prompts in order with their K samples, K = 0 where the prompt does not fit the context.

    Raises UserError for prompts without ids, with ids outside the vocabulary, or with an id used twice, and where more
    prompts are refused than `max_refused_share` allows, or more samples say nothing than `max_collapsed_share` does.
    """
    from pipeline import tables

    model, prompts, out = context.one("model"), context.one("prompts"), context.out / "groups"
    check_prompts(prompts, model, context.settings, context.runtime.max_refused_share)
    for torn in out.glob(".*.tmp"):
        torn.unlink()
    done = tables.parts(out)
    for unsure in reversed(done[len(_tallies(context.work, len(done))):]):
        unsure.unlink()
    total = tables.count(prompts)
    if total == 0:
        write_tally(context.work, 0, Tally())
        tables.write_part(out, 0, [])
    elif tables.count(out) < total:
        part = load_part(context.runtime.engine, "engine", Backend)
        began = time.monotonic()
        with part.plugin.open_engine(model, part.settings, context.work / "engine.log") as engine:
            context.report.count(seconds_to_open_engine=round(time.monotonic() - began, 2))
            _sample_parts(engine, prompts, out, context)
            context.report.count(**engine.facts)
    _report(sum(_tallies(context.work, len(tables.parts(out))), Tally()), context)


def _tallies(work: Path, parts: int) -> list[Tally]:
    """Of the parts that are done, up to the first whose tally the disk has changed."""
    found = itertools.takewhile(lambda tally: tally is not None, (read_tally(work, index) for index in range(parts)))
    return [tally for tally in found if tally is not None]


def check_prompts(prompts: Path, model: Path, settings: Settings, max_refused_share: float) -> None:
    """Everything that can be wrong with the prompts, before anything is sampled. Raises UserError."""
    from pipeline import tables

    facts = model_facts(model)
    vocab_size, window = facts.vocab_size, min(facts.max_position, settings.context_length or facts.max_position)
    shortest, long = window, Tally()
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
        if len(group.prompt_ids) + settings.longest > window:
            long += Tally(refused=1, dropped={TOO_LONG: 1})
        seen.add(group.id)
    texts = {
        "twice": "an id that an earlier prompt has too (their samples would be the same); make the ids unique",
        "bare": "no prompt_ids; run the tokenize stage on them first",
        "foreign": f"a token id outside the vocabulary of {model} ({vocab_size}); tokenise with this model's tokenizer"}
    problems = [f"{prompts}: {len(ids)} prompts have {texts[kind]}: {', '.join(ids[:_SHOWN])}"
                for kind, ids in wrong.items() if ids]
    problems += [f"sampling.groups[{i}].stop_ids: {stop} is outside the vocabulary of {model} ({vocab_size})"
                 for i, draw in enumerate(settings.draws) for stop in draw.stop_ids if stop >= vocab_size]
    if seen and shortest + settings.longest > window:
        problems.append(f"sampling.max_tokens: {settings.longest} leaves no room for any prompt of {prompts}: the "
                        f"shortest has {shortest} tokens, the context {window}; lower sampling.max_tokens")
    else:
        problems += long.too_many(len(seen), max_refused_share)
    if problems:
        raise UserError(*problems)


def sample_groups(groups: Iterable[Group], engine: Engine, settings: Settings, stop_ids: tuple[int, ...], seed: int,
                  policy: str) -> Iterator[tuple[Group, Tally]]:
    """Each group with its samples, in order, and the tally of it. The engine reads `groups` ahead as it needs."""
    waiting: deque[tuple[Group, int]] = deque()  # read, and the number of answers each still awaits

    def requests() -> Iterator[Request]:
        for group in groups:
            fits = len(group.prompt_ids) + settings.longest <= engine.context_length
            asked = requests_for(group, settings.draws, stop_ids, seed, settings.logprobs) if fits else []
            waiting.append((group, len(asked)))
            yield from asked

    collected: list[Answer] = []
    for answer in engine.sample(requests()):
        while waiting[0][1] == 0:
            yield _completed(waiting.popleft()[0], [], settings, policy, stop_ids)
        collected.append(answer)
        if len(collected) == waiting[0][1]:
            yield _completed(waiting.popleft()[0], collected, settings, policy, stop_ids)
            collected = []
    while waiting:
        yield _completed(waiting.popleft()[0], [], settings, policy, stop_ids)


def _completed(group: Group, answers: list[Answer], settings: Settings, policy: str,
               stop_ids: tuple[int, ...]) -> tuple[Group, Tally]:
    """`answers` are one per draw, or none for a prompt that is too long.

    What a stop id of a draw's own ended is cut as far as the model goes, which did not end its turn.
    """
    tally = Tally(prompts=1)
    completions, first = [], 0
    for answer, draw in zip(answers, settings.draws, strict=bool(answers)):
        for j, sample in enumerate(answer.samples):
            ended = sample.finish_reason if sample.token_ids[-1:] and sample.token_ids[-1] in stop_ids else LENGTH
            completions.append(Completion(text=sample.text, token_ids=sample.token_ids, finish_reason=ended,
                                          sample=first + j, temperature=draw.temperature, seed=sample.seed,
                                          policy=policy, logprobs=sample.logprobs))
        first += draw.n
    tally.completions = len(completions)
    tally.look(completions)
    tally.tokens = sum(len(c.token_ids) for c in completions)
    tally.truncated = sum(c.finish_reason == LENGTH for c in completions)
    if settings.truncated == "drop":
        completions = [c for c in completions if c.finish_reason != LENGTH]
        tally.drop("completion_truncated", tally.truncated)
    refusals = {answer.refused for answer in answers if answer.refused}
    tally.refused = int(not answers or bool(refusals))
    tally.drop(TOO_LONG, not answers)
    tally.drop(REFUSED, bool(refusals))
    for refused in sorted(refusals):
        print(f"prompt {group.id}: refused by the engine: {refused}", flush=True)
    return replace(group, completions=tuple(completions)), tally


def _sample_parts(engine: Engine, prompts: Path, out: Path, context: Context) -> None:
    """Sample what is not in `out` yet and write it part by part, each with its tally first.

    Raises UserError as soon as too many are refused, and forgets the parts where the engine refused any: they are
    sampled again next time.
    """
    from pipeline import tables

    start, total = tables.count(out), tables.count(prompts)
    stop_ids = model_facts(context.one("model")).stop_ids
    todo = (group for index, group in enumerate(tables.read(prompts)) if index >= start)
    sampled = sample_groups(todo, engine, context.settings, stop_ids, context.seed, context.digests["model"][0])
    began, done = time.monotonic(), start
    context.report.progress(done, total, "prompts")
    index = len(tables.parts(out))
    tallies = _tallies(context.work, index)
    while rows := list(itertools.islice(sampled, context.runtime.part_size)):
        now = time.monotonic()
        tally = replace(sum((one for _, one in rows), Tally()), seconds=now - began)
        tallies.append(tally)
        if problems := sum(tallies, Tally()).too_many(total, context.runtime.max_refused_share):
            clean = next((i for i, one in enumerate(tallies) if REFUSED in one.dropped), index)
            for part in reversed(tables.parts(out)[clean:]):  # killed half-way, those left are the first ones
                part.unlink()
            raise UserError(*problems)
        write_tally(context.work, index, tally)
        tables.write_part(out, index, [group for group, _ in rows])
        done += len(rows)
        if tally.seconds > 0:
            context.report.metric(done, tokens_per_second=round(tally.tokens / tally.seconds, 1))
        context.report.progress(done, total, "prompts")
        began, index = now, index + 1


def _report(tally: Tally, context: Context) -> None:
    """Numbers for the manifest; a mean over nothing is not there."""
    if problems := tally.collapsed(context.runtime.max_collapsed_share):
        raise UserError(*problems)
    for reason, number in tally.dropped.items():
        context.report.drop(reason, number)
    context.report.count(prompts=tally.prompts, completions=tally.completions, tokens=tally.tokens)
    if tally.seconds:
        context.report.count(tokens_per_second=round(tally.tokens / tally.seconds, 1))
    if tally.completions:
        context.report.count(mean_length=round(tally.tokens / tally.completions, 2),
                             truncated_share=round(tally.truncated / tally.completions, 4))
    context.report.count(seconds_sampling=round(tally.seconds, 2))


# samples: a run keeps one engine service alive for the steps that say so
STAGE = Stage(Settings, run, version=1, inputs={"model": "one", "prompts": "one"}, seeded=True, runtime=Runtime,
              samples=True, check=check,
              cost=lambda settings: Cost(sampled_tokens=sum(draw.n * draw.max_tokens for draw in settings.draws)),
              says=told("{completions:,.0f} samples of {prompts:,.0f} prompts", "{tokens_per_second:,.0f} tokens/s",
                        "length {mean_length:.1f}", "truncated {truncated_share:.1%}"))
