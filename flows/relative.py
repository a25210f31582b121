"""Scores that say how an answer does among its prompt's own samples: no two tables can be compared by them."""

from typing import Any

from pipeline.config import load_part, part_problems
from pipeline.rewards.contract import Scorer


def problems(config: dict[str, Any]) -> list[str]:
    """Of an evaluation that such a score decides: every policy's answers win half of the comparisons among themselves,
    so its win rate would be 50 % whatever was learned.
    """
    evaluation, name = config["evaluation"], config["evaluation"]["score"]
    own = config["stage"]["score"]["settings"]["name"]
    spec = config["reward"]["scorer"] if name == own else (evaluation["scoring"].get("also") or {}).get(name)
    if evaluation["judge"] or evaluation["judgments"] or spec is None or part_problems(spec, "reward", Scorer):
        return []
    part = load_part(spec, "reward", Scorer)
    if not part.of(part.plugin.relative):
        return []
    return [f"evaluation.score: {name!r} is how an answer does among its own prompt's samples ({part.name}), which "
            "compares no policy with its baseline; let the judge do so: evaluation=judged (each answer against the "
            "baseline's, in both orders), or name another score"]
