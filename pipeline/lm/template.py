"""Text -> ids, once, with the policy's own chat template: the token contract.

    prompt_ids + completion.token_ids == ids of template(prompt + answer), up to the id that ends the answer

BOS opens the prompt, and the turns where the template opens them with it, never twice in a row; a completion ends with
a stop id if and only if its finish_reason is "stop", with the first one the template writes: sampling goes no further,
so what stands behind it is cut. The boundary is a concatenation of ids, never of strings. What breaks it stops with the
example's id and the two renderings, because each of these mistakes trains without any other sign.

A special token's string inside somebody's text ("<|end|>", "</s>") is text: it is tokenised as the letters it is made
of, so that no one's words can end a turn or open another.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipeline.errors import UserError
from pipeline.records import LENGTH, STOP, Completion, Group

_OPEN, _CLOSE = "\U000f0000", "\U000f0001"  # private use: they hold the place of a special token's string in a text
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


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

    def encode(self, groups: Sequence[Group]) -> list[Group]:
        """Fill prompt_ids and token_ids of groups that have text only. Raises UserError naming every bad example."""
        prompts = [self._render(g, None) for g in groups]
        answers = [[self._render(g, c) for c in g.completions] for g in groups]
        prompt_ids = self._ids(prompts)
        full_ids = iter(self._ids([text for texts in answers for text in texts]))
        made: list[Group] = []
        problems: list[str] = []
        for group, prompt, head, texts in zip(groups, prompts, prompt_ids, answers, strict=True):
            problems.extend(self._bos_problem(group, prompt, head))
            completions = []
            for completion, text in zip(group.completions, texts, strict=True):
                ids, problem = self._completion(group.id, prompt, head, text, next(full_ids), completion)
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
        prompts = [self._render(g, None) for g in groups]
        plain = self._ids(prompts)
        heads = [self._with_one_bos(ids) for ids in plain]
        known = [g.prompt_ids in (tuple(p), tuple(h)) for g, p, h in zip(groups, plain, heads, strict=True)]

        def carried(place: int, completion: Completion) -> bool:
            ids = completion.token_ids
            return known[place] and bool(ids) and max(ids) < len(self.tokenizer)

        texts = [self._render(g, c) if c.finish_reason == STOP else prompts[i] + self._held(c.text)
                 for i, g in enumerate(groups) for c in g.completions if not carried(i, c)]
        anew = map(self._with_one_bos, self._ids(texts))

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

    def _render(self, group: Group, completion: Completion | None) -> str:
        messages = [{"role": m.role, "content": self._held(m.content)} for m in group.messages]
        if completion is not None:
            messages.append({"role": "assistant", "content": self._held(completion.text)})
        try:
            return str(self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=completion is None))
        except Exception as error:  # a template may refuse a conversation (roles that do not alternate, a system turn)
            raise UserError(
                f"example {group.id!r}: {self.of} chat template refuses this conversation: {error}") from None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # the template writes BOS itself, so no special tokens are added on top of it
        plain = [text for text in texts if _OPEN not in text]
        ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [])
        return [self._pieces(text) if _OPEN in text else next(ids) for text in texts]

    def _pieces(self, text: str) -> list[int]:
        """The ids of a rendering in which strings of special tokens are held."""
        found: list[int] = []
        for i, piece in enumerate(_HELD.split(text)):
            if i % 2 == 0:
                found += self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
                continue
            name = self._specials[int(piece)]
            letters = self.tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if set(letters) & set(self.tokenizer.all_special_ids):
                raise UserError(f"the text holds {name!r}, a special token that this tokenizer cannot write as plain "
                                "text; take it out of the data")
            found += letters
        return found

    @cached_property
    def _specials(self) -> list[str]:
        """The strings of all special tokens, longest first."""
        added = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return sorted({*self.tokenizer.all_special_tokens, *added}, key=lambda t: (-len(t), t))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._specials)) or "(?!)")

    def _held(self, text: str) -> str:
        """Somebody's text, with a place holder for every string of a special token."""
        return self._pattern.sub(lambda m: f"{_OPEN}{self._specials.index(m.group())}{_CLOSE}", text)

    def _shown(self, text: str) -> str:
        return _HELD.sub(lambda m: self._specials[int(m.group(1))], text)

    def _bos_problem(self, group: Group, rendering: str, ids: list[int]) -> list[str]:
        bos = self.tokenizer.bos_token_id
        if bos is None or bos in self.stop_ids:
            return []
        if bos not in ids and not _template_writes_bos(self.tokenizer):
            return []  # a family that has the token and was trained without it, such as Qwen
        if ids[:1] == [bos] and all(pair != (bos, bos) for pair in itertools.pairwise(ids)):
            return []  # no text holds the id, so what opens a later turn is the template's, as in Llama 2's
        return [f"example {group.id!r}: {ids.count(bos)} BOS tokens in the prompt, expected one at its start and no two "
                f"in a row; text: {group.messages[-1].content[:200]!r}; rendering: {self._shown(rendering)[:300]!r}"]

    def _completion(
        self, name: str, prompt: str, head: list[int], text: str, full: list[int], completion: Completion
    ) -> tuple[list[int], list[str]]:
        """The ids of one answer, and what is wrong with them."""
        both = f"prompt: {self._shown(prompt)[-200:]!r}; prompt with answer: {self._shown(text)[-300:]!r}"
        if full[: len(head)] == head:
            tail = full[len(head):]
        elif text.startswith(prompt):  # the tokenizer merges across the boundary: tokenise the answer on its own
            tail = self._ids([text[len(prompt):]])[0]
        else:
            return [], [f"example {name!r}: the template changes the prompt once there is an answer, so the boundary "
                        f"is undefined; {both}"]
        ends = [i for i, token in enumerate(tail) if token in self.stop_ids]
        if not ends:
            return [], [f"example {name!r}: missing EOS, the template does not end an answer with one of the stop ids "
                        f"{[self.tokenizer.convert_ids_to_tokens(i) for i in self.stop_ids]}; add the token it ends "
                        f"with to eos_token_id of generation_config.json; {both}"]
        return tail[: ends[0] + (completion.finish_reason == STOP)], []


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
        if cut is not None and not (cut.token_ids and completion.text.strip()):
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


def turn_end_id(tokenizer: Any) -> int | None:
    """The special id with which the template ends an assistant turn, None where it ends with plain text."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = [i for i, token in enumerate(ids) if token not in tokenizer.all_special_ids and "b" in
              tokenizer.decode([token])]
    after = ids[answer[-1] + 1:] if answer else []
    return next((i for i in after if i in tokenizer.all_special_ids), None)


def _shared(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _template_writes_bos(tokenizer: Any) -> bool:
    template = str(tokenizer.chat_template)
    return "bos_token" in template or str(tokenizer.bos_token) in template
