"""Talking to a model folder, a run's or anybody's: messages in, text out. transformers alone, so it starts at once.

The prompt is rendered as in training, by the folder's own template; an answer ends where the model's answers end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from pipeline.engines.engine import FACTS, Request, adapter_base
from pipeline.engines.transformers import sampling
from pipeline.engines.transformers.engine import Engine, Settings
from pipeline.errors import UserError
from pipeline.lm import folders
from pipeline.lm.probe import stop_candidates
from pipeline.lm.settings import ModelRuntime
from pipeline.lm.template import Encoder, turn_end_id
from pipeline.records import Group, Message


@dataclass(frozen=True)
class Reply:
    """One answer. `tokens` counts the id that ends it."""

    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Talker:
    """A loaded model with its template."""

    network: Any
    encoder: Encoder
    context_length: int | None

    def request(
        self, name: str, messages: Sequence[Message], max_tokens: int, temperature: float, seed: int
    ) -> Request:
        """What is asked of the model, cut to the room its context leaves. Raises UserError where there is none left, or
        the template refuses the conversation.
        """
        ids = self.encoder.encode([Group(name, tuple(messages))])[0].prompt_ids
        room = max_tokens if self.context_length is None else min(max_tokens, self.context_length - len(ids))
        if room < 1:
            raise UserError(f"{name}: {len(ids)} tokens, with the answer the model's context holds "
                            f"{self.context_length}")
        return Request(ids, 1, temperature, 1.0, 0, room, self.encoder.stop_ids, seed)

    def stream(self, request: Request) -> Iterator[str]:
        """The answer's text, piece by piece, as it is sampled; special tokens are left out."""
        decoder = DecodeStream(skip_special_tokens=True)
        for token in sampling.stream(self.network, request):
            yield decoder.step(self.encoder.tokenizer.backend_tokenizer, token) or ""

    def replies(self, requests: Sequence[Request]) -> list[Reply]:
        """The answers to several prompts, in order, in batches."""
        engine = Engine(self.network, self._text, Settings(batch_size=16), self.context_length or 2**31)
        made = []
        for answer in engine.sample(requests):
            if answer.refused:
                raise UserError(answer.refused)
            sample = answer.samples[0]
            made.append(Reply(sample.text, len(sample.token_ids), sample.finish_reason))
        return made

    def _text(self, ids: Any) -> str:
        return str(self.encoder.tokenizer.decode(list(ids), skip_special_tokens=True))


def opened(folder: Path, dtype: str) -> Talker:
    """Load a model folder, or a LoRA adapter on its base, where torch finds a device for it. Raises UserError for a
    folder that is none, or that has no chat template.
    """
    place = adapter_base(folder) or folder
    if not (place / FACTS).is_file():
        raise UserError(f"{place}: no {FACTS}, expected a Hugging Face model folder")
    device = folders.prepare_machine(ModelRuntime())
    tokenizer = folders.load_tokenizer(place)
    if tokenizer.chat_template is None:
        raise UserError(f"{place}: no chat template, so nothing says how its turns are written; put the template that "
                        "it was trained with there as chat_template.jinja")
    # the list of a folder that no run has made may be absent, or in part
    stops = stop_candidates(place, tokenizer, turn_end_id(tokenizer))
    network = sampling.load(folder, dtype, device)
    return Talker(network, Encoder(tokenizer, tuple(stops)), folders.context_length(network))


def answers(
    folder: Path, dtype: str, conversations: Sequence[tuple[str, Sequence[Message]]], max_tokens: int,
    temperature: float, seed: int,
) -> list[Reply]:
    """What a folder's model answers to conversations (name, messages). Raises UserError naming every one it refuses."""
    talker, problems, requests = opened(folder, dtype), list[str](), list[Request]()
    for i, (name, messages) in enumerate(conversations):
        try:
            requests.append(talker.request(name, messages, max_tokens, temperature, seed + i))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError.of(problems, 5)
    return talker.replies(requests)
