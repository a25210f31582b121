"""A run made when keys had other names opens, unchanged: its overrides are translated, its steps are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from flows.prepare import prepare
from flows.renamed import KEYS, renamed, translated
from flows.settings import get
from pipeline import plan, runs
from pipeline.errors import UserError

# As the code of 2c8cd97 wrote it: recipe=iterative_dpo objective=upo, filters and the score by their old keys.
RECORD = Path(__file__).parent / "old_run.json"
# Of each step's settings as that code built them.
DIGESTS = {
    "data": "064b3cb3c4e9", "tokens": "62daf3215f63", "sft": "3f7ee25a35e3", "reward": "822e29047df8",
    "generate[1]": "b4a03a83468d", "score[1]": "fdc75682b53f", "pairs[1]": "9c1a1b3cf3a8", "pairs[2]": "0824ac464868",
    "merge[2]": "02c0af3bd587", "previous[2]": "543aa2b176a8", "train[2]": "f11196a852cd", "answers[2]": "b4a03a83468d",
    "answer_scores[2]": "875d3d275dfe", "evaluate[2]": "fe087c6b542d", "diagnose[2]": "8d3f321092a4",
    "report[2]": "df45f952bf22",
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "run.json").write_text(RECORD.read_text())
    return tmp_path


def digest(step: plan.Step) -> str:
    text = json.dumps(dataclasses.asdict(step.settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_an_older_run_goes_on_with_the_same_steps(workspace: Path) -> None:
    prepared = prepare(["run=old", f"workspace={workspace}"])
    steps = {step.name: step for step in prepared.steps}
    assert {name: digest(steps[name]) for name in DIGESTS} == DIGESTS
    assert "filters.length_debias=pooled" in prepared.run.overrides
    assert prepared.run.step_overrides == {"pairs[1]": ["filters.min_margin=0.5"]}
    runs.save(workspace, prepared.run)
    assert [step.name for step in prepare(["run=old", f"workspace={workspace}"]).steps] == [*steps]


def test_what_the_older_run_had_otherwise_is_named_by_the_key_of_today(workspace: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare(["run=old", f"workspace={workspace}", "filters.length_debias=within"])
    assert "filters.length_debias: 'pooled' in the run, 'within' now" in str(caught.value)


def test_every_old_key_leads_to_one_that_is_there(workspace: Path) -> None:
    config = prepare(["run=old", f"workspace={workspace}"]).run.config
    for old, new in KEYS.items():
        assert get(config, new) == get(config, old)


def test_keys_are_renamed_whole_or_as_the_beginning_of_one() -> None:
    assert renamed("stage.build_groups.settings.filters.ties") == "filters.ties"
    assert renamed("stage.train_preference.settings.scores") == "stage.train_preference.settings.scores"
    assert translated("stage.weigh_prompts.active=true") == "train.weigh_prompts=true"
    assert translated("objective=dpo") == "objective=dpo"
