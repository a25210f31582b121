"""The README.md of an exported model: what it was trained on and how, what was measured, which bytes it came from."""

import re
from pathlib import Path
from typing import Any

from flows.run_models import Model
from pipeline import __version__, markdown, store
from pipeline.config import flat

_MEASURED = {"win_rate": "win rate against the baseline", "win_rate_low": "its 95 % interval, low",
             "win_rate_high": "its 95 % interval, high", "reward_mean": "mean reward of samples",
             "margin": "mean margin of pairs", "length": "answer length in tokens", "truncated": "share of answers cut"}
_OF_THE_MACHINE = ("workspace=", "hardware", "engine", "tracking", "notify")  # words that say where and how it ran
# A place on this machine inside a word: from the root, a home or a folder beside. No part of a name or an address.
_PLACE = re.compile(r"""(?<![\w.~/-])(?:file://)?(?:~[\w.-]*|\.\.?)?/(?=[^\s/])[^,\[\]{}"'\n]*""")
Lineage = list[tuple[dict[str, Any], store.Artifact]]


def card(model: Model, lineage: Lineage, numbers: dict[str, Any], adapter: bool, dtype: str | None) -> str:
    """Markdown with the hub's header. Paths of this machine are shortened to their last part."""
    assert model.run is not None and model.step is not None
    choices = model.run.config["choices"]
    title = f"{model.run.name}: {model.step['name']}"
    made = "A reward model" if model.step["stage"] == "train_reward" else "A language model"
    made = "A LoRA adapter" if adapter else made
    library = "peft" if adapter else "transformers"
    header = ["---", f"library_name: {library}", "tags: [alignloop, preference-alignment]", "---"]
    intro = (f"{made} made by alignloop {__version__}: step `{model.step['name']}` of a run of recipe "
             f"`{choices.get('recipe', '')}`"
             + (f", weights rounded to {dtype}." if dtype else "."))
    words = " ".join(_public_word(word) for word in model.run.overrides if not word.startswith(_OF_THE_MACHINE))
    path = model.run.config["model"].get("path")
    base = f"Base model: `{choices.get('model', 'tiny')}`" + (f" from `{_public(path)}`." if path else ".")
    parts = ["\n".join(header), f"# {title}", intro, "## Data", _data(model, lineage), "## Recipe", base,
             f"Command: `align run {words}`", *_recipe(lineage)]
    measured = [[what, f"{numbers[name]:.4g}"] for name, what in _MEASURED.items() if numbers.get(name) is not None]
    counts = [[name.replace("_", " "), f"{value:,.6g}"] for name, value in lineage[-1][1].manifest["counts"].items()]
    parts += ["## Numbers", markdown.table({"number": markdown.LEFT, "value": markdown.RIGHT}, [*measured, *counts]),
              "## Lineage", "Every step that went into it, with the SHA-256 digest of what it wrote.",
              _lineage(lineage)]
    return "\n\n".join(parts) + "\n"


def _data(model: Model, lineage: Lineage) -> str:
    assert model.run is not None
    name = model.run.config["choices"].get("data", "minifarm")
    root = model.run.config["data"].get("root")
    lines = [f"`data={name}`" + (f" from `{Path(str(root)).name}`" if root else "")]
    for step, artifact in lineage:
        if step["stage"] in ("import_data", "tokenize"):
            counts = ", ".join(f"{k.replace('_', ' ')} {v:,.6g}" for k, v in artifact.manifest["counts"].items())
            dropped = (f"; dropped: {reason} {number}" for reason, number in artifact.manifest["dropped"].items())
            lines.append(f"- {step['name']}: {counts}" + "".join(dropped))
    return "\n".join(lines)


def _recipe(lineage: Lineage) -> list[str]:
    """The settings of every step that trained."""
    parts = []
    for step, artifact in lineage:
        if step["stage"] in ("sft", "train_reward", "train_preference"):
            rows = [[f"`{k}`", f"`{_public(v)}`"] for k, v in flat(artifact.manifest["settings"]).items()]
            parts += [f"### {step['name']}", markdown.table({"setting": markdown.LEFT, "value": markdown.LEFT}, rows)]
    return parts


def _lineage(lineage: Lineage) -> str:
    columns = dict.fromkeys(("step", "stage", "key", "digest", "made with"), markdown.LEFT)
    rows = []
    for step, artifact in lineage:
        versions = " ".join(f"{k} {v}" for k, v in sorted(artifact.manifest.get("versions", {}).items()))
        rows.append([step["name"], step["stage"], artifact.key, artifact.digest(), versions])
    return markdown.table(columns, rows)


def _public_word(word: str) -> str:
    key, equals, value = word.partition("=")
    return f"{key}{equals}{_public(value)}"


def _public(value: Any) -> str:
    """A setting without where things are on this machine, at any depth of lists and mappings."""
    return _PLACE.sub(lambda found: Path(found.group()).name, str(value))
