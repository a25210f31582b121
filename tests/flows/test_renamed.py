"""A run made when keys had other names: its overrides are translated; what cannot go on says how to start anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows.compose import compose
from flows.prepare import prepare
from flows.renamed import KEYS, renamed, translated
from flows.settings import get
from pipeline.errors import UserError

# As the code of 2c8cd97 wrote it: recipe=iterative_dpo objective=upo, filters and the score by their old keys.
RECORD = Path(__file__).parent / "old_run.json"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "run.json").write_text(RECORD.read_text())
    return tmp_path


@pytest.mark.parametrize("typed", [[], ["filters.length_debias=within"]])
def test_an_older_run_with_steps_of_its_own_says_how_to_start_it_anew(workspace: Path, typed: list[str]) -> None:
    """Its recipe merged tables in a stage that is gone: one message, with words that work as they stand."""
    with pytest.raises(UserError) as caught:
        prepare(["run=old", f"workspace={workspace}", *typed])
    (said,) = caught.value.problems
    assert "'old'" in said and "no module 'pipeline.stages.merge'" in said
    words = said.splitlines()[-1].split()[2:]
    assert {"run=old-2", f"workspace={workspace}", "filters.length_debias=pooled"} <= set(words)
    prepared = prepare(words)
    assert prepared.run.name == "old-2" and "filters.length_debias=pooled" in prepared.run.overrides


def test_every_old_key_leads_to_one_that_is_there() -> None:
    config = compose(["recipe=iterative_dpo"]).config
    assert [new for new in KEYS.values() if get(config, new) is dataclasses.MISSING] == []


def test_keys_are_renamed_whole_or_as_the_beginning_of_one() -> None:
    assert renamed("stage.build_groups.settings.filters.ties") == "filters.ties"
    assert renamed("stage.train_preference.settings.scores") == "stage.train_preference.settings.scores"
    assert translated("stage.weigh_prompts.active=true") == "train.weigh_prompts=true"
    assert translated("objective=dpo") == "objective=dpo"
    assert translated("negatives.module=pipeline.selection.mc") == "negatives.module=pipeline.negatives.mc"
