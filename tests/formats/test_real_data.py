"""The formats on published data sets: needs the folder of them in ALIGNLOOP_TEST_DATA."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import conf
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.formats import files
from pipeline.formats.splits import SPLITS, Imported, message_problem, prompt_key
from pipeline.records import Group, target_of
from pipeline.stages import import_data
from tests import given


def data(name: str) -> Path:
    folder = os.environ.get("ALIGNLOOP_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNLOOP_TEST_DATA is not set: no folder with real data sets")
    if not (Path(folder) / name).is_dir():
        pytest.skip(f"no {name} in ALIGNLOOP_TEST_DATA")
    return Path(folder) / name


def settings(name: str, **changes: object) -> import_data.Settings:
    """Of `data=NAME` with the built-in model, which brings the most rows of each split."""
    root = Path(conf.__file__).parent
    path, tiny = root / "data" / f"{name}.yaml", yaml.safe_load((root / "model" / "tiny.yaml").read_text())
    node = yaml.safe_load(path.read_text()) if path.is_file() else {"format": {"module": f"pipeline.formats.{name}"}}
    node = OmegaConf.to_container(OmegaConf.create({"model": tiny, "data": node}), resolve=True)["data"]
    made: import_data.Settings = build(import_data.Settings, {"format": {**node["format"], **changes}})
    return made


def load(name: str, root: Path, **changes: object) -> Imported:
    part = import_data._format(settings(name, **changes))
    made: Imported = part.plugin.read(root, part.settings)
    assert sorted(made.counts) == sorted(SPLITS)
    return made


def sizes(made: Imported) -> dict[str, int]:
    return {split: len(groups) for split, groups in given.splits(made).items()}


def check_groups(made: Imported) -> None:
    """What every importer promises: K per split, proper turns, unique ids, no prompt in two splits."""
    for split, wanted in {"sft": {1}, "pref": {2}, "unlabeled": {0}, "eval": {0}}.items():
        groups = given.splits(made)[split]
        assert {len(g.completions) for g in groups} <= wanted
        assert len({g.id for g in groups}) == len(groups)
        assert not [g.id for g in groups if message_problem(g.messages)]
        assert all(c.text.strip() for g in groups for c in g.completions)
    keys = [{prompt_key(g) for g in groups} for groups in given.splits(made).values()]
    assert sum(map(len, keys)) == len(set().union(*keys))


def contents(group: Group) -> list[str]:
    return [m.content for m in group.messages] + [c.text for c in group.completions]


def test_hh() -> None:
    made = load("hh", data("hh-rlhf"))
    check_groups(made)
    assert sizes(made) == {"sft": 1200, "pref": 1200, "unlabeled": 2387, "eval": 96}
    texts = [text for groups in given.splits(made).values() for g in groups for text in contents(g)]
    assert not [t for t in texts if t != t.strip() or re.search(r"\b(Human|Assistant):", t)]
    depths = {len(g.messages) for g in given.splits(made)["pref"]}
    assert {1, 3, 5, 7} <= depths
    # Of 6,270 rows about 1.6 % are irregular; were it much more, the reader would be losing good ones.
    irregular = sum(n for reason, n in made.dropped.items() if "limits" not in reason and "split" not in reason)
    assert 60 < irregular < 130


def test_hh_takes_the_texts_as_they_are() -> None:
    """The first pair of helpful-base.train, read by hand, with the splits set so that every pair stays a pair."""
    shares = {"sft": 1e-9, "unlabeled": 0, "eval": 0}
    made = load("hh", data("hh-rlhf") / "helpful-base.train.jsonl.gz", limits={}, shares=shares)
    group = given.splits(made)["pref"][0]
    assert [m.content for m in group.messages] == ["Is climate change raising temperatures above their normal levels?"]
    assert group.completions[0].text.startswith("A small percentage of the models used by climate scientists expect")
    assert group.completions[1].text == "Yes."


def test_llamafactory_has_demonstrations_and_pairs() -> None:
    made = load("alpaca", data("llamafactory-demos"))
    check_groups(made)
    assert sum(n for split, n in sizes(made).items() if split != "eval") > 850
    assert sizes(made)["pref"] > 190
    assert {m.role for g in given.splits(made)["pref"] for m in g.messages} == {"system", "user", "assistant"}
    assert made.dropped["labelled answer (read by data=jsonl)"] == 233


@pytest.mark.parametrize("name, rows", [("self-instruct-seeds", 133), ("gpteacher", 2800)])
def test_demonstrations_without_pairs(name: str, rows: int) -> None:
    made = load("alpaca", data(name), limits={})
    check_groups(made)
    assert sum(sizes(made).values()) + sum(made.dropped.values()) == rows
    assert sizes(made)["pref"] == 0
    assert min(sizes(made)[split] for split in ("sft", "unlabeled", "eval")) > 0
    runtime = import_data.Runtime(str(data(name)))
    preferences = import_data.Settings(settings("alpaca").format, require=("sft", "pref"))
    (problem,) = import_data.check(preferences, runtime)
    assert "no preference pairs" in problem
    assert "recipe=sft needs none" in problem


def test_ultrafeedback_has_rough_edges_that_are_told_then_left_out() -> None:
    """962 rows: 4 pairs of identical sides, 2 with an empty side."""
    root = data("ultrafeedback-binarized-sample")
    with pytest.raises(UserError) as caught:
        load("jsonl", root)
    assert len(caught.value.problems) == 6
    made = load("jsonl", root, identical="drop", empty="drop")
    check_groups(made)
    assert made.dropped == {"chosen and rejected are the same text": 4, "the answer is empty": 2}
    assert sum(sizes(made).values()) == 956


def test_unpaired_feedback() -> None:
    files = {"pref": "kto_en_demo.train.jsonl.gz", "eval": "kto_en_demo.test.jsonl.gz"}
    made = load("jsonl", data("llamafactory-demos"), **files, shares={"unlabeled": 0})
    assert {g.label for g in given.splits(made)["pref"]} == {True, False}
    assert {len(g.completions) for g in given.splits(made)["pref"]} == {1}
    assert sizes(made)["eval"] > 20


# What a run with everything gets of each folder by `data=files data.root=FOLDER`, and what its README counts.
FOLDERS = {
    "alpaca_eval": (4985, {"eval": 805}), "arc": (2279, {"unlabeled": 2000, "eval": 279}),
    "arena_hard": (1576, {"eval": 394}), "dolly-hhrlhf-sample": (811, {"sft": 230, "unlabeled": 469, "eval": 112}),
    "gpteacher": (2800, {"sft": 836, "unlabeled": 1664, "eval": 300}),
    "gsm8k": (4100, {"sft": 1010, "unlabeled": 1990, "eval": 600}),
    "hellaswag-sample": (826, {"unlabeled": 721, "eval": 105}),
    "hh-rlhf": (6270, {"sft": 1575, "pref": 1555, "unlabeled": 2389, "eval": 650}),
    "ifeval-single": (266, {"unlabeled": 258, "eval": 8}),
    "llamafactory-demos": (1261, {"sft": 256, "pref": 405, "unlabeled": 440, "eval": 144}),
    "llmbar": (343, {"sft": 78, "pref": 82, "unlabeled": 172, "eval": 11}), "mt_bench": (164, {"eval": 130}),
    "nectar-sample": (314, {"sft": 62, "pref": 69, "unlabeled": 141, "eval": 38}),
    "oasst-sample": (278, {"sft": 32, "pref": 79, "unlabeled": 180, "eval": 30}),
    "pandalm-testset": (799, {"sft": 142, "pref": 149, "unlabeled": 66, "eval": 1}),
    "self-instruct-seeds": (133, {"sft": 39, "unlabeled": 90, "eval": 4}),
    "text": (43482, {"sft": 3376, "unlabeled": 6736, "eval": 2213}),
    "ultrafeedback-binarized-sample": (962, {"sft": 189, "pref": 176, "unlabeled": 388, "eval": 93}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_is_read_whole(name: str) -> None:
    """Rows as its README counts them; what is kept and what is left out, by reason, are all of them."""
    rows, kept = FOLDERS[name]
    made = files.read(data(name), files.Settings())
    assert made.facts["rows"] == rows
    assert {split: number for split, number in made.counts.items() if number} == kept
    further = made.facts["further examples of a row"]
    assert rows + further == sum(made.counts.values()) + sum(made.dropped.values())
    assert (further > 0) == (name == "oasst-sample")


def test_shapes_of_real_rows_read_by_hand() -> None:
    """Nectar's seven answers by rank, UltraFeedback's scores, GSM8K's number, Dolly's instruction without its frame."""
    nectar = next(iter(given.splits(files.read(data("nectar-sample"), files.Settings()))["pref"]))
    ranks = [c.scores["given"] for c in nectar.completions]
    assert len(ranks) > 2 and ranks == sorted(ranks, reverse=True)
    scored = given.splits(files.read(data("ultrafeedback-binarized-sample"), files.Settings()))["pref"]
    assert all(g.completions[0].scores["given"] > g.completions[1].scores["given"] for g in scored)
    maths = given.splits(files.read(data("gsm8k"), files.Settings()))["eval"]
    assert all(re.fullmatch(r"-?[$]?[\d.]+%?", target_of(g).answer) for g in maths)  # type: ignore[union-attr]
    dolly = given.splits(files.read(data("dolly-hhrlhf-sample"), files.Settings()))["sft"]
    assert not [g.id for g in dolly if "###" in g.messages[0].content]
