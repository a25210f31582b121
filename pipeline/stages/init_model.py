"""The model everything starts from: one that is given (docs/models.md), or a tiny one made from a config.

A given one is checked before anything runs (`check`). Its weights are shared with the folder they come from, not
copied; its other files are copied, with every id that can end an answer written into generation_config.json. Before the
step ends, a few tokens go through all that will use it (`lm/round_trip.py`). From scratch: a byte-level BPE tokenizer
trained on the data's text and a Llama drawn from the seed.

With an input `policy`, a model whose token ids it has to share, its tokenizer is compared with that one's.

Output: `model/`.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import files as base_files
from pipeline import hub, weights
from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm import acceptance, checks, probe, shapes, tiny
from pipeline.lm.template_check import template_problems
from pipeline.source import ADAPTER_WEIGHTS, Source
from pipeline.stage import Context, Cost, Stage, told


@dataclass(frozen=True)
class Arch:
    """A Llama. Sizes in units of weights, `max_position` in tokens."""

    hidden_size: int = setting(256, low=8)  # of the residual stream
    intermediate_size: int = setting(704, low=8)  # of the feed-forward layers
    layers: int = setting(4, low=1)  # transformer blocks
    heads: int = setting(4, low=1)  # of attention
    kv_heads: int = setting(4, low=1)  # heads with keys of their own; divides heads
    max_position: int = setting(1024, low=16)  # tokens of prompt and completion
    vocab_size: int = setting(2048, low=270)  # 256 bytes and the special tokens come first
    tie_embeddings: bool = True  # input and output share one matrix
    rope_theta: float = setting(10000.0, above=0.0)  # base of the rotary positions
    initializer_range: float = setting(0.02, above=0.0)  # standard deviation of the first weights

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if self.hidden_size % (2 * self.heads):
            problems.append(("hidden_size", f"{self.hidden_size} is not an even multiple of heads ({self.heads})"))
        if self.heads % self.kv_heads:
            problems.append(("kv_heads", f"{self.kv_heads} does not divide heads ({self.heads})"))
        return problems


@dataclass(frozen=True)
class Settings:
    """`arch` is for models from scratch and unused when runtime.path is given."""

    arch: Arch | None = None  # null: taken from path
    chat_template: str | None = None  # roles, chatml, plain, or a file of Jinja; null: the one the model brings
    date: str | None = setting(None, added=True)  # what a chat template that asks for the day is told; null: 2024-07-26

    def check(self) -> list[tuple[str, str]]:
        found = {"chat_template": shapes.choice_problem(self.chat_template), "date": shapes.date_problem(self.date)}
        return [(key, problem) for key, problem in found.items() if problem]


@dataclass(frozen=True)
class Runtime:
    """Where the model is. Its content (`files`) or its commit on the hub (`sources`) is in the key, its place not."""

    path: str | None = None  # a folder, org/name[@revision] on the hub, a GGUF file, or an adapter; null: from nothing
    base: str | None = None  # what an adapter is merged on, where the folder it names is not here
    made_by: str | None = None  # the command that makes the folder, where it is a preset's
    reward: bool = False  # whether a reward model will be trained on it; the recipe says
    longest: tuple[int, ...] = ()  # tokens of a prompt and of a completion that later steps will ask of it

    @property
    def source(self) -> Source | None:
        return None if self.path is None else Source(self.path, self.base, self.made_by)


def check(settings: Settings, runtime: Runtime) -> list[str]:
    """What stands in the way of this stage, as messages. Imports nothing heavy, reads no weights."""
    if runtime.source is not None:
        return acceptance.problems(replace(runtime.source, template=settings.chat_template), runtime.reward,
                                   sum(runtime.longest))
    if settings.arch is not None and settings.chat_template not in (None, *tiny.TEMPLATES):
        return [f"model.chat_template: {settings.chat_template}, expected {' or '.join(tiny.TEMPLATES)} for a model "
                "made from nothing"]
    return [] if settings.arch is not None and settings.chat_template is not None else [
        "model.path: missing, expected a model (model.path=DIR, a GGUF file, or org/name on the hub) or one from "
        "scratch (model=tiny)"]


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """Files from outside whose content decides the result."""
    return [] if runtime.source is None else [*_files(runtime.source), *shapes.files(settings.chat_template)]


def sources(settings: Settings, runtime: Runtime) -> list[str]:
    """Models of the hub whose commit decides the result."""
    source = runtime.source
    base = source.base_of_adapter() if source is not None and source.adapter else None
    return [f"hub:{one.path}" for one in (source, base) if one is not None and one.on_hub]


def _files(source: Source) -> list[Path]:
    if source.on_hub:
        return []
    if source.gguf:
        return [source.place]
    if not source.adapter:
        return [*checks.side_files(source.place), *weights.files(source.place)]
    base = source.base_of_adapter()
    own = [*checks.side_files(source.place), source.place / ADAPTER_WEIGHTS]
    return own + ([] if base is None else _files(base))


def run(context: Context) -> None:
    settings, runtime = context.settings, context.runtime
    target = context.out / "model"
    shutil.rmtree(target, ignore_errors=True)  # of a try that was killed
    target.mkdir(parents=True)
    if runtime.source is None:
        if problems := check(settings, runtime):
            raise UserError(*problems)
        _from_scratch(target, settings, context)
        shapes.dress(target, None, settings.date)
        write_stop_ids(target)
    else:
        _given(target, runtime.source, context)
    if (policy := context.optional("policy")) is not None:
        _same_ids(target, policy, runtime.path)
    context.report.count(parameters=weights.parameters(target))


def _given(target: Path, source: Source, context: Context) -> None:
    """The model of `source` as a plain folder, gone through once. Raises UserError with all that is wrong."""
    from pipeline.lm import converted, round_trip

    settings, reward = context.settings, context.runtime.reward
    if source.gguf:
        converted.from_gguf(source.place, target)
    elif source.adapter:
        base = source.base_of_adapter()
        assert base is not None
        converted.merged(source.place, _folder(base), target)
    else:
        _taken(_folder(source), target)
    shapes.dress(target, settings.chat_template, settings.date)
    plain = not (source.on_hub or source.gguf or source.adapter)  # planning has seen it as it is
    if not plain and (problems := acceptance.of_folder(source.path, checks.Folder.of(target), reward)):
        raise UserError(*problems)
    write_stop_ids(target)
    context.report.count(**round_trip.check(target, context.work / "round_trip", reward, source.path))


def _folder(source: Source) -> Path:
    return hub.fetched(source.path, weights=True) if source.on_hub else source.place


def _taken(folder: Path, target: Path) -> None:
    for path in checks.side_files(folder):
        shutil.copyfile(path, target / path.name)
    for path in weights.files(folder):
        base_files.share(path, target / path.name)
    if (folder / weights.INDEX).is_file() and not (folder / "model.safetensors").exists():
        shutil.copyfile(folder / weights.INDEX, target / weights.INDEX)
    if not (target / "tokenizer.json").is_file():
        from pipeline.lm import converted

        converted.fast_tokenizer(folder, target)


def _from_scratch(target: Path, settings: Settings, context: Context) -> None:
    from pipeline.lm import folders

    folders.quiet()

    data = context.optional("data")
    if data is None:
        raise UserError("init_model: a model from scratch learns its tokenizer from text, expected an input `data`")
    assert settings.arch is not None and settings.chat_template is not None
    tokenizer = tiny.train_tokenizer(tiny.corpus(data), settings.arch.vocab_size,
                                     tiny.TEMPLATES[settings.chat_template], settings.arch.max_position)
    tokenizer.save_pretrained(target)
    tiny.tiny_llama(settings.arch, tokenizer, context.seed).save_pretrained(target)


def write_stop_ids(folder: Path) -> None:
    """List every id that can end an answer: the config's, the tokenizer's, and what the template ends a turn with."""
    from pipeline.lm.folders import load_tokenizer
    from pipeline.lm.template import turn_end_id

    tokenizer = load_tokenizer(folder)
    path = folder / checks.GENERATION
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    stops: list[int] = []
    for _ in range(2):  # first whether the template can be used at all, then with what it ends an answer
        if problems := template_problems(tokenizer, tuple(stops)):
            raise UserError(*(f"model.path: {problem}" for problem in problems))
        stops = probe.stop_candidates(folder, tokenizer, turn_end_id(tokenizer))
    assert stops, "an answer that no listed id ends is a fault of the template"
    path.write_text(json.dumps({**config, "eos_token_id": stops}, indent=2, sort_keys=True) + "\n")


def _same_ids(model: Path, policy: Path, given: str | None) -> None:
    """Raises UserError where the two read ids as different tokens."""
    from pipeline.lm.folders import load_tokenizer

    if load_tokenizer(model).get_vocab() != load_tokenizer(policy).get_vocab():
        raise UserError(f"start or reference: {given} has another tokenizer than the policy, whose ids the groups "
                        "carry; give a model of the same family")


def _made_from_nothing(settings: Settings) -> bool:
    return settings.arch is not None


STAGE = Stage(
    Settings, run, version=1, inputs={"data": "optional", "policy": "optional"}, seeded=_made_from_nothing,
    seed="sft", runtime=Runtime, files=files, sources=sources, check=check,
    wanted=lambda settings: {"data", "policy"} if _made_from_nothing(settings) else {"policy"},
    cost=lambda settings: Cost(weights=1),
    says=told("{parameters:,.0f} parameters"))
