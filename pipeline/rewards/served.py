"""Score with a reward model that a vLLM pooling server holds (`vllm serve FOLDER --runner pooling --convert classify`).

Asked over /pooling, one conversation with its answer a call, many at a time; the server renders it with its own chat
template. Its raw output is taken, so that the score is that of pipeline.rewards.model on the same folder. Retries,
limits, and answers that are kept: as for a judge (docs/rewards.md).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Group
from pipeline.rewards.contract import Desk, Limits, ScoreGroups, Scorer
from pipeline.rewards.judges import client
from pipeline.rewards.judges.asking import Asker, Program
from pipeline.rewards.judges.kept import Reply

_REQUEST = {"task": "classify", "use_activation": False, "add_generation_prompt": False, "add_special_tokens": False}


@dataclass(frozen=True)
class Settings:
    """Whom to ask."""

    model: str = ""
    """The name under which the server knows the model."""

    base_url: str = "http://localhost:8000"
    """The server's address; /pooling lies there."""

    key: str | None = "ALIGNLOOP_JUDGE_KEY"
    """The environment variable that holds the server's key; null: none is sent."""

    weights: tuple[float, ...] = (1.0,)
    """Of the model's outputs, in order."""

    request: dict[str, Any] = field(default_factory=lambda: dict(_REQUEST))
    """What goes into the request beside model and messages; null leaves a name out."""

    def check(self) -> list[tuple[str, str]]:
        return [] if self.model else [("model", "'', expected the name under which the server knows the model")]


def endpoint(settings: Settings) -> client.Endpoint:
    return client.Endpoint(settings.base_url, settings.key, settings.model, "pooling", read)


def read(answer: dict[str, Any]) -> Reply:
    """The outputs in an answer of /pooling, as JSON. Raises LookupError, TypeError where there are none."""
    (one,) = answer["data"]
    used = int((answer.get("usage") or {}).get("prompt_tokens") or 0)
    return Reply(json.dumps([float(value) for value in one["data"]]), "stop", used)


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. What the server refuses (too long for it) scores NaN."""
    asker = Asker(endpoint(settings), settings.request, desk)

    def program(group: Group) -> Program[list[float]]:
        before = [{"role": m.role, "content": m.content} for m in group.messages]
        answers = yield [[*before, {"role": "assistant", "content": c.text}] for c in group.completions]
        rows = [{"id": group.id, "k": k, "why": one} for k, one in enumerate(answers) if isinstance(one, str)]
        desk.rows.extend(rows)
        return [math.nan if isinstance(one, str) else mixed(json.loads(one.text), settings) for one in answers]

    def score(groups: Sequence[Group]) -> list[list[float]]:
        return asker.run([program(group) for group in groups])

    return score


def mixed(outputs: Sequence[float], settings: Settings) -> float:
    if len(outputs) != len(settings.weights):
        raise UserError(f"reward: {settings.model} at {settings.base_url} gives {len(outputs)} outputs, expected "
                        f"{len(settings.weights)}; set reward.scorer.weights, one for each")
    return sum(weight * value for weight, value in zip(settings.weights, outputs, strict=True))


def check(settings: Settings, limits: Limits) -> list[tuple[str, str]]:
    return client.problems(endpoint(settings))


SCORER = Scorer(Settings, scorer, desk=True, check=check)
