"""Text -> ids, once, with the policy's own chat template: the token contract.

    prompt_ids + completion.token_ids == ids of template(prompt + answer), up to the id that ends the answer

BOS opens the prompt, and the turns where the template opens them with it, never twice in a row; a completion ends with
a stop id if and only if its finish_reason is "stop", with the first one the template writes: sampling goes no further,
so what stands behind it is cut. The boundary is a concatenation of ids, never of strings. What breaks it stops with the
example's id and the two renderings, because each of these mistakes trains without any other sign.

Where a template writes an answer otherwise than it was given, because it leaves the reasoning of earlier turns out
(DeepSeek-R1, Qwen3), the prompt is rendered once and the answer's own ids follow it.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipeline.errors import UserError
from pipeline.lm.behind import ids_behind
from pipeline.lm.rendering import Rendering
from pipeline.records import LENGTH, STOP, Completion, Group

_THINK, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Row:
    """A prompt with one completion as a model that scores it sees them."""

    ids: list[int]
    start: int  # where the completion begins


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with a chat template, and the ids that end an answer."""

    tokenizer: Any
    stop_ids: tuple[int, ...] = ()  # none: it only shows a model what others wrote (`rows`)
    of: str = "the"  # whose chat template it is, in messages

    @cached_property
    def rendering(self) -> Rendering:
        return Rendering(self.tokenizer, self.stop_ids, self.of)

    def encode(self, groups: Sequence[Group]) -> list[Group]:
        """Fill prompt_ids and token_ids of groups that have text only. Raises UserError naming every bad example."""
        text = self.rendering
        problems: list[str] = []
        prompts, answers = list[str](), list[list[str]]()
        for group in groups:
            try:
                prompts.append(text.prompt(group, whole=True))
                answers.append([text.answered(group, c) for c in group.completions])
            except UserError as error:
                problems.extend(error.problems)
        if problems:
            raise UserError.of(problems, 5)
        prompt_ids = text.ids(prompts)
        full_ids = ids_behind(text, prompts, prompt_ids, answers)
        made: list[Group] = []
        for group, prompt, head, texts, full in zip(groups, prompts, prompt_ids, answers, full_ids, strict=True):
            problems.extend(self._bos_problem(group, prompt, head))
            completions = []
            for completion, whole, every in zip(group.completions, texts, full, strict=True):
                ids, problem = self._completion(group, prompt, head, whole, every, completion)
                problems.extend(problem)
                completions.append(replace(completion, token_ids=tuple(ids)))
            made.append(replace(group, prompt_ids=tuple(head), completions=tuple(completions)))
        if problems:
            raise UserError.of(problems, 5)
        return made

    def rows(self, groups: Sequence[Group]) -> list[list[Row]]:
        """What a model with this tokenizer is shown for every completion, whoever wrote it.

        Where the template turns the conversation into exactly the prompt ids the group carries, they are this
        tokenizer's, and the carried ids are taken as they are. Otherwise the messages are formatted anew, with one BOS
        if the tokenizer uses one, and ended as the template ends them if and only if the completion ended; the
        completion then starts where the row parts from the prompt alone.
        """
        prompts = [self.rendering.prompt(g) for g in groups]
        plain = self.rendering.ids(prompts)
        heads = [self._with_one_bos(ids) for ids in plain]
        known = [g.prompt_ids in (tuple(p), tuple(h)) for g, p, h in zip(groups, plain, heads, strict=True)]

        def carried(place: int, completion: Completion) -> bool:
            ids = completion.token_ids
            return known[place] and bool(ids) and max(ids) < len(self.tokenizer)

        texts = [self.rendering.answered(g, c) if c.finish_reason == STOP else prompts[i] + self.rendering.held(c.text)
                 for i, g in enumerate(groups) for c in g.completions if not carried(i, c)]
        anew = map(self._with_one_bos, self.rendering.ids(texts))

        def row(place: int, completion: Completion) -> Row:
            if carried(place, completion):
                prompt = groups[place].prompt_ids
                return Row([*prompt, *completion.token_ids], len(prompt))
            ids = next(anew)
            return Row(ids, _shared(heads[place], ids))

        return [[row(i, c) for c in g.completions] for i, g in enumerate(groups)]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        """One BOS in front, whether the template, the tokenizer, both or neither write it."""
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        start = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[start:]] if start or self._adds_bos else ids

    @cached_property
    def _adds_bos(self) -> bool:
        return bool(self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id])

    def _bos_problem(self, group: Group, rendering: str, ids: list[int]) -> list[str]:
        fault = bos_fault(self.tokenizer, self.stop_ids, ids)
        return [f"example {group.id!r}: {fault}; text: {group.messages[-1].content[:200]!r}; rendering: "
                f"{self.rendering.shown(rendering)[:300]!r}"] if fault else []

    def _completion(
        self, group: Group, prompt: str, head: list[int], text: str, full: list[int], completion: Completion
    ) -> tuple[list[int], list[str]]:
        """The ids of one answer, and what is wrong with them."""
        def both() -> str:
            return (f"prompt: {self.rendering.shown(prompt)[-200:]!r}; prompt with answer: "
                    f"{self.rendering.shown(text)[-300:]!r}")

        kept = self._keeps(text[len(prompt):], completion)
        if kept and full[: len(head)] == head:
            tail = full[len(head):]
        elif kept and text.startswith(prompt):  # the tokenizer merges across the boundary: the answer on its own
            tail = self.rendering.continuation(text[len(prompt):])
        elif text.startswith(bare := self.rendering.prompt(group, generation=False)) and prompt.startswith(bare) and (
                self.rendering.thinks):
            tail = self._after(prompt, completion)
        else:
            does = "leaves out the answer's text" if text.startswith(prompt) else (
                "changes the prompt once there is an answer, so the boundary is undefined")
            return [], [f"example {group.id!r}: the template {does}; {both()}"]
        end = next((i for i, token in enumerate(tail) if token in self.stop_ids), None)
        if end is None:
            return [], [f"example {group.id!r}: missing EOS, the template does not end an answer with one of the stop "
                        f"ids {[self.tokenizer.convert_ids_to_tokens(i) for i in self.stop_ids]}; add the token it "
                        f"ends with to eos_token_id of generation_config.json; {both()}"]
        if self._unmarked and self._unmarked & {*self.rendering.ids([self.rendering.held(completion.text)])[0]}:
            return [], [f"example {group.id!r}: the answer's own text holds the stop token "
                        f"{self.tokenizer.convert_ids_to_tokens(tail[end])!r}; take it out of the data, or out of "
                        "eos_token_id of generation_config.json"]
        return tail[: end + (completion.finish_reason == STOP)], []

    @cached_property
    def _unmarked(self) -> set[int]:
        """Stop ids that are ordinary entries of the vocabulary, such as a newline: a text can hold them."""
        return {*self.stop_ids} - {*self.tokenizer.added_tokens_decoder}

    def _keeps(self, tail: str, completion: Completion) -> bool:
        """Whether the answer's text is in what the template wrote behind the prompt, and its reasoning where it has
        some and the template knows of reasoning."""
        held, more = self.rendering.held, json.loads(completion.more) if completion.more else {}
        thought = more.get("reasoning_content", "") if self.rendering.thinks else ""
        return held(completion.text).strip() in tail and (not thought or held(thought).strip() in tail)

    def _after(self, prompt: str, completion: Completion) -> list[int]:
        """The ids of an answer behind a prompt that may have opened its reasoning, and of the end of a turn."""
        thought, text = json.loads(completion.more or "{}").get("reasoning_content", ""), completion.text
        opened = prompt.rstrip().endswith(_THINK)
        if thought:
            text = f"{_THINK}\n{thought}\n{_THOUGHT}\n\n{text}"
        if opened and _THOUGHT not in text:  # no reasoning at all, in the way Qwen3 writes that
            text = f"\n{_THOUGHT}\n\n{text}"
        elif opened:
            text = text.lstrip().removeprefix(_THINK).lstrip("\n")
        end = turn_end_id(self.tokenizer)
        return [*self.rendering.continuation(self.rendering.held(text)), *([] if end is None else [end])]


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens and what happens beyond them."""

    prompt: int
    completion: int
    long_prompt: str  # drop | error
    long_completion: str  # drop | truncate | error


def limit(group: Group, limits: Limits) -> tuple[Group | None, list[str]]:
    """Apply the limits to an encoded group. Returns it (None: dropped) and the reason for everything dropped or cut.

    Of a group of several completions those beyond the limit go one by one; the group goes when the preferred one has
    to, or fewer than two are left. Completions with the same ids as an earlier one go too: a pair of identical sides
    has no gradient, and a candidate counted twice is drawn twice as often.
    """
    if len(group.prompt_ids) > limits.prompt:
        if limits.long_prompt == "error":
            raise UserError(f"example {group.id!r}: a prompt of {len(group.prompt_ids)} tokens, the limit is "
                            f"{limits.prompt} (max_prompt_tokens)")
        return None, ["long_prompt"]
    kept: list[Completion] = []
    reasons: list[str] = []
    for k, completion in enumerate(group.completions):
        cut, reason = _limit_completion(group.id, completion, limits)
        if cut is not None and not (completion.text.strip() and cut.token_ids) and not (
                completion.more and len(cut.token_ids) > 1):
            cut, reason = None, "empty_completion"  # nothing at all, or nothing but blanks and the stop id
        if cut is not None and any((cut.prompt_ids, cut.token_ids) == (c.prompt_ids, c.token_ids) for c in kept):
            cut, reason = None, "identical_completion"
        reasons.extend([reason] if reason else [])
        if cut is not None:
            kept.append(cut)
        elif k == 0:
            return None, reasons
    if len(kept) < min(2, len(group.completions)):
        return None, reasons
    return replace(group, completions=tuple(kept)), reasons


def _limit_completion(name: str, completion: Completion, limits: Limits) -> tuple[Completion | None, str]:
    number = len(completion.token_ids)
    if number <= limits.completion:
        return completion, ""
    if limits.long_completion == "error":
        raise UserError(f"example {name!r}: a completion of {number} tokens, the limit is {limits.completion} "
                        "(max_completion_tokens)")
    if limits.long_completion == "drop":
        return None, "long_completion"
    return replace(completion, token_ids=completion.token_ids[: limits.completion], finish_reason=LENGTH), "truncated"


def bos_fault(tokenizer: Any, stop_ids: tuple[int, ...], ids: list[int]) -> str:
    """What is wrong with the BOS of a prompt's ids; '' where nothing is, or where no BOS is to be there."""
    bos = tokenizer.bos_token_id
    if bos is None or bos in (*stop_ids, tokenizer.eos_token_id):
        return ""  # the one token of GPT-2 and OLMo 2 is what ends earlier answers, too
    if bos not in ids and not _template_writes_bos(tokenizer):
        return ""  # a family that has the token and was trained without it, such as Qwen
    opens = ids[:1] == [bos] or ids.count(bos) > 1  # of a template that opens every turn with it, as ChatML's
    if opens and all(pair != (bos, bos) for pair in itertools.pairwise(ids)):
        return ""  # no text holds the id, so what opens a later turn is the template's, as in Llama 2's
    return f"{ids.count(bos)} BOS tokens in the prompt, expected one at its start and no two in a row"


def turn_end_id(tokenizer: Any) -> int | None:
    """The added token with which the template ends an assistant turn, None where it ends with plain text."""
    talk = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "quince"}]
    ends = Rendering(tokenizer).apply(talk, False).rpartition("quince")[2]
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((i for i in tokenizer(ends, add_special_tokens=False)["input_ids"] if i in added), None)


def _shared(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _template_writes_bos(tokenizer: Any) -> bool:
    template = str(tokenizer.chat_template)
    return "bos_token" in template or str(tokenizer.bos_token) in template
