"""Model folders that cannot go all the way, each refused with one line and a way out, and one that can."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline.lm import acceptance, checks, probe
from pipeline.source import ADAPTER, ADAPTER_WEIGHTS, Source

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9085657\n"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture(scope="module")
def sharded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("sharded") / "model")
    (folder / "model.safetensors").unlink()
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def found(folder: Path, reward: bool = False) -> list[str]:
    """As planning asks, but in this process."""
    return checks.problems(checks.Folder.of(folder)) or probe.problems(folder, reward)


def test_good_folders_have_no_problem(folder: Path, sharded: Path):
    assert found(folder, reward=True) == found(sharded) == []


def outward(folder: Path) -> None:
    (folder.parent / "secret").write_text("{}")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "special_tokens_map.json").symlink_to(folder.parent / "secret")


def with_token(folder: Path, special: bool) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(320 - len(tokenizer) + 1)], special_tokens=special)
    tokenizer.save_pretrained(folder)


def padded(folder: Path) -> None:
    """The [PAD] of thousands of fine-tunes: added to the tokenizer, never to the model."""
    with_token(folder, special=True)
    edit(folder / "tokenizer_config.json", pad_token="<new0>")


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def rewrite_dtype(folder: Path) -> None:
    """Weights that say they are whole numbers, of the same width."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole.replace(b'"F32"', b'"U32"'))


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # name: (what breaks it, what is wrong, the way out)
    "pointer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json: a git-lfs pointer", "lfs pull"),
    "weights' pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), "git-lfs pointer", "git lfs pull"),
    "cut short": (lambda f: os.truncate(f / "model.safetensors", 2000), "model.safetensors is cut short", "copy it"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled", "save_pretrained it"),
    "quantised": (quantised, "quantised (gptq)", "qlora quantises that itself"),
    "quantised weights": (rewrite_dtype, "weights of type U32", "take the model it was made from"),
    "outward link": (outward, "a link that leads out of the folder", "put a copy there"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON", "copy it again"),
    "generation config": (lambda f: (f / "generation_config.json").write_text("[1]"), "holds a list", "copy it again"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template", "model.chat_template=FILE"),
    "family": (lambda f: edit(f / "config.json", model_type="llama99"), "knows no model_type 'llama99'", "of a family"),
    "custom code": (lambda f: edit(f / "config.json", model_type="mine", auto_map={"AutoConfig": "c.C"}),
                    "needs code that comes with it", "take a model of a family"),
    "no decoder": (lambda f: edit(f / "config.json", model_type="t5"), "no causal language model", "expected one"),
    "class of tokenizer": (lambda f: edit(f / "tokenizer_config.json", tokenizer_class="MyTokenizer",
                                          auto_map={"AutoTokenizer": ["t.T", None]}), "cannot load its", "copy"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load its tokenizer", "copy"),
    "pad behind": (padded, "the embedding 320 rows (tokens were added", "resize_token_embeddings(321)"),
    "token behind": (lambda f: with_token(f, special=False), "tokens were added", "resize_token_embeddings(321)"),
    "stop behind": (lambda f: edit(f / "generation_config.json", eos_token_id=[2, 400]), "id 400 ends an answer",
                    "correct eos_token_id"),
    "stop as a text": (lambda f: edit(f / "generation_config.json", eos_token_id="<|end|>"),
                       "eos_token_id of generation_config.json has '<|end|>'", "expected an id or a list of ids: ["),
    "nested stops": (lambda f: edit(f / "generation_config.json", eos_token_id=[[2], 2]),
                     "eos_token_id of generation_config.json has [2]", "expected an id or a list of ids"),
    "activation": (lambda f: edit(f / "config.json", hidden_act="sillu"),
                   "config.json says hidden_act 'sillu', which transformers does not know", "did you mean silu"),
    "rope": (lambda f: edit(f / "config.json", rope_parameters={"rope_type": "yarm", "rope_theta": 1e4}),
             "config.json says rope_type 'yarm', which transformers does not know", "did you mean yarn"),
    "pad of the config": (lambda f: edit(f / "config.json", pad_token_id=320), "config.json is 320", "null"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(name: str, folder: Path):
    breaks, wrong, way_out = BROKEN[name]
    breaks(folder)
    (problem,) = found(folder)
    assert wrong in problem and way_out in problem and "\n" not in problem


def test_a_dtype_that_nobody_knows(folder: Path):
    """As plan asks, in a process without torch, in which transformers itself looks the word up in torch."""
    edit(folder / "config.json", dtype="float7")
    (problem,) = acceptance.problems(Source(str(folder)), reward=False)
    assert "config.json says dtype 'float7', which transformers does not know (did you mean float64" in problem


def test_every_problem_at_once(folder: Path):
    quantised(folder)
    (folder / "generation_config.json").write_text("nonsense")
    (folder / "chat_template.jinja").unlink()
    os.truncate(folder / "model.safetensors", 2000)
    assert len(found(folder)) == 4


def test_missing_shards_and_indexes(sharded: Path, tmp_path: Path):
    torn = shutil.copytree(sharded, tmp_path / "torn")
    shard = sorted(torn.glob("model-*.safetensors"))[1]
    shard.unlink()
    (problem,) = found(torn)
    assert problem.startswith(f"{shard.name} missing, model.safetensors.index.json names")
    bare = shutil.copytree(sharded, tmp_path / "bare")
    (bare / "model.safetensors.index.json").unlink()
    (problem,) = found(bare)
    assert "without model.safetensors.index.json" in problem
    mixed = shutil.copytree(sharded, tmp_path / "mixed")
    first, second = sorted(mixed.glob("model-*.safetensors"))[:2]
    shutil.copyfile(first, second)
    (problem,) = found(mixed)
    assert f"{second.name} lacks" in problem and "copy both" in problem


def test_a_tokenizer_of_another_model(make_model: Callable[..., Path], tmp_path: Path):
    """Larger than the embedding, or less than half of it."""
    small = make_model(tmp_path / "small", vocab_size=200)
    (problem,) = found(small)
    assert "the tokenizer is another model's" in problem and "the embedding 200 rows" in problem
    large = make_model(tmp_path / "large", vocab_size=5000)
    (problem,) = found(large)
    assert "the tokenizer is another model's" in problem


def test_a_place_holder_for_images_may_have_no_row(folder: Path):
    """The tokenizer of Gemma 3 holds one that its text-only models have no row for."""
    with_token(folder, special=True)
    edit(folder / "tokenizer_config.json", image_token="<new0>")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= rows]
    edit(folder / "tokenizer_config.json", image_token=beyond[0])
    assert len(beyond) == 1 and found(folder) == []


def test_a_family_without_positions_or_without_a_sequence_classifier(folder: Path, tiny_model: Path):
    config = transformers.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2)
    config.save_pretrained(folder)
    assert any("no context length" in problem for problem in found(folder))
    assert any("no sequence classifier for mamba" in problem and "reward=implicit" in problem
               for problem in found(folder, reward=True))


def test_gpt2_names_its_context_in_its_own_way(folder: Path):
    transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=99).save_pretrained(folder)
    assert "max_position_embeddings" not in json.loads((folder / "config.json").read_text())
    assert found(folder, reward=True) == []


def test_what_planning_is_told(folder: Path, tmp_path: Path):
    """By a process of its own, with the setting and the folder in front; a preset says the command that makes it."""
    assert acceptance.problems(Source(str(folder)), reward=True) == []
    padded(folder)
    (problem,) = acceptance.problems(Source(str(folder)), reward=True)
    assert problem.startswith(f"model.path: {folder}: the tokenizer has")
    (problem,) = acceptance.problems(Source(str(tmp_path / "no"), made_by="make it so"), reward=False)
    assert problem == f"model.path: {tmp_path / 'no'} is not a folder; make it with: make it so"


def test_adapters_are_followed_to_their_base(folder: Path, tmp_path: Path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"}))
    sparse(adapter / ADAPTER_WEIGHTS, {})
    (problem,) = acceptance.problems(Source(str(adapter)), reward=False)
    assert "an adapter for 'some/base', which is no folder here" in problem and "model.base=" in problem
    (folder / "chat_template.jinja").unlink()
    (problem,) = acceptance.problems(Source(str(adapter), base=str(folder)), reward=False)
    assert problem.startswith(f"model.path: {folder}: no chat template")
    (adapter / ADAPTER_WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    problem, _ = acceptance.problems(Source(str(adapter), base=str(folder)), reward=False)
    assert "adapter_model.safetensors is cut short or no safetensors file" in problem
    for text in ("{", "[1]"):
        (adapter / ADAPTER).write_text(text)
        (problem,) = acceptance.problems(Source(str(adapter)), reward=False)
        assert problem == f"model.path: {adapter}: adapter_config.json is no mapping of settings in JSON; copy it again"


def test_an_adapter_on_the_hub_is_told_in_one_line(tmp_path: Path):
    """It has no configuration, tokenizer or template of its own, which four lines would tell."""
    (tmp_path / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))
    listed = checks.Folder(tmp_path, {ADAPTER: 60, ADAPTER_WEIGHTS: 900, "README.md": 1}, here=False)
    (problem,) = checks.problems(listed)
    assert problem.startswith("an adapter of 'org/base'; fetch it (hf download ORG/NAME --local-dir DIR) and give")
    assert problem.endswith("model.path=DIR model.base=org/name")


def test_the_cache_of_the_hub_may_link_within_itself(tiny_model: Path, tmp_path: Path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    shutil.copytree(tiny_model, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert found(snapshot) == []


def sparse(path: Path, tensors: dict[str, list[int]], kind: str = "BF16") -> None:
    """A safetensors file with a real header and data that takes no room on the disk."""
    header, end = dict[str, Any](), 0
    for name, shape in tensors.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    written = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + end)


@pytest.fixture
def eight_billion(folder: Path) -> Path:
    """Llama 3 8B's shapes in four shards, 16 GB that take a few kilobytes; the vocabulary is small."""
    (folder / "model.safetensors").unlink()
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=4096, intermediate_size=14336, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in transformers.LlamaForCausalLM(config).named_parameters()}
    names, placed = sorted(shapes), dict[str, str]()
    for i in range(4):
        file = f"model-{i + 1:05}-of-00004.safetensors"
        sparse(folder / file, {name: shapes[name] for name in names[i::4]})
        placed |= dict.fromkeys(names[i::4], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def test_an_8b_folder_is_checked_without_reading_its_weights(eight_billion: Path):
    """The issue of it: under 2 seconds of this process; twice that here, where other work may run beside it."""
    before = time.process_time() + sum(os.times()[2:4])
    assert acceptance.problems(Source(str(eight_billion)), reward=True) == []
    assert time.process_time() + sum(os.times()[2:4]) - before < 4


def test_a_folder_of_gguf_files_is_told_to_name_one(tmp_path: Path):
    for name in ("model-q4.gguf", "model-q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert found(tmp_path) == ["a folder of GGUF files; give the path of one: model-q4.gguf, model-q8.gguf"]


def test_a_chosen_template_stands_for_the_folders_own(folder: Path):
    """With one chosen, none is missed; one that this vocabulary cannot write is told."""
    (folder / "chat_template.jinja").unlink()
    assert acceptance.problems(Source(str(folder), template="plain"), reward=False) == []
    (problem,) = acceptance.problems(Source(str(folder), template="chatml"), reward=False)
    assert problem.startswith("model.chat_template: chatml needs <|im_start|>")


def test_faults_of_files_and_of_the_family_are_told_together(folder: Path):
    """Whoever fetches a missing shard should not learn of the unknown family after that."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "foonet"}))
    (folder / "model.safetensors").unlink()
    problems = acceptance.problems(Source(str(folder)), reward=False)
    assert len(problems) == 2 and "no *.safetensors weights" in problems[0] and "'foonet'" in problems[1]
    assert all(problem.startswith(f"model.path: {folder}: ") for problem in problems)


def test_a_problem_that_begins_with_a_files_name_still_names_the_folder(folder: Path):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (problem,) = acceptance.problems(Source(str(folder)), reward=False)
    assert problem.startswith(f"model.path: {folder}: model.safetensors: a git-lfs pointer instead of the file")


@pytest.mark.parametrize(("change", "told"), [
    ({"metadata": None}, "model.safetensors.index.json has no metadata"),
    ({"weight_map": {}}, "model.safetensors.index.json has no weight_map")])
def test_an_index_that_transformers_cannot_use(eight_billion: Path, change: dict, told: str):
    path = eight_billion / "model.safetensors.index.json"
    path.write_text(json.dumps({k: v for k, v in {**json.loads(path.read_text()), **change}.items() if v is not None}))
    (problem,) = acceptance.problems(Source(str(eight_billion)), reward=False)
    assert told in problem


def test_rows_longer_than_the_models_positions_are_told_at_plan(folder: Path):
    """GPT-2 calls them n_positions; a LongRoPE model has those of its pretraining."""
    assert acceptance.problems(Source(str(folder)), reward=False, longest=256) == []
    gpt2 = transformers.GPT2Config(vocab_size=320, n_positions=128, bos_token_id=1, eos_token_id=2)
    gpt2.save_pretrained(folder)
    (problem,) = acceptance.problems(Source(str(folder)), reward=False, longest=200)
    assert problem == ("model.max_prompt_tokens: with model.max_completion_tokens 200 tokens, the model has 128 (its "
                       "context); lower them: model.max_prompt_tokens=64 model.max_completion_tokens=64")


def test_a_model_that_reads_both_ways_is_no_policy(folder: Path):
    transformers.BertConfig(vocab_size=320).save_pretrained(folder)
    (problem,) = acceptance.problems(Source(str(folder)), reward=False)
    assert "a bert whose config.json says is_decoder=false reads both ways" in problem
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    (problem,) = acceptance.problems(Source(str(folder)), reward=False)
    assert "config.json has no model_type" in problem
