"""Published families, small, through a whole loop: the cells of its column in docs/models.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flows.loops import run
from tests.lm import families
from tests.lm.families import FAMILIES, LOOP

pytestmark = [pytest.mark.slow, pytest.mark.long]
SMALL = ["trainer=scratch", "model.max_prompt_tokens=150", "model.max_completion_tokens=40", "sampling.max_tokens=24",
         "sampling.prompts_per_iteration=12", "evaluation.sampling.n=1", "trainer.sft.epochs=6",
         "trainer.sft.batch_size=8", "trainer.reward.epochs=1", "trainer.preference.epochs=1",
         "trainer.preference.batch_size=8", "hardware=cpu", "hardware.training.threads=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Numbers to say, in every split; a third of the prompts stand behind an earlier turn."""
    folder = tmp_path_factory.mktemp("world")
    for split, number in (("sft", 40), ("pref", 24), ("unlabeled", 24), ("eval.test", 6)):
        rows = []
        for i in range(number):
            talk = [{"role": "user", "content": f"Say {i % 7}, please, {split} {i}."}]
            if i % 3 == 2:
                talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, *talk]
            good, bad = ([{"role": "assistant", "content": text}] for text in (f"It is {i % 7}.", "No idea."))
            rows.append({"sft": {"messages": [*talk, *good]}, "pref": {"prompt": talk, "chosen": good, "rejected": bad}
                         }.get(split, {"prompt": talk}))
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_round_the_loop(name: str, world: Path, tmp_path: Path, record_property):
    """Two iterations: the second policy learns from what the first one sampled and a reward model scored."""
    record_property(LOOP, name)
    chosen = FAMILIES[name].chat_template
    words = ["recipe=iterative_dpo", "iterations=2", "engine=transformers", "data=jsonl", f"data.root={world}",
             "model=path", f"model.path={families.make(name, tmp_path / 'published')}", *SMALL,
             *([] if chosen is None else [f"model.chat_template={chosen}"])]
    done = run(words, tmp_path / "workspace", name, "report[2]")
    assert done["train[2]"].manifest["counts"]["steps"] > 0
    assert done["train[2]"].manifest["counts"]["from_input_1"] > 0, "groups of its own samples"
    assert len({done[step].digest("model") for step in ("sft", "train[1]", "train[2]")}) == 3
    assert (done["report[2]"].path / "comparison.json").is_file()
