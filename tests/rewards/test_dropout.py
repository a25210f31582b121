"""Monte-Carlo dropout of a tiny reward model: masks by pass, scores that do not depend on batches, seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch

from pipeline.config import problems_of, settled
from pipeline.lm import folders
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Completion, Group, Message
from pipeline.rewards import dropout, model


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = folders.load_reward(tiny_model, torch.device("cpu"), seed=3, pad=0)
    target = tmp_path_factory.mktemp("reward") / "model"
    folders.save_folder(net, tiny_model, target, "float32")
    return target


def groups() -> list[Group]:
    texts = ("Boil the water.", "Eat rice every day.", "No", "Let it rest for ten minutes before serving.")
    asked = (Message("user", f"What now, {i}?") for i in range(3))
    return [Group(f"p{i}", (message,), tuple(map(Completion, texts))) for i, message in enumerate(asked)]


SETTINGS = dropout.Settings(passes=4, rate=0.2, precision="float32")


def test_a_mask_takes_features_out_of_every_linear_layer() -> None:
    """Two layers of ones on 1,000 ones: with rate 0.25 the first gives (kept features) / 0.75, near 1,000."""
    layer = torch.nn.Linear(1000, 3, bias=False)
    torch.nn.init.ones_(layer.weight)
    net = torch.nn.Sequential(layer)
    ones = torch.ones(2, 5, 1000)
    with dropout.masked(net, 0.25, seed=1):
        first, again = net(ones), net(ones[:1])
    with dropout.masked(net, 0.25, seed=2):
        other = net(ones)
    kept = first[0, 0, 0].item() * 0.75
    assert kept == pytest.approx(round(kept), abs=1e-2)
    assert abs(kept - 750) < 4 * (1000 * 0.25 * 0.75) ** 0.5
    assert (first == first[0, 0, 0]).all()  # one mask for all rows and positions
    assert torch.equal(first[:1], again)
    assert other[0, 0, 0] != first[0, 0, 0]
    assert net(ones)[0, 0, 0] == 1000.0  # the hooks are gone


def test_passes_mean_and_deviation(folder: Path) -> None:
    found = dropout.scorer(SETTINGS, model=folder)(groups())
    assert [len(of_group) for of_group in found] == [4, 4, 4]
    for value in (v for of_group in found for v in of_group):
        passes = [value[f"_pass{t}"] for t in range(4)]
        assert set(value) == {"", "_std", *(f"_pass{t}" for t in range(4))}
        assert len(set(passes)) == 4
        assert value[""] == pytest.approx(fmean(passes))
        assert value["_std"] == pytest.approx(pstdev(passes))
        assert value["_std"] > 0


def test_scores_do_not_depend_on_batches_and_only_on_its_own_seed(folder: Path) -> None:
    whole = dropout.scorer(SETTINGS, model=folder)(groups())
    small = ModelRuntime("cpu", tokens_per_batch=1)
    single = dropout.scorer(SETTINGS, model=folder, runtime=small)(groups()[::-1])[::-1]
    other = dropout.scorer(dropout.Settings(passes=4, rate=0.2, seed=1, precision="float32"), model=folder)(groups())
    for a, b, c in zip(whole, single, other, strict=True):
        assert [v["_pass2"] for v in a] == pytest.approx([v["_pass2"] for v in b], abs=1e-4)
        assert [v["_pass2"] for v in a] != pytest.approx([v["_pass2"] for v in c], abs=1e-4)


def test_a_small_rate_is_the_model_itself(folder: Path) -> None:
    plain = model.scorer(model.Settings(precision="float32"), model=folder)(groups())
    near = dropout.scorer(dropout.Settings(passes=2, rate=1e-9, precision="float32"), model=folder)(groups())
    for a, b in zip(plain, near, strict=True):
        assert [v[""] for v in b] == pytest.approx(a, abs=1e-4)


def test_settings_are_checked(tmp_path: Path) -> None:
    assert problems_of(dropout.Settings, {"passes": 1, "rate": 1.0}, "r") == [
        "r.passes: 1 is out of range, expected 2 <= x", "r.rate: 1.0 is out of range, expected 0.0 < x < 1.0"]
    assert "no folder" in problems_of(dropout.Settings, {"path": str(tmp_path / "x")})[0]
    assert settled(dropout.SCORER.needs_model, dropout.Settings())
