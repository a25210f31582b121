"""The score that a run optimises: its name, and whether a model gives it or a rule."""

from collections.abc import Mapping
from typing import Any

USUAL = "reward"  # of records that do not say it
_MODELS = ("dropout", "heads", "implicit", "likelihood", "model", "pairwise", "served")  # of pipeline.rewards


def name_of(config: Mapping[str, Any]) -> str:
    return str(_settings(config).get("name") or USUAL)


def heading(config: Mapping[str, Any]) -> str:
    """Of a win rate by it: "learned", or "reward" where a rule, a judge or a module of the user's scores."""
    module = (_settings(config).get("reward") or {}).get("module")
    return "learned" if module is None or str(module).rpartition(".")[2] in _MODELS else "reward"


def count_of(config: Mapping[str, Any]) -> str:
    """The count of `evaluate` that is the win rate by it; not there where it is the judge."""
    return f"win_rate_{name_of(config)}"


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the stage that scores; {} in a record that has none."""
    return ((config.get("stage") or {}).get("score") or {}).get("settings") or {}
