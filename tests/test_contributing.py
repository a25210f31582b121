"""The five examples of CONTRIBUTING are complete: in a copy of the tree one run of all of them is planned, with no
other file touched, and each function gives the values worked out here."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipeline import tables
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context
from tests.objectives.batches import batch_of

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^```(?:py|yaml)\n# (\S+)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(),
                      flags=re.MULTILINE | re.DOTALL)
WORDS = ["recipe=counted", "objective=dpo_margin", "selection=best_median", "reward=words", "data=tsv",
         "engine=transformers", "sampling.prompts_per_iteration=30"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the five examples in it, and a file to read."""
    place = tmp_path_factory.mktemp("newcomer")
    for folder in ("pipeline", "flows", "conf"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in EXAMPLES:
        assert not (place / name).exists()
        (place / name).write_text(text)
    pairs = [f"question {i}\tgood {i}\tbad {i}\n" for i in range(40)]
    (place / "pairs.tsv").write_text("".join([*pairs, *(f"another {i}\n" for i in range(40))]))
    return place


def module(tree: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"newcomer_{Path(name).stem}", tree / name)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def align(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"})


def scored(*scores: float) -> Group:
    completions = tuple(Completion(text="w " * (i + 1), scores={"reward": s}) for i, s in enumerate(scores))
    return Group(id="p", messages=(Message("user", "q"),), completions=completions)


def test_one_run_of_all_five_is_planned(tree: Path):
    shown = align(tree, "plan", *WORDS, "data.root=pairs.tsv", "workspace=ws")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^words\[2\] +count_words .*generate\[2\]/groups", shown.stdout, flags=re.MULTILINE)
    assert not re.search(r"^reward ", shown.stdout, flags=re.MULTILINE)  # the scorer needs no reward model


def test_mistakes_in_them_are_told_all_at_once(tree: Path):
    shown = align(tree, "plan", *WORDS, "data.root=pairs.tsv", "workspace=ws", "objective.gama=1", "reward.wanted=3",
                  "sampling.n=2", "stage.count_words.settings.shortest=0")
    assert shown.returncode == 2
    for part in ("objective.gama: unknown key, objective has no 'gama' (did you mean gamma?)",
                 "reward.wanted: unknown key, reward has no 'wanted' (did you mean reward.scorer.wanted?)",
                 "stage.count_words.settings.shortest: 0 is out of range, expected 1 <= x"):
        assert part in shown.stderr


def test_the_objective(tree: Path):
    """h = (-1 + 2) - (-3 + 2) = 2, beta h - gamma = -0.3: the loss is log(1 + e^0.3)."""
    made = module(tree, "pipeline/objectives/dpo_margin.py")
    losses, metrics = made.loss(batch_of([[-1.0, -3.0]], [[-2.0, -2.0]]), made.Settings())
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(0.3))])
    assert torch.allclose(metrics["margin"], torch.tensor([0.2], dtype=torch.float64))


def test_the_rule(tree: Path):
    made = module(tree, "pipeline/selection/best_median.py")
    (pair,), why = made.select(scored(1.0, 3.0, 2.0, 0.0), made.Settings())
    assert [c.scores["reward"] for c in pair.completions] == [3.0, 2.0] and why == ""
    assert made.select(scored(1.0, 3.0), made.Settings()) == ([], "too_few_samples")


def test_the_scorer(tree: Path):
    made = module(tree, "pipeline/rewards/words.py")
    assert made.scorer(made.Settings(wanted=2))([scored(0, 0, 0)]) == [[-1, 0, -1]]


def test_the_format(tree: Path):
    made = module(tree, "pipeline/formats/tsv.py")
    found = made.read(tree / "pairs.tsv", made.Settings())
    assert sum(found.counts.values()) == 80 and found.counts["pref"] > 0
    group = next(group for split, group in found.groups() if split == "pref")
    assert [c.text.split()[0] for c in group.completions] == ["good", "bad"]
    (tree / "bad.tsv").write_text("p\tone\n")
    with pytest.raises(UserError, match=r"bad.tsv:1: 1 answers, expected 2 or none"):
        made.read(tree / "bad.tsv", made.Settings())


def test_the_stage(tree: Path, tmp_path: Path):
    made = module(tree, "pipeline/stages/count_words.py")
    tables.write(tmp_path / "groups", [scored(0, 0, 0)])
    made.run(Context(made.Settings(), None, {"groups": (tmp_path / "groups",)}, {}, tmp_path / "work", 0))
    assert json.loads((tmp_path / "work" / "out" / "words.json").read_text()) == [1, 2, 3]
