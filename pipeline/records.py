"""The records every part speaks: a prompt and its completions, one row of every table.

One prompt with K completions covers every case (K = 0 prompts, 1 demonstrations, 2 pairs with the preferred
first, 1 + M ranked candidates with the preferred first), so there is one table schema, one tokeniser path, one
trainer. Nothing here imports more than the standard library.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

STOP = "stop"  # the completion ended by a stop token, which is its last token id
LENGTH = "length"  # the completion was cut at the token limit: no stop token
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    more: str = ""  # JSON object of further fields for the chat template: reasoning_content, tool_calls ...


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt.

    `token_ids` is empty until the text has been tokenised with the policy's template; from then on it is the truth
    and `text` its rendering. It ends with a stop id if and only if `finish_reason` is "stop".
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = STOP
    scores: dict[str, float] = field(default_factory=dict)  # by scorer name
    ref_logp: float | None = None  # sum over completion tokens under the reference, nats
    sample: int = 0  # index among the samples of this prompt
    temperature: float | None = None
    seed: int | None = None
    policy: str = ""  # output digest of the weights that wrote it; "" = the data set
    logprobs: tuple[float, ...] | None = None  # of each token under the policy that sampled it, nats; kept on request
    prompt_ids: tuple[int, ...] = ()  # its own prompt where it is not the group's: a rationale, an answer to a draft
    more: str = ""  # of the answer's turn, as Message.more


@dataclass(frozen=True)
class Group:
    """A prompt and its K completions: one row of every table."""

    id: str
    messages: tuple[Message, ...]
    completions: tuple[Completion, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    label: bool | None = None  # binary feedback on completion 0
    weight: float = 1.0
    dataset: str = ""
    iteration: int = 0  # 0 = from the data set, k = sampled in iteration k
    template: str = ""  # JSON object of what the chat template is told beside the messages: tools, enable_thinking ...
    rationale: Completion | None = None  # why completion 0 is better; its own prompt asks (pipeline.lm.rationales)
    target: str = ""  # JSON object of what an answer is checked against: a Target's fields that are there


@dataclass(frozen=True)
class Target:
    """What a rule may check an answer to a prompt against; the row of the data set says which."""

    answer: str = ""  # the right answer, as short as the data have it: "240", "B"
    choices: tuple[str, ...] = ()  # of a multiple choice, in the prompt as A, B, C ...; `answer` is the letter
    instructions: tuple[dict[str, Any], ...] = ()  # IFEval: {"id": "punctuation:no_comma", "kwargs": {...}}
    tests: tuple[str, ...] = ()  # statements that raise where the answer's code is wrong
    setup: str = ""  # code that runs before the tests


def target_of(group: Group) -> Target | None:
    """What an answer to the group's prompt is checked against; None where its row said nothing."""
    if not group.target:
        return None
    found = json.loads(group.target)
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return Target(**fields)


def as_json(target: Target) -> str:
    """A target as `Group.target` holds it: without the fields that say nothing."""
    return json.dumps({key: value for key, value in asdict(target).items() if value}, ensure_ascii=False,
                      sort_keys=True)
