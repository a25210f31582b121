"""Messages -> the text a chat template makes of them, and that text -> ids.

A special token's string inside somebody's text ("<|end|>", "</s>") is text: a place holder stands for it while the
template runs, and it is tokenised as the letters it is made of, so that no one's words can end a turn or open another.
Special by its role is what ends an answer or opens a prompt, whether its tokenizer marks it or not; in what users and
tools say so is every mark of the template's that is one token ("</think>", "<tool_call>"). The characters of the place
holders are held too, so no text forges one.

A template that asks for the date is told the same one everywhere (`date_of`): ids are made once, and what is rendered
on another day must be what was trained on.
"""

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipeline.errors import UserError
from pipeline.records import Completion, Group

_SPOKEN = ("system", "user", "assistant")
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"  # private use: they hold the place of a special token's string in a text
_BLANK = "\u2581"  # SentencePiece's for a space
_MARK = re.compile(r"[<\[|]\S+[>\]|]")  # how templates write the tokens that are theirs: <think>, [INST], <|call|>
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
DATE = "2024-07-26"  # what Llama 3.1's own template says where it is told no date
DATE_KEY = "template_date"  # of tokenizer_config.json: the date init_model was given


@dataclass(frozen=True)
class Rendering:
    """A tokenizer and its chat template. `stop_ids`: what ends an answer; `of`: whose template it is, in messages."""

    tokenizer: Any
    stop_ids: tuple[int, ...] = ()
    of: str = "the"

    def prompt(self, group: Group, generation: bool = True, whole: bool = False) -> str:
        """The conversation, with the beginning of an answer unless `generation` is False. Raises UserError; `whole`:
        also where a turn's text is not in it.
        """
        return self._rendered(group, None, generation, whole)

    def answered(self, group: Group, completion: Completion) -> str:
        """The conversation with the answer as its last turn. Raises UserError."""
        return self._rendered(group, completion, False)

    def _rendered(self, group: Group, completion: Completion | None, generation: bool, whole: bool = False) -> str:
        messages = [self._message(m.role, m.content, m.more) for m in group.messages]
        if self.refuses(group):
            kept = int(messages[0]["role"] == "system" and not self.refuses_system)
            messages = [*messages[:kept], *_folded(messages[kept:])]
        if completion is not None:
            messages.append(self._message("assistant", completion.text, completion.more))
        try:
            text = self.apply(messages, generation, _further(group.template))
        except Exception as error:  # a template may refuse a conversation (roles that do not alternate)
            raise UserError(
                f"example {group.id!r}: {self.of} chat template refuses this conversation: {error}") from None
        if whole and (turn := self._lost(messages, text)):
            raise UserError(
                f"example {group.id!r}: {self.of} chat template leaves out the {turn['role']}'s text, or a part of it "
                f"({self.shown(turn['content'])[:200]!r}); mend the template, give another "
                f"(model.chat_template=FILE), or take the row out; rendering: {self.shown(text)[-300:]!r}")
        return text

    def _lost(self, messages: list[dict[str, Any]], text: str) -> dict[str, Any] | None:
        """The first turn whose text is not in the rendering, in order, blanks apart; None where all are there.

        A tool's text may be written in another form, a system turn at another place, and of earlier answers a template
        that knows reasoning leaves that out: these are not asked for, or not for their order.
        """
        at = 0
        for turn in messages:
            said = turn["content"].strip() if isinstance(turn["content"], str) else ""
            if turn["role"] == "assistant" and (self.thinks or len(turn) > 2):
                continue
            start = 0 if turn["role"] == "system" else at
            found = text.find(said, start)
            if found < 0 and turn["role"] in _SPOKEN and "".join(said.split()) not in "".join(text[start:].split()):
                return turn
            if found >= 0 and turn["role"] != "system":
                at = found + len(said)
        return None

    def apply(
        self, messages: list[dict[str, Any]], generation: bool, variables: Mapping[str, Any] | None = None
    ) -> str:
        """The template's own output. Raises whatever the template raises."""
        more = self._held_in(dict(variables or {}))
        return str(self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, **{"strftime_now": self._clock, **more}))

    @cached_property
    def _clock(self) -> Any:
        return date_of(self.tokenizer).strftime

    @cached_property
    def refuses_system(self) -> bool:
        """Whether the template raises at a system turn, or leaves its text out."""
        return self._refuses([{"role": "system", "content": "zebra"}, {"role": "user", "content": "quince"}])

    @cached_property
    def refuses_later_system(self) -> bool:
        """The same of one that is not the first turn."""
        return self._refuses([{"role": "user", "content": "quince"}, {"role": "assistant", "content": "plum"},
                              {"role": "system", "content": "zebra"}, {"role": "user", "content": "newt"}])

    def _refuses(self, talk: list[dict[str, Any]]) -> bool:
        try:
            return "zebra" not in self.apply(talk, True)
        except Exception:
            return True

    def refuses(self, group: Group) -> bool:
        """Whether the group has a system turn that the template refuses where it stands."""
        first, *later = (m.role for m in group.messages)
        return (first == "system" and self.refuses_system) or ("system" in later and self.refuses_later_system)

    @cached_property
    def thinks(self) -> bool:
        """Whether the template knows answers that begin with reasoning, as Qwen3's and DeepSeek-R1's do."""
        return "</think>" in str(self.tokenizer.chat_template)

    def unread(self, group: Group) -> list[str]:
        """The names of further fields of the group (`more`, `template`) that change nothing of what is rendered, and
        "tool" where a tool's text is not in it. Empty for a group of roles and contents only.
        """
        told = (*(m.more for m in group.messages), *(c.more for c in group.completions), group.template)
        fields = {name for text in told if text for name in json.loads(text)}
        if not fields:
            return []
        whole = self._renderings(group)
        found = [name for name in sorted(fields) if self._renderings(_without(group, name)) == whole]
        if self.thinks:  # of earlier turns it is left out on purpose, to an answer it is put back
            found = [name for name in found if name != "reasoning_content"]
        said = [self.held(m.content, typed=True).strip() for m in group.messages if m.role == "tool"]
        return [*found, *(["tool"] if any(text not in whole[0] for text in said) else [])]

    def _renderings(self, group: Group) -> list[str]:
        try:
            return [self.prompt(group), *(self.answered(group, c) for c in group.completions)]
        except UserError:  # it cannot do without the field
            return []

    def _message(self, role: str, content: str, more: str) -> dict[str, Any]:
        own = {"role": role, "content": self.held(content, typed=role in ("user", "tool"))}
        return {**own, **self._held_in(_further(more))} if more else own

    def _held_in(self, value: Any) -> Any:
        """The same with every text in it held."""
        if isinstance(value, str):
            return self.held(value)
        if isinstance(value, dict):
            return {key: self._held_in(item) for key, item in value.items()}
        return [self._held_in(item) for item in value] if isinstance(value, list) else value

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Of renderings: the template writes BOS itself, so no special tokens are added on top of it."""
        plain = [text for text in texts if _OPEN not in text]
        ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [])
        return [self._pieces(text) if _OPEN in text else next(ids) for text in texts]

    def continuation(self, text: str) -> list[int]:
        """The ids of a piece of a rendering that goes on from another one."""
        return self._pieces(text, True)

    def unwritable(self, group: Group) -> bool:
        """Whether a text of the group holds the string of a special token that cannot be written as letters."""
        beside = [] if group.rationale is None else [self.held(group.rationale.text)]
        return bool(self._unwritable) and any(
            int(place) in self._unwritable for text in (*self._renderings(group), *beside)
            for place in _HELD.findall(text))

    @cached_property
    def _unwritable(self) -> set[int]:
        """Places in `_specials`; hardly any tokenizer has one."""
        return {i for i, name in enumerate(self._specials) if self._letters(name, False) is None}

    def _pieces(self, text: str, within: bool = False) -> list[int]:
        """The ids of a rendering in which strings of special tokens are held."""
        found: list[int] = []
        for i, piece in enumerate(_HELD.split(text)):
            if i % 2:
                letters = self._letters(name := self._specials[int(piece)], within or bool(found))
                if letters is None:
                    raise UserError(f"the text holds {name!r}, a special token that this tokenizer cannot write as "
                                    "plain text; take it out of the data")
                found += letters
            elif piece:
                found += self._piece(piece, within or bool(found))
        return found

    def _letters(self, name: str, within: bool) -> list[int] | None:
        """The string of a special token as the letters it is made of; None where the tokenizer knows no such."""
        for parts in ((name,), (name[:1], name[1:])):  # in two where the tokenizer does not mark the token as special
            found = [token for i, part in enumerate(parts) if part
                     for token in self._piece(part, within or i > 0, split_special_tokens=True)]
            if not set(found) & (self._special_ids | {*self._marks}) - {self.tokenizer.unk_token_id}:
                return found
        return None

    def _piece(self, text: str, within: bool, **options: bool) -> list[int]:
        """The ids of a text; within: it goes on from another, so the blank that SentencePiece puts before a text is
        left out. A newline in front takes that blank.
        """
        def ids(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

        head = ids("\n") if within else []
        if head and str(self.tokenizer.convert_ids_to_tokens(head[0])).startswith(_BLANK):
            both = ids("\n" + text)
            if both[: len(head)] == head:
                return both[len(head):]
        return ids(text)

    @cached_property
    def _special_ids(self) -> set[int]:
        """Marked as special, or special by role."""
        added = self.tokenizer.added_tokens_decoder
        marked = {i for i, token in added.items() if token.special}
        return {*self.tokenizer.all_special_ids, *marked, *(i for i in self.stop_ids if i in added)}

    @cached_property
    def _marks(self) -> dict[int, str]:
        """Tokens that the template writes, or looks for, beside the special ones."""
        template = str(self.tokenizer.chat_template)
        return {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items()
                if i not in self._special_ids and token.content in template and _MARK.fullmatch(token.content)}

    @cached_property
    def _specials(self) -> list[str]:
        """The strings of all special tokens and marks, longest first, and the place holders' own characters."""
        added = self.tokenizer.added_tokens_decoder
        names = {added[i].content for i in self._special_ids if i in added}
        every = {*self.tokenizer.all_special_tokens, *names, *self._marks.values(), _OPEN, _CLOSE}
        return sorted(every, key=lambda t: (-len(t), t))

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Of what is held in every text, and in what is typed."""
        own = [name for name in self._specials if name not in {*self._marks.values()}]
        return re.compile("|".join(map(re.escape, own))), re.compile("|".join(map(re.escape, self._specials)))

    def held(self, text: str, typed: bool = False) -> str:
        """Somebody's text, with a place holder for every string of a special token; typed: and for every mark, which in
        answers and system turns is meant.
        """
        return self._patterns[typed].sub(lambda m: f"{_OPEN}{self._specials.index(m.group())}{_CLOSE}", text)

    def shown(self, text: str) -> str:
        return _HELD.sub(lambda m: self._specials[int(m.group(1))], text)


def _further(fields: str) -> dict[str, Any]:
    """A record's further fields, which most have none of."""
    return json.loads(fields) if fields else {}


