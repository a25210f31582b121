"""`align options` says everything that can be set, in 80 columns and without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows import settings
from flows.compose import CONF
from flows.options import WIDTH, Setting, blocks, first_sentence, settings_of, show, stage_settings, top_settings
from pipeline.errors import UserError

GROUPS = [group for group in settings.groups(CONF) if group != "recipe"]
OPTIONS = [(group, option) for group in GROUPS for option in settings.options(CONF, group)]


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert show(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_setting_has_type_range_default_and_source() -> None:
    beta, smoothing = settings_of("objective", "dpo")
    assert beta == Setting("objective.beta", "a number, 0.0 < x", 0.1,
                           "Strength of the pull to the reference, 1/nats. Paper: 0.1 (0.5 for summarisation); 0.01 "
                           "for larger models.")
    assert (smoothing.key, smoothing.allowed, smoothing.value) == (
        "objective.label_smoothing", "a number, 0.0 <= x < 0.5", 0.0)


def test_a_file_adds_its_value_and_its_reason() -> None:
    players = next(item for item in settings_of("objective", "nash_md") if item.key == "objective.players")
    assert (players.value, players.allowed) == ("both", "one of first, both")
    assert "no recipe samples from the paper's mixture" in players.text


def test_a_key_that_feeds_a_stage_is_explained_by_the_stage() -> None:
    found = {item.key: item for item in settings_of("sampling", "two")}
    assert found["sampling.temperatures"].value == [1.0]
    assert found["sampling.max_tokens"] == Setting(
        "sampling.max_tokens", "a whole number, 1 <= x", 300, "per completion, its stop token included")
    assert {item.key for item in settings_of("trainer", "scratch")} >= {"trainer.sft.lr", "trainer.reward.adapter.r"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_of_every_option_is_explained(group: str) -> None:
    silent = [f"{group}={option}: {item.key}" for option in settings.options(CONF, group)
              for item in settings_of(group, option) if not item.text]
    assert silent == []


def test_every_setting_outside_the_groups_is_explained() -> None:
    found = [*top_settings(), *(item for block in blocks(CONF) for item in settings_of(block, "")),
             *(item for stage in settings.stages() for item in stage_settings(stage))]
    assert {"seed", "train.score", "train.weights", "train.weigh_prompts", "stage.tokenize.settings.overlong_pref",
            "stage.generate.runtime.part_size", "stage.train_reward.settings.held_out"} <= {item.key for item in found}
    assert [item.key for item in found if not item.text] == []


def test_a_stages_setting_is_its_own_or_names_the_key_that_feeds_it(capsys) -> None:
    found = {item.key: item for item in stage_settings("tokenize")}
    assert found["stage.tokenize.settings.overlong_sft"] == Setting(
        "stage.tokenize.settings.overlong_sft", "one of drop, truncate, error", "truncate", "answers to imitate")
    printed = lines(capsys, "stage.generate")
    assert "stage.generate.settings.n = (that of sampling.n)" in printed
    assert "stage.generate.settings.context_length = (that of engine.context_length)" in printed
    assert "stage.generate.runtime.part_size = 256" in printed


def test_stages_are_listed(capsys) -> None:
    printed = lines(capsys, "stage")
    assert [line.split()[0] for line in printed] == settings.stages()
    assert all(len(line) <= WIDTH and len(line.split()) > 1 for line in printed)


def test_a_block_without_options_lists_its_settings(capsys) -> None:
    assert [line for line in lines(capsys, "train") if line[:1].strip()] == [
        "train.weigh_prompts = false", "train.keep_optimizer = true", 'train.score = "reward"', "train.weights = []",
        "train.ema = null"]


@pytest.mark.parametrize("group", settings.groups(CONF))
def test_a_group_lists_its_options_sorted_and_each_with_a_sentence(group: str, capsys) -> None:
    names = settings.options(CONF, group)
    printed = lines(capsys, group)
    assert [line.split()[0] for line in printed] == names == sorted(names)
    assert all(len(line) <= WIDTH for line in printed)
    assert all(first_sentence(CONF, group, name) for name in names)


def test_the_groups_are_listed(capsys) -> None:
    printed = lines(capsys)
    assert [line.split()[0] for line in printed[:len(GROUPS) + 4]] == [
        *settings.groups(CONF), "seeds", "train", "stage"]
    top = [line.split(" = ")[0] for line in printed if line[:1].strip() and " = " in line]
    assert top == ["run", "workspace", "start", "reference", "precision", "seed", "iterations", "sft"]
    assert max(map(len, printed)) <= WIDTH


@pytest.mark.parametrize("word", ["objective=dpo", "objective=upo", "engine=vllm", "data=hh", "hardware=cuda", "train",
                                  *(f"stage.{name}" for name in settings.stages())])
def test_settings_fit_eighty_columns(word: str, capsys) -> None:
    assert max(map(len, lines(capsys, word))) <= WIDTH


def test_companions_are_named_each_with_its_source(capsys) -> None:
    assert lines(capsys, "objective=upo")[-5:] == [
        "brings along:", '    selection = "upo"', '    negatives = "none"', '    train.score = "information_gain"',
        '    steps = {"from_sft": "from_sft_sampled"}']
    printed = lines(capsys, "published=simpo")
    assert "    sampling.n = 5  (on_policy_data_gen/README.md: five seeds)" in printed
    assert max(map(len, printed)) <= WIDTH


def test_a_trainers_values_by_size_and_objective_are_shown_and_no_value_has_anothers_source(capsys) -> None:
    """trainer=lora stands on full: what it sets has its own comment, or none."""
    printed = lines(capsys, "trainer=full")
    assert "    3e+09: reward.lr = 2e-06, preference.lr = 5e-07" in printed
    assert "    orpo: lr = 5e-06, epochs = 3" in printed
    rate = {option: next(item for item in settings_of("trainer", option) if item.key == "trainer.sft.lr")
            for option in ("full", "lora", "qlora")}
    assert rate["full"].text.endswith("zephyr-7b-beta/sft/config_full.yaml")
    assert (rate["lora"].value, rate["lora"].text) == (rate["qlora"].value, rate["qlora"].text)
    assert rate["lora"].text.endswith("zephyr-7b-beta/sft/config_qlora.yaml")


def test_unknown_names_get_the_nearest_ones() -> None:
    with pytest.raises(UserError) as caught:
        show(["objektive", "objective=dpoo", "stage.tokenise", "train=all"])
    assert caught.value.problems[0] == "options: no group named 'objektive' (did you mean objective?)"
    assert caught.value.problems[1].startswith("options: no objective named 'dpoo' (did you mean dpo")
    assert caught.value.problems[2].startswith("options: no stage named 'tokenise' (did you mean stage.tokenize")
    assert caught.value.problems[3] == "options: train has no options, expected align options train"


def test_it_is_quick_and_needs_no_torch() -> None:
    """Under 1 s of processor time: what else runs on the machine does not count."""
    code = ("import sys, time; from flows import cli; code = cli.main(['options', 'objective=dpo']); "
            "assert not {'torch', 'transformers', 'vllm', 'prefect'} & set(sys.modules); print(time.process_time())")
    best = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
                     .stdout.splitlines()[-1]) for _ in range(3))
    assert best < 1
