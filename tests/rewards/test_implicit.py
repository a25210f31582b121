"""Log-probs, implicit and de-coupled rewards of tiny models against the same sums written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from pipeline.config import problems_of
from pipeline.errors import UserError
from pipeline.lm import folders as export
from pipeline.lm import template
from pipeline.lm.settings import ModelRuntime
from pipeline.records import LENGTH, Completion, Group, Message
from pipeline.rewards import implicit, likelihood

TEXTS = ("Boil the water.", "Eat rice every day with your neighbour, slowly.", "No")


@pytest.fixture(scope="module")
def folders(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("causal")
    return make_model(root / "policy", seed=1), make_model(root / "reference", seed=2)


@pytest.fixture(scope="module")
def group(folders: tuple[Path, Path]) -> Group:
    plain = Group("p", (Message("user", "What now?"),), (
        Completion(TEXTS[0]), Completion(TEXTS[1], finish_reason=LENGTH), Completion(TEXTS[2])))
    encoder = template.Encoder(export.load_tokenizer(folders[0]), export.stop_ids(folders[0]))
    return encoder.encode([plain])[0]


def logits_of(folder: Path, ids: list[int]) -> torch.Tensor:
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return net(input_ids=torch.tensor([ids])).logits[0].double()


def expected(logits: torch.Tensor, group: Group, index: int, skipped: tuple[int, ...] = ()) -> float:
    """Token by token, the definition."""
    start, total = len(group.prompt_ids), 0.0
    for offset, token in enumerate(group.completions[index].token_ids):
        if token not in skipped:
            total += logits[start + offset - 1].log_softmax(0)[token].item()
    return total


def rows(group: Group) -> list[list[int]]:
    return [[*group.prompt_ids, *c.token_ids] for c in group.completions]


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_log_probs_of_completions(folders: tuple[Path, Path], group: Group, tokens: int) -> None:
    """With and without the stop token; the batches do not matter."""
    wanted = [logits_of(folders[0], row) for row in rows(group)]
    for special, skipped in (("keep", ()), ("drop", (0, 1, 2, 3, 4, 5, 6))):
        score = likelihood.scorer(likelihood.Settings(special_tokens=special), policy=folders[0],
                                  runtime=ModelRuntime("cpu", tokens_per_batch=tokens))
        empty = Group("q", group.messages)
        found = score([group, empty, group])
        values = [expected(wanted[i], group, i, skipped) for i in range(3)]
        assert found[0] == pytest.approx(values, abs=1e-3)
        assert (found[1], found[2]) == ([], pytest.approx(found[0], abs=1e-4))


def test_the_same_log_probs_from_text(folders: tuple[Path, Path], group: Group) -> None:
    """A model with other ids formats the messages itself: here with the same tokenizer, so the sums agree."""
    plain = Group("p", group.messages, tuple(
        Completion(c.text, finish_reason=c.finish_reason) for c in group.completions))
    settings = likelihood.Settings(path=str(folders[0]))
    assert likelihood.scorer(settings)([plain])[0] == pytest.approx(
        likelihood.scorer(settings)([group])[0], abs=1e-4)


def test_the_implicit_reward(folders: tuple[Path, Path], group: Group) -> None:
    score = implicit.scorer(implicit.Settings(beta=0.5), policy=folders[0], reference=folders[1])
    ours = [logits_of(folders[0], row) for row in rows(group)]
    theirs = [logits_of(folders[1], row) for row in rows(group)]
    for i, found in enumerate(score([group])[0]):
        assert found == pytest.approx(0.5 * (expected(ours[i], group, i) - expected(theirs[i], group, i)), abs=1e-3)
    same = implicit.scorer(implicit.Settings(), policy=folders[0], reference=folders[0])
    assert same([group])[0] == [0.0, 0.0, 0.0]


def test_the_decoupled_reward_extrapolates_the_logits(folders: tuple[Path, Path], group: Group) -> None:
    """(1 + 1/2) logits_pi - 1/2 logits_ref before the softmax; the plain reward stands beside it."""
    score = implicit.scorer(implicit.Settings(beta=0.5, decouple=0.5), policy=folders[0], reference=folders[1])
    plain = implicit.scorer(implicit.Settings(beta=0.5), policy=folders[0], reference=folders[1])([group])[0]
    for i, (found, row) in enumerate(zip(score([group])[0], rows(group), strict=True)):
        ours, theirs = logits_of(folders[0], row), logits_of(folders[1], row)
        mixed = expected(1.5 * ours - 0.5 * theirs, group, i) - expected(theirs, group, i)
        assert found[""] == pytest.approx(plain[i], abs=1e-5)
        assert found["_decoupled"] == pytest.approx(0.5 * mixed, abs=1e-3)


def test_from_what_the_table_carries() -> None:
    """0.5 (-3 + 5) = 1."""
    group = Group("p", (), (Completion("x", logprobs=(-1.0, -2.0), ref_logp=-5.0),))
    settings = implicit.Settings(source="table", beta=0.5)
    assert implicit.scorer(settings)([group]) == [[1.0]]
    assert implicit.needs(settings) == {"logps"}
    for completion, missing in ((Completion("x", ref_logp=-5.0), "logprobs"),
                                (Completion("x", logprobs=(-1.0,)), "ref_logp")):
        with pytest.raises(UserError, match=f"sample 0 of 'p' carries no {missing}"):
            implicit.scorer(settings)([Group("p", (), (completion,))])


def test_what_cannot_be_scored_is_nan(folders: tuple[Path, Path]) -> None:
    long = Group("p", (Message("user", "x"),), (Completion("word " * 300), Completion("a")))
    score = implicit.scorer(implicit.Settings(decouple=1.0), policy=folders[0], reference=folders[1])
    first, second = score([long])[0]
    assert math.isnan(first[""])
    assert math.isnan(first["_decoupled"])
    assert math.isfinite(second[""])


def test_what_is_needed_and_what_is_wrong(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert implicit.needs(implicit.Settings()) == {"policy", "reference"}
    assert implicit.needs(implicit.Settings(policy=str(folders[0]))) == {"reference"}
    assert likelihood.needs(likelihood.Settings(model="reference")) == {"reference"}
    with pytest.raises(UserError, match="there is no policy model"):
        implicit.scorer(implicit.Settings())
    assert problems_of(implicit.Settings, {"source": "table", "decouple": 0.5}, "r") == [
        "r.decouple: 0.5 needs the logits of both models, expected source=models"]
    assert "no folder" in problems_of(implicit.Settings, {"policy": str(tmp_path / "x")})[0]
    assert len(implicit.files(implicit.Settings(policy=str(folders[0])))) >= 3
    other = tmp_path / "other"
    for path in folders[1].iterdir():
        (other / path.name).parent.mkdir(exist_ok=True)
        (other / path.name).write_bytes(path.read_bytes())
    tokenizer = export.load_tokenizer(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="different tokenizers"):
        implicit.scorer(implicit.Settings(), policy=folders[0], reference=other)
