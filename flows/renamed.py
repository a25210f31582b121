"""Keys and names that were others once: a user who types one is told the new one, an older run's is translated."""

from pipeline.runs import MOVED

KEYS = {"stage.build_groups.settings.filters": "filters", "stage.train_preference.settings.score": "train.score",
        "stage.merge.settings.weights": "train.weights", "stage.weigh_prompts.active": "train.weigh_prompts",
        "stage.score.settings.name": "reward.name", "stage.score.settings.also": "reward.also"}
NEVER = {"model.trust_remote_code": "code that comes with a model is never run (docs/decisions/018); take a model of a "
         "family that transformers knows"}
STEPS = {"restart": "from_sft", "sampled": "from_sft_sampled", "continued": "from_previous"}  # files of conf/steps


def renamed(key: str) -> str:
    """The key of today: `filters.ties` for `stage.build_groups.settings.filters.ties`, others as they are."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old):]
    return key


def translated(override: str) -> str:
    """A stored `key=value` with the key of today, and a module by its name of today."""
    key, equals, value = override.partition("=")
    return f"{renamed(key)}{equals}{MOVED.get(value, value)}"


def problems_of_steps(where: str, names: list[str]) -> list[str]:
    """A message for every file of conf/steps in `names` that bears another name now."""
    return [f"{where}: the steps {name} are now {STEPS[name]}" for name in names if name in STEPS]