def date_of(tokenizer: Any) -> datetime.datetime:
    """The date its chat template is told: the one in its tokenizer_config.json, else DATE."""
    return datetime.datetime.fromisoformat(tokenizer.init_kwargs.get(DATE_KEY, DATE))


def _without(group: Group, name: str) -> Group:
    """The group without a field of its turns, or a variable of the template."""
    def cut(text: str) -> str:
        return json.dumps({key: value for key, value in json.loads(text or "{}").items() if key != name})

    return replace(group, template=cut(group.template), messages=tuple(replace(m, more=cut(m.more)) for m in (
        group.messages)), completions=tuple(replace(c, more=cut(c.more)) for c in group.completions))


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every system turn at the head of the user turn behind it, which is where such families are told to put it; at the
    end of the user turn before it where an answer or nothing is behind.
    """
    made, waiting = list[dict[str, Any]](), list[dict[str, Any]]()
    for turn in messages:
        if turn["role"] == "system":
            waiting.append(turn)
            continue
        if waiting and turn["role"] == "assistant" and made and made[-1]["role"] == "user":
            made[-1] = _joined(made[-1], [made[-1], *waiting])
        elif waiting:
            turn = _joined(turn, [*waiting, turn])
        waiting = []
        made.append(turn)
    if waiting and made and made[-1]["role"] == "user":
        return [*made[:-1], _joined(made[-1], [made[-1], *waiting])]
    return [*made, *waiting]


def _joined(into: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    return {**into, "content": "\n\n".join(turn["content"] for turn in turns if turn["content"])}
