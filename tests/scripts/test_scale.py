"""The cost model by hand, against what torch counts, and docs/scale.md as it writes it."""

from __future__ import annotations

import json

import pytest

from flows.memory import Shape
from scripts import scale, scale_measure
from scripts.scale import Device, Site, Work

TINY = Shape(2, 3, 1, 2, 2, 5, tied=True)  # a layer: 2 x 2 x (2 + 2) + 3 x 2 x 3 = 34 weights
MEASURED = json.loads(scale.MEASURED.read_text())


def test_a_forward_pass_by_hand():
    """A prompt of 4, answers of 2 and 1: 7 tokens through 34 weights, 3 through the head of 10, and the pairs a mask
    leaves: 8 of the prompt, 2 x 4 + 2 and 1 x 4 + 0.5 of the answers: 22.5, 4 x 1 x 2 products each."""
    assert scale.forward(TINY, 4, [2, 1]) == 2 * (34 * 7 + 10 * 3) + 8 * 22.5


def test_training_is_three_passes_and_one_again_and_waits_for_a_slow_network():
    work = Work(prompts=10, prompt=4, completion=2, micro=16)
    once = 10 * scale.forward(TINY, 4, [2, 2])
    found = scale.training(TINY, Site(2, device=Device(link=1e30)), work)
    assert (found.tokens, found.flops, found.bound) == (80.0, 3 * once, "products")
    assert found.seconds == pytest.approx(4 * once / (2 * 989e12 * 0.45))
    assert found.moved == 2 * 3 * 2 * TINY.weights * 0.5 * (80 / 16 / 2)
    slow = scale.training(TINY, Site(2, per_node=1, net=1.0), work)
    assert (slow.bound, slow.seconds) == ("network", found.moved / 2)
    assert scale.training(TINY, Site(1), work, lora=True).flops == 2 * once


def test_sampling_reads_the_weights_for_every_token_of_as_many_sequences_as_fit():
    """8B in bfloat16 on one device: 16.1 GB of weights and, of 256 sequences with 512 tokens each on average, 17.2 GB
    of keys and values, at 70 % of 3.35 TB/s: 14.2 ms for 256 tokens."""
    found = scale.sampling(scale.LLAMA_8B, Site(1), Work(prompts=1000))
    assert found.tokens == 1000 * 8 * 512 and found.bound == "memory"
    prompts = 1000 * scale.forward(scale.LLAMA_8B, 256, []) / (989e12 * 0.5)
    assert found.seconds - prompts == pytest.approx(1000 * 8 * 512 / 256 * 14.2e-3, rel=0.01)
    assert scale.sampling(scale.LLAMA_8B, Site(8), Work(prompts=1000)).seconds == pytest.approx(found.seconds / 8)
    assert [scale.split(shape, Site(8)) for shape in (scale.LLAMA_8B, scale.LLAMA_70B)] == [1, 8]


def test_a_loop_waits_where_its_steps_do():
    costs = {"generate": scale.Cost(seconds=5.0, devices=1), "train_preference": scale.Cost(seconds=3.0, devices=1),
             "answers": scale.Cost(seconds=2.0, devices=0)}
    assert scale.loop(costs, 2, 1, 1) == 20.0
    assert scale.loop(costs, 2, 1, 2) == 18.0, "answers[1] beside generate[2]"


def test_the_weights_of_the_shapes_are_those_of_the_models():
    assert scale.LLAMA_8B.weights == pytest.approx(8.03e9, rel=1e-3)
    assert scale.LLAMA_70B.weights == pytest.approx(70.55e9, rel=1e-3)


@pytest.mark.parametrize("case", [(60, [70, 70]), (20, [10] * 6)])
def test_flops_are_what_torch_counts(case):
    """The core's own forward and backward pass. torch's counter sees neither the CPU's attention nor the gradient of
    the head's weights, which is added up in a buffer."""
    shape, (prompt, completions) = Shape(64, 128, 2, 64, 64, 512, tied=True), case
    predicted, found = scale_measure.counted(shape, prompt, completions, number=2)
    pairs = prompt**2 / 2 + sum(n * prompt + n * n / 2 for n in completions)
    unseen = 3 * 4 * 2 * 64 * pairs + 2 * 512 * 64 * sum(completions)
    assert predicted - 2 * unseen == pytest.approx(found, rel=0.06)  # the last token of each completion is not computed


def test_the_page_is_what_the_script_writes():
    page = scale.PAGE.read_text()
    assert scale.written(page, MEASURED) == page, "python scripts/scale.py --write"


def test_what_was_measured_is_told_as_it_is():
    """Within a fifth of what the model says, but for what the page names."""
    far = {one["what"] for one in MEASURED["compared"] if not 0.8 <= one["predicted"] / one["measured"] <= 1.25}
    page = scale.PAGE.read_text()
    assert all(f"{what}: " in page.partition("Off by more than a fifth:")[2] for what in far)
