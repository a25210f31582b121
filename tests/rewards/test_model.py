"""The reward model scorer: what the model is shown; batching, padding and precision do not change its score."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline.config import problems_of, settled
from pipeline.errors import UserError
from pipeline.lm import folders
from pipeline.lm.settings import ModelRuntime
from pipeline.lm.template import Encoder
from pipeline.records import LENGTH, STOP, Completion, Group, Message
from pipeline.rewards import dropout, heads, model
from pipeline.rewards.contract import Limits

WORDS = ["<pad>", "<s>", "</s>", "<user>", "<bot>", "<unk>", *"abcdefgh"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
PAD, BOS, EOS, USER, BOT = range(5)
A, B, C, D, E = (WORDS.index(letter) for letter in "abcde")


def tokenizer_of(template: str | None = TEMPLATE, words: list[str] = WORDS) -> Any:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<bot>"],
    )
    made.chat_template = template
    return made


def config_of(**changes: Any) -> Any:
    return transformers.LlamaConfig(**{
        "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 40, "num_labels": 1, "pad_token_id": PAD,
        "bos_token_id": BOS, "eos_token_id": EOS, **changes,
    })


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(0)
    net = transformers.LlamaForSequenceClassification(config_of(initializer_range=0.1))
    net.save_pretrained(path)
    tokenizer_of().save_pretrained(path)
    return path


def shown(tokenizer: Any, group: Group) -> list[list[int]]:
    """The ids a model with this tokenizer is shown for each completion."""
    return [row.ids for row in Encoder(tokenizer, of="the reward model's").rows([group])[0]]


def group_of(*texts: str, carried: bool = False, finish: str = STOP, prompt: str = "ab") -> Group:
    completions = tuple(
        Completion(t, tuple(WORDS.index(x) for x in t) + ((EOS,) if finish == STOP else ()) if carried else (), finish)
        for t in texts
    )
    ids = (BOS, USER, *(WORDS.index(x) for x in prompt), BOT) if carried else ()
    return Group("p", (Message("user", prompt),), completions, ids)


def score_of(folder: Path, ids: list[int]) -> float:
    """The score of one row by itself, in float32, straight from transformers."""
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return net(input_ids=torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("carried", [True, False])
def test_the_end_of_turn_is_there_if_and_only_if_the_answer_ended(carried: bool) -> None:
    prompt = [BOS, USER, A, B, BOT]
    tokenizer = tokenizer_of()
    assert shown(tokenizer, group_of("cd", carried=carried)) == [[*prompt, C, D, EOS]]
    assert shown(tokenizer, group_of("cd", carried=carried, finish=LENGTH)) == [[*prompt, C, D]]


def test_carried_ids_are_scored_as_they_are() -> None:
    """The policy may have written "cd" as ids the tokenizer would not choose; they are what was sampled."""
    group = Group("p", (Message("user", "ab"),), (Completion("cd", (D, C, EOS)),), (BOS, USER, A, B, BOT))
    assert shown(tokenizer_of(), group) == [[BOS, USER, A, B, BOT, D, C, EOS]]


def test_a_special_tokens_string_in_a_text_is_shown_as_in_training(tiny_model: Path) -> None:
    """Training's ids write "<|end|>" and "</s>" as letters, and so does the scorer, whether it takes the carried ids or
    formats the messages: as special tokens they would end the turn, and a carried prompt would not be recognised.
    """
    tokenizer, stops = folders.load_tokenizer(tiny_model), folders.stop_ids(tiny_model)
    plain = Group("p", (Message("user", "What is <|end|> for?"),), (
        Completion("Say </s> and <|user|> now."), Completion("No <s>", finish_reason=LENGTH)))
    (carried,) = Encoder(tokenizer, stops).encode([plain])
    expected = [[*carried.prompt_ids, *c.token_ids] for c in carried.completions]
    assert shown(tokenizer, carried) == shown(tokenizer, plain) == expected
    specials = [[token for token in row if token in tokenizer.all_special_ids] for row in expected]
    assert specials == [tokenizer.convert_tokens_to_ids(["<s>", "<|user|>", "<|assistant|>", "</s>"]),
                        tokenizer.convert_tokens_to_ids(["<s>", "<|user|>", "<|assistant|>"])]
    written = replace(carried, completions=(Completion("No", tuple(range(90, 95))),))
    assert shown(tokenizer, written) == [[*carried.prompt_ids, *range(90, 95)]]


@pytest.mark.parametrize(("template", "row"), [
    (TEMPLATE.replace("{{ bos_token }}", "").replace("</s>", "e"), [BOS, USER, A, B, BOT, C, D, E]),
    (TEMPLATE.replace("</s>", "</s>e"), [BOS, USER, A, B, BOT, C, D, EOS, E]),
])
def test_another_template_ends_a_row_as_it_does(template: str, row: list[int]) -> None:
    """No BOS (the tokenizer adds its own), no stop token, or text behind it: nothing is asked of a foreign template."""
    tokenizer = tokenizer_of(template)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)])
    assert shown(tokenizer, group_of("cd")) == [row]


def test_a_policy_without_bos_is_shown_as_it_was_trained() -> None:
    """Its template writes none, though its tokenizer would: neither do the ids the reward model learned from."""
    tokenizer = tokenizer_of(TEMPLATE.replace("{{ bos_token }}", ""))
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)])
    (carried,) = Encoder(tokenizer, (EOS,)).encode([group_of("cd")])
    assert carried.prompt_ids == (USER, A, B, BOT)
    assert shown(tokenizer, carried) == [[USER, A, B, BOT, C, D, EOS]]


def test_a_policy_with_other_ids_is_formatted_from_its_messages() -> None:
    other_vocabulary = Group("p", (Message("user", "ab"),), (Completion("cd", (90, 91, 7)),), (70, 71, 72))
    assert shown(tokenizer_of(), other_vocabulary) == [[BOS, USER, A, B, BOT, C, D, EOS]]


@pytest.mark.parametrize("written", ["{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
def test_bos_exactly_once(written: str) -> None:
    tokenizer = tokenizer_of(TEMPLATE.replace("{{ bos_token }}", written))
    assert shown(tokenizer, group_of("c"))[0].count(BOS) == 1


def test_scores_do_not_depend_on_batch_and_padding(folder: Path) -> None:
    groups = [group_of("c", "abcdefgh", "dd"), group_of(), group_of("hgfedcba" * 2, prompt="a", carried=True)]
    rows = [[BOS, USER, A, B, BOT, C, EOS], [BOS, USER, A, B, BOT, *range(A, A + 8), EOS]]
    expected = [score_of(folder, row) for row in rows]
    settings = model.Settings(precision="float32")
    for tokens, share in itertools.product((1, 20, 10_000), (True, False)):
        runtime = ModelRuntime("cpu", tokens_per_batch=tokens, share_prefix=share)
        scores = model.scorer(settings, model=folder, runtime=runtime)(groups)
        assert [len(s) for s in scores] == [3, 0, 1]
        assert scores[0][:2] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_scores_are_those_of_the_models_own_forward(folder: Path, share: bool) -> None:
    """To 1e-5 of each score, with every prompt run once or in padded rows: groups of four, prompts of 9 tokens."""
    rng = np.random.default_rng(0)
    answers = [["".join(rng.choice(list("abcdefgh"), rng.integers(1, 20))) for _ in range(4)] for _ in range(8)]
    groups = [group_of(*of_group, prompt=f"{a}habcde{b}", carried=a < "e")
              for of_group, a, b in zip(answers, "abcdefgh", "aabbccdd", strict=True)]
    runtime = ModelRuntime("cpu", tokens_per_batch=150, share_prefix=share)
    scores = model.scorer(model.Settings(precision="float32"), model=folder, runtime=runtime)(groups)
    for group, found in zip(groups, scores, strict=True):
        own = [score_of(folder, row) for row in shown(tokenizer_of(), group)]
        assert found == pytest.approx(own, rel=1e-5)


def test_a_model_that_looks_ahead_sees_no_padding(tmp_path: Path) -> None:
    """BERT: prompts cannot be shared, and rows of different lengths need their mask."""
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, num_labels=1, pad_token_id=PAD, initializer_range=0.3)).save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    group = group_of("c", "abcdefgh", "dd")
    (found,) = model.scorer(model.Settings(precision="float32"), model=tmp_path)([group])
    assert found == pytest.approx([score_of(tmp_path, row) for row in shown(tokenizer_of(), group)], rel=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_without_a_padding_token_the_last_token_still_counts(folder: Path, tmp_path: Path, share: bool) -> None:
    """transformers refuses such a batch; the scorer pads with an id that ends no row."""
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    net.config.pad_token_id = None
    net.save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    groups = [group_of("c", "abcdefgh", "dd")]
    settings = model.Settings(precision="float32")
    runtime = ModelRuntime("cpu", share_prefix=share)
    assert model.scorer(settings, model=tmp_path, runtime=runtime)(groups)[0] == pytest.approx(
        model.scorer(settings, model=folder)(groups)[0], abs=1e-5
    )


def test_bfloat16_scores_keep_the_resolution_of_float32(folder: Path) -> None:
    """Close to the float32 scores, and not rounded to bfloat16 themselves: that would tie different answers."""
    groups = [group_of(*(f"{x}{y}" for x in "abcdefgh" for y in "abcdefgh"))]
    exact = torch.tensor(model.scorer(model.Settings(precision="float32"), model=folder)(groups)[0])
    fast = torch.tensor(model.scorer(model.Settings(), model=folder)(groups)[0])
    assert (fast - exact).abs().mean() < 0.1 * exact.std()
    assert (fast.bfloat16().float() != fast).double().mean() > 0.9
    assert fast.unique().numel() == 64


def test_what_does_not_fit_the_model_has_no_score(folder: Path) -> None:
    (scores,) = model.scorer(model.Settings(), model=folder)([group_of("a" * 34, "a" * 35)])  # 5 + 34 + 1 = 40
    assert math.isfinite(scores[0])
    assert math.isnan(scores[1])


@pytest.mark.parametrize("scorer", [
    partial(model.scorer, model.Settings()), partial(dropout.scorer, dropout.Settings(passes=2))])
def test_the_device_is_the_runtimes(folder: Path, monkeypatch: pytest.MonkeyPatch, scorer: Any) -> None:
    """hardware=cpu where there is a GPU too; and a GPU that is not there is the user's mistake."""
    with pytest.raises(UserError, match="torch sees no CUDA device here; use hardware=cpu"):
        scorer(model=folder, runtime=ModelRuntime("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert len(scorer(model=folder, runtime=ModelRuntime("cpu"))([group_of("c")])[0]) == 1


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(config_of()).save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no trained reward model, these weights are missing: score.weight"):
        model.scorer(model.Settings(), model=tmp_path)


def test_folders_that_cannot_score(folder: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    transformers.LlamaForSequenceClassification(config_of(num_labels=2)).save_pretrained(two)
    tokenizer_of().save_pretrained(two)
    with pytest.raises(UserError, match="has 2 outputs, expected one"):
        model.scorer(model.Settings(), model=two)
    tokenizer_of(template=None).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="has no chat template"):
        model.scorer(model.Settings(), model=tmp_path / "plain")
    with pytest.raises(UserError, match="there is no reward model"):
        model.scorer(model.Settings())


def test_a_template_that_refuses_says_which_prompt(folder: Path) -> None:
    tokenizer = tokenizer_of("{{ raise_exception('no system turns') }}")
    with pytest.raises(UserError, match="'p': the reward model's chat template refuses this conversation: no sys"):
        shown(tokenizer, group_of("c"))


def test_a_given_path_is_checked_while_planning(folder: Path, tmp_path: Path) -> None:
    assert problems_of(model.Settings, {"path": str(folder)}) == []
    (tmp_path / "config.json").write_text("{}")
    assert problems_of(model.Settings, {"path": str(tmp_path)}, "reward.scorer") == [
        f"reward.scorer.path: '{tmp_path}' has no weights and no tokenizer"
    ]
    assert "no folder" in problems_of(model.Settings, {"path": str(tmp_path / "x")})[0]
    given = model.Settings(path=str(folder))
    assert not settled(model.SCORER.needs_model, given)
    assert settled(model.SCORER.needs_model, model.Settings())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in model.SCORER.files(given)}
    groups = [group_of("c")]
    assert model.scorer(given)(groups) == model.scorer(model.Settings(), model=folder)(groups)


def test_scores_are_those_of_the_training_stage(tiny_model: Path, tmp_path: Path) -> None:
    """A reward model the loop trained gives the policy's own ids the scores it gave them in training."""
    from pipeline.lm import examples
    from pipeline.lm import scores as head
    from pipeline.lm import template as encode

    net = folders.load_reward(tiny_model, torch.device("cpu"), seed=3, pad=0)
    folders.save_folder(net, tiny_model, tmp_path / "model", "float32")
    texts = ("Boil the water.", "Eat rice every day with your neighbour, slowly.")
    plain = Group("p", (Message("system", "be kind"), Message("user", "What now?")),
                  (Completion(texts[0]), Completion(texts[1], finish_reason=LENGTH)))
    encoder = encode.Encoder(folders.load_tokenizer(tiny_model), folders.stop_ids(tiny_model))
    (group,) = encoder.encode([plain])
    rows = shown(folders.load_tokenizer(tmp_path / "model"), group)
    assert rows == [[*group.prompt_ids, *c.token_ids] for c in group.completions]
    assert shown(folders.load_tokenizer(tmp_path / "model"), plain) == rows  # from the messages: the same ids
    example = examples.Example(
        "p", np.array(group.prompt_ids, np.int32), tuple(np.array(c.token_ids, np.int32) for c in group.completions)
    )
    with torch.no_grad():
        trained, _ = head.group_scores(net.eval(), [example], pad=0)
    scores = model.scorer(model.Settings(precision="float32"), model=tmp_path / "model")([group])
    assert scores[0] == pytest.approx(trained[0].tolist(), abs=1e-5)


def test_a_template_that_loses_what_was_said_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Its scores would be of something else, without any other sign. System turns it refuses are folded, as always."""
    folder = tmp_path / "model"
    net = folders.load_reward(tiny_model, torch.device("cpu"), seed=3, pad=0)
    folders.save_folder(net, tiny_model, folder, "float32")
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{% set messages = messages[-1:] %}" + text)
    with pytest.raises(UserError, match="the chat template leaves the user's text out of an answer"):
        model.scorer(model.Settings(), model=folder)


def test_weights_that_are_not_finite_are_named(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"weights that are not finite, in {name}; the file is damaged"):
        folders.load_scorer(broken, torch.device("cpu"))


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """As for model.path; one within the folder is no harm."""
    linked = shutil.copytree(folder, tmp_path / "model")
    (linked / "tokenizer.json").rename(linked / "own.json")
    (linked / "tokenizer.json").symlink_to("own.json")
    assert problems_of(model.Settings, {"path": str(linked)}, "reward.scorer") == []
    (linked / "own.json").rename(tmp_path / "other.json")
    (linked / "tokenizer.json").unlink()
    (linked / "tokenizer.json").symlink_to(tmp_path / "other.json")
    assert problems_of(model.Settings, {"path": str(linked)}, "reward.scorer") == [
        f"reward.scorer.path: '{linked}': tokenizer.json is a link that leads out of the folder "
        f"({tmp_path / 'other.json'}); put a copy there"]


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    """Told at plan, with what to do; and what would load them is told not to."""
    pickled = tmp_path / "model"
    shutil.copytree(folder, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (problem,) = problems_of(model.Settings, {"path": str(pickled)}, "reward.scorer")
    assert "no weights" in problem and "*.bin files are pickled and are not read" in problem
    with pytest.raises(OSError, match="safetensors"):
        folders.load_scorer(pickled, torch.device("cpu"))


def with_heads(folder: Path, target: Path, rows: int, named: bool) -> tuple[Path, torch.Tensor]:
    """The folder's model with a head of `rows` outputs, which config.json names or does not know of; and the head."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["score.weight"] = torch.linspace(-1, 1, rows * 32).reshape(rows, 32).sin()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    if named:
        config["id2label"] = {str(i): f"of{i}" for i in range(rows)}
        config["label2id"] = {f"of{i}": i for i in range(rows)}
    (target / "config.json").write_text(json.dumps(config))
    return target, tensors["score.weight"]


def test_the_number_of_outputs_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    """A published layout whose config says nothing of labels, for which transformers would make two outputs."""
    plain, _ = with_heads(folder, tmp_path / "plain", 1, named=False)
    assert transformers.AutoConfig.from_pretrained(plain).num_labels == 2
    ((score,),) = model.scorer(model.Settings(str(plain), "float32"))([group_of("abc")])
    assert math.isfinite(score)
    assert model.SCORER.check(model.Settings(str(plain)), Limits()) == []


def test_several_outputs_with_weights(folder: Path, tmp_path: Path) -> None:
    """The sum 0.5 of0 - 2 of2 of the outputs that transformers' own forward gives."""
    several, _ = with_heads(folder, tmp_path / "several", 3, named=True)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(several, dtype=torch.float32)
    groups = [group_of("abc", "d"), group_of("eeeee")]
    found = heads.scorer(heads.Settings(str(several), {"of0": 0.5, "2": -2.0}, "float32"))(groups)
    with torch.no_grad():
        own = [[net(input_ids=torch.tensor([ids])).logits[0] @ torch.tensor([0.5, 0.0, -2.0])
                for ids in shown(tokenizer_of(), group)] for group in groups]
    for scores, wanted in zip(found, own, strict=True):
        assert scores == pytest.approx([float(one) for one in wanted], abs=1e-5)
    (unknown,) = problems_of(heads.Settings, {"path": str(several), "weights": {"of9": 1}}, "r")
    assert unknown.startswith("r.weights.of9: no such output (did you mean of")
    assert problems_of(heads.Settings, {"path": str(several)}, "r") == [
        "r.weights: expected a weight for some of of0, of1, of2"]
    assert heads.SCORER.check(heads.Settings(str(several), {"of0": 1.0}), Limits()) == []


def test_what_no_reward_model_is_is_said_at_plan(folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    several, _ = with_heads(folder, tmp_path / "several", 3, named=True)
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    for file in [*silent.glob("chat_template*")]:
        file.unlink()
    settings = silent / "tokenizer_config.json"
    said = json.loads(settings.read_text())
    said.pop("chat_template", None)
    settings.write_text(json.dumps(said))
    problems = [model.SCORER.check(model.Settings(str(path)), Limits())[0][1] for path in (several, silent, tiny_model)]
    assert "has 3 outputs, expected one: reward=heads takes several" in problems[0]
    assert "has no chat template" in problems[1]
    assert "is a language model, it has no head that gives a score" in problems[2]


def test_a_model_that_gives_no_number_for_a_short_text_stops_at_the_start(folder: Path, tmp_path: Path) -> None:
    """Weights that are finite, and a score that is not."""
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["score.weight"] = torch.full_like(tensors["score.weight"], 3e38)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"scores 'b', 'a b', 'ab ba' with no finite number"):
        model.scorer(model.Settings(str(broken), "float32"))


@pytest.mark.parametrize("share", [True, False])
def test_a_long_row_is_not_padded_to_by_the_others(folder: Path, share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """39 tokens among 200 rows of 6, at 60 a batch: at most 1.2 times the tokens that are there are computed, in either
    layout, and every score is that of the row alone.
    """
    runtime = ModelRuntime(tokens_per_batch=60, share_prefix=share)
    score = model.scorer(model.Settings(str(folder), "float32"), runtime=runtime)
    sizes: list[int] = []
    embed = transformers.models.llama.modeling_llama.LlamaModel.forward

    def counted(self: Any, input_ids: Any = None, **more: Any) -> Any:
        sizes.append(input_ids.numel())
        return embed(self, input_ids=input_ids, **more)

    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaModel, "forward", counted)
    groups = [replace(group_of("abcdefgh"[i % 8], prompt="a"), id=f"s{i}") for i in range(200)]
    ((long,), *short) = score([group_of("b" * 34, prompt="a"), *groups])
    tokens = [len(shown(tokenizer_of(), group)[0]) for group in (group_of("b" * 34, prompt="a"), *groups)]
    assert tokens[0] == 39
    assert sum(sizes) <= 1.2 * sum(tokens)
    assert long == pytest.approx(score_of(folder, shown(tokenizer_of(), group_of("b" * 34, prompt="a"))[0]), abs=1e-5)
    assert {round(one[0], 4) for one in short} == {
        round(score_of(folder, shown(tokenizer_of(), group)[0]), 4) for group in groups[:8]}


def test_a_long_row_changes_no_other_score_and_is_not_waited_for_twice(folder: Path) -> None:
    """A row that does not fit the 40 positions scores NaN, one that just fits its own; the short ones stay the same."""
    score = model.scorer(model.Settings(str(folder), "float32"))
    short = [group_of("abc", "d"), group_of("eeeee", "ab")]
    alone = score(short)
    mixed = score([short[0], group_of("a" * 500, "b" * 30), short[1]])
    assert [mixed[0], mixed[2]] == [pytest.approx(one, abs=1e-6) for one in alone]
    assert math.isnan(mixed[1][0])
    assert math.isfinite(mixed[1][1])
