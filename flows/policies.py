"""Which model training starts from and which is its reference: the words `sft`, `start` and `reference`.

The files of conf/steps say $start and $reference; here these become references to steps, for all iterations or from
iterations on ({1: sft, 2: previous}). A reference that changes with the iteration also changes the log-probs of the
groups of earlier ones, so these are taken anew. With sft=none the model given stands where the SFT model would.
"""

import json
import re
from pathlib import Path
from typing import Any

from flows import replays, weekly
from pipeline.errors import nearest

MODELS = {
    "sft": "sft/model",
    "previous": "gate[i-1]/model | train[i-1]/model | sft/model",
    "ema": "train[i-1]/ema/model | sft/model",
}
ROLES = ("start", "reference")
_EMA = 0.99  # ours: about the last hundred steps
_TOKENIZER = "tokenizer.json"

Policy = str | dict[int, str]


def values_for(raw: dict[str, Any], given: dict[str, Any]) -> tuple[list[tuple[str, Any]], list[str]]:
    """What the words bring along, (key, value), and a remark on each. raw: the groups; given: keys set otherwise."""
    values, notes = list[tuple[str, Any]](), list[str]()
    words = {key: given.get(key, raw[key]) for key in ("sft", *ROLES)}
    if words["sft"] == "none":
        values.append(("data.require", [split for split in given.get("data.require", raw["data"].get("require")) or []
                                        if split != "sft"]))
        if "shares" in (raw["data"].get("format") or {}):
            values.append(("data.format.shares.sft", 0))
            notes.append("sft=none brings data.format.shares.sft=0: no pair is used up as a demonstration")
    averaged = [role for role in ROLES if "ema" in _by_iteration(words[role]).values()]
    if averaged and given.get("train.ema") is None:
        values.append(("train.ema", _EMA))
        notes.append(f"{averaged[0]}=ema brings train.ema={_EMA}")
    return [pair for pair in values if pair[0] not in given], notes


def apply(config: dict[str, Any]) -> list[str]:
    """Write the words into the recipe's steps, in place. Returns what is wrong with them."""
    problems = [*weekly.apply(config), *replays.apply(config)]
    weekly.join(config)
    recipe = config.get("recipe") or {}
    trains = any(isinstance(block, dict) and "train" in block for block in recipe.values())
    folders: dict[str, str] = {}
    roles = {role: _expressions(role, config[role], folders, problems) for role in ROLES}
    problems += _contradictions(config, trains, "sft" in (recipe.get("once") or {}), folders)
    if not trains:
        return problems
    for block in ("once", "each"):
        for node in (recipe.get(block) or {}).values():
            inputs = {name: roles[value[1:]] if value in ("$start", "$reference") else value
                      for name, value in (node.get("inputs") or {}).items()
                      if name != "optimizer" or config["train"]["keep_optimizer"]}
            node |= {"inputs": inputs} if inputs else {}
    if isinstance(roles["reference"], dict) or "[i-1]" in roles["reference"]:
        _follow(recipe)
    once, template = recipe.get("once") or {}, {} if config["model"].get("path") else {"chat_template": None}
    given = {name: {"stage": "init_model", "inputs": {"policy": "init/model"}, "runtime": {"path": folder},
                    "settings": {"arch": None, **template}} for folder, name in folders.items()}
    recipe["once"] = {**{name: once[name] for name in ("data", "init") if name in once}, **given, **once}
    if config["sft"] == "none" and "sft" in once:
        del recipe["once"]["sft"]
        config["recipe"] = _replaced(recipe)
    return problems


def _by_iteration(word: Any) -> dict[int, Any]:
    if not isinstance(word, dict):
        return {1: word}
    return {int(key): value for key, value in word.items() if str(key).isdigit()}  # others are told by their type


def _expressions(role: str, word: Policy, folders: dict[str, str], problems: list[str]) -> Any:
    """The references the word means, one text or one from each of several iterations on."""
    found = {}
    for iteration, name in sorted(_by_iteration(word).items()):
        where = f"{role}.{iteration}" if isinstance(word, dict) else role
        if name in MODELS:
            found[iteration] = MODELS[name]
        elif not isinstance(name, str) or not ("/" in name or Path(name).is_dir()):
            problems.append(f"{where}: {name!r}, expected {', '.join(MODELS)} or a model's folder"
                            f"{nearest(str(name), MODELS)}")
        elif not (place := Path(name).expanduser().resolve()).exists():
            problems.append(f"{where}: {name} is not there, expected a model's folder; one of the hub is fetched "
                            f"first: hf download ORG/NAME --local-dir DIR, then {role}=DIR")
        else:
            step = folders.setdefault(str(place), f"given_{chr(ord('a') + len(folders))}")
            found[iteration] = f"{step}/model"
    if not found or min(found) > 1:
        found[1] = MODELS["sft"]
    same = len(set(found.values())) == 1 and "[i-1]" not in next(iter(found.values()))
    return found[1] if same or not isinstance(word, dict) else dict(sorted(found.items()))


def _contradictions(config: dict[str, Any], trains: bool, fine_tunes: bool, folders: dict[str, str]) -> list[str]:
    problems, model = [], config["model"]
    if config["sft"] == "none" and not (trains and fine_tunes):
        problems.append("sft: none, but the steps of this run train nothing else or have no such step, expected train")
    elif config["sft"] == "none" and not model.get("path"):
        problems.append("sft: none starts from an instruct model, but this one is made from nothing; give one "
                        "(model=path model.path=DIR) or set sft=train")
    if not trains:
        problems += [f"{role}: {config[role]!r}, but the steps of this run train no policy" for role in ROLES
                     if config[role] != "sft"]
    averaged = [role for role in ROLES if "ema" in _by_iteration(config[role]).values()]
    if averaged and config["gate"]["active"] and config["gate"].get("action") == "previous":
        problems.append(f"{averaged[0]}: ema with gate=previous would go on from iterations that were set aside; set "
                        "gate=stop or gate=none")
    own = _vocabulary(Path(model.get("path") or "").expanduser())
    problems += [f"start or reference: {folder} has another tokenizer than {model['path']}, whose ids the groups "
                 "carry; give a model of the same family"
                 for folder in folders if own is not None and _vocabulary(Path(folder)) not in (None, own)]
    return problems


def _vocabulary(folder: Path) -> Any:
    """The ids of a folder's tokenizer.json; None where they do not lie there."""
    try:
        found = json.loads((folder / _TOKENIZER).read_text())
        return found["model"].get("vocab"), {token["content"]: token["id"] for token in found["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _follow(recipe: dict[str, Any]) -> None:
    """Take the reference's log-probs of everything an iteration trains on anew in that iteration."""
    for name in ("reference", "half_reference"):
        node = recipe["each"].get(name)
        train = recipe["each"].get({"reference": "train"}.get(name, "half"))
        if node is not None and train is not None:
            node.pop("from", None)
            node["inputs"] = {**node["inputs"], "groups": train["inputs"]["groups"],
                              "model": train["inputs"]["reference_model"]}
            train["inputs"] = {**train["inputs"], "reference": f"{name}[i]/logps"}
    (recipe.get("once") or {}).pop("pref_reference", None)


def _replaced(node: Any) -> Any:
    """The recipe with the model given where the SFT model stands."""
    if isinstance(node, str):
        return re.sub(r"\bsft/model\b", "init/model", node)
    if isinstance(node, list):
        return [_replaced(value) for value in node]
    return {key: _replaced(value) for key, value in node.items()} if isinstance(node, dict) else node
