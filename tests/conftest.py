"""What many tests share: tiny models, one vLLM server for the whole test run, warm processes, and who runs what.

`make test` runs the tests in two processes: those of a file in one, and all that need vLLM in one, with one server.
"""

from __future__ import annotations

import collections
import datetime
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.lm import families

ROOT = Path(__file__).parent.parent
STARTED = time.monotonic()

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 64  # of the models `tiny` gives
SENTENCES = (
    "The quick brown fox jumps over the lazy dog while the small cat sleeps near the warm stove.",
    "Please write a short note to thank your neighbour for the apples and explain how you used them.",
    "First boil the water, then add the rice, and finally let it rest for ten minutes before serving.",
    "What is the best way to learn a new language? Practise a little every day and speak with people.",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families", type=Path, help="write what was seen of families of models into a page's table")
    parser.addoption("--record", type=Path, help="add a line about this test run to a Markdown table in this file")


def pytest_configure() -> None:
    """A suite that runs in the background (a script's &, nohup) ignores signals, and all that it starts would, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # not for itself


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a card say that there is none, where somebody runs a folder without `-m "not gpu"`."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def needs_vllm(file: Path) -> bool:
    """Whether tests of the file use the one vLLM server: it names one of the fixtures that bring it."""
    return re.search(r"\b(vllm_service|use_vllm|small_run)\b", file.read_text()) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests need vLLM come first, then those with slow tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    shared = {path for path in {item.path for item in items} if needs_vllm(path)}
    hidden = {item.path for item in items if "vllm_service" in item.fixturenames} - shared
    assert hidden == set(), f"needs_vllm misses {hidden}: name the fixture in the file"
    items.sort(key=lambda item: (item.path not in shared, item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """The tests of a file run in one process, and so do all files that need vLLM: it starts once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "vllm" if needs_vllm(ROOT / file) else file

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    """With --families PAGE: the table of tests/lm/families.py, with the cells that were seen and today's date.
    With --record FILE: date, commit, machine, counts and minutes of this run as one more row of the table.
    """
    page, file = config.getoption("families"), config.getoption("record")
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if page is not None:
        seen, failed = (collections.defaultdict[str, set[str]](set) for _ in range(2))
        for kind, cells in (("passed", seen), ("failed", failed), ("error", failed)):
            for column, family in (pair for report in terminalreporter.getreports(kind)
                                   for pair in report.user_properties):
                cells[column].add(family)
        families.write(page, seen, failed, f"{datetime.date.today()}")
        terminalreporter.write_line(f"cells written to {page}: {sum(map(len, seen.values()))}, taken out: "
                                    f"{sum(map(len, failed.values()))}")
    if file is None:
        return
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    count = {name: len(terminalreporter.getreports(name)) for name in ("passed", "failed", "error", "skipped")}
    row = [f"{datetime.date.today()}", git.stdout.strip(), f"{platform.machine()}, {os.cpu_count()} cores",
           *(f"{number}" for number in count.values()), f"{(time.monotonic() - STARTED) / 60:.1f}"]
    with file.open("a") as table:
        table.write(f"| {' | '.join(row)} |\n")
    terminalreporter.write_line(f"recorded in {file}")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `python -m pipeline.worker` is a fork of a process with torch and transformers imported.

    Real processes, as a run starts them, without the seconds of import: see tests/warm/sitecustomize.py. Tests that
    kill processes or measure their memory do without it.
    """
    folder = Path(__file__).parent / "warm"
    address = tmp_path_factory.mktemp("warm") / "socket"
    paths = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = address.with_name("log").open("w")
    server = subprocess.Popen([sys.executable, str(folder / "server.py"), str(address)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
                              start_new_session=True)
    assert server.stdin and server.stdout
    assert server.stdout.readline() == b"ready\n", Path(log.name).read_text()
    yield {"ALIGNLOOP_WARM": str(address), "PYTHONPATH": paths}
    server.stdin.close()
    server.wait(30)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """make_model(folder, seed=0, **config) -> a tiny random Llama folder: weights, tokenizer, template, stop ids.

    About 0.1M weights, vocabulary 320, context 256, stop ids </s> and <|end|>. `config` overrides LlamaConfig.
    """

    def make(folder: Path, seed: int = 0, **config: object) -> Path:
        import torch
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

        tokenizer = _tokenizer()
        tokenizer.save_pretrained(folder)
        values = {
            "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
            "tie_word_embeddings": True, "initializer_range": 0.2,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**{**values, **config}))
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 6], pad_token_id=0)
        model.save_pretrained(folder)
        return folder

    return make


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=special[3:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama folder, the same for the whole test run: read it, never change it."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def vllm_service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The one vLLM server of the test run, ready, made for `tiny_model`'s architecture."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    from pipeline.engines.vllm import service as module

    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    service = module.start(tiny_model, log, module.Settings(max_sequences=64, lora_rank=8))
    try:
        service.wait_ready(300)
        yield service
    finally:
        service.stop()


@pytest.fixture
def use_vllm(vllm_service, monkeypatch: pytest.MonkeyPatch):
    """Stages run in this test, and processes it starts, use the test run's server."""
    for name, value in vllm_service.environment.items():
        monkeypatch.setenv(name, value)
    return vllm_service


@pytest.fixture
def tiny() -> SimpleNamespace:
    """examples(number, k, ...) of random ids and llama(seed): enough to check the arithmetic, without a tokenizer."""
    return SimpleNamespace(examples=_examples, llama=_llama, vocabulary=VOCABULARY)


def _examples(number: int, k: int = 2, seed: int = 0, reference: bool = True) -> list:
    """`number` groups of k completions, 1 to 9 tokens each, prompts of 2 to 12."""
    import numpy as np

    from pipeline.lm.examples import Example

    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, rng.integers(low, high)).astype(np.int32)

    return [Example(f"g{i}", ids(2, 13), tuple(ids(1, 10) for _ in range(k)), weight=float(rng.integers(1, 4)),
                    ref_logps=tuple(-rng.random(k) * 30) if reference else None) for i in range(number)]


def _llama(seed: int = 0):
    import torch
    import transformers

    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3))
