"""TRL's own loss code as oracle: its trainers' methods, called on given log-probs.

`_compute_loss` of TRL's DPO and KTO trainers asks the model for per-token log-probs and does the rest itself, so a
stand-in that returns numbers is enough; CPO goes through its real concatenated forward on given logits.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.objectives import (
    alphapo,
    aot,
    apo_down,
    apo_zero,
    bco,
    cpo,
    discopop,
    dpo,
    exo,
    fdpo,
    hinge,
    ipo,
    kto,
    ld_dpo,
    nca_pair,
    orpo,
    rdpo,
    rpo,
    sigmoid_norm,
    simpo,
    slic,
    sppo,
    wpo,
)
from pipeline.objectives.contract import LossInputs, TokenInputs

trl = pytest.importorskip("trl", reason="TRL, the oracle, is not installed (pip install trl==1.16.0)")
pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS, PROMPT, LONGEST, VOCABULARY = 6, 2, 9, 11


@dataclasses.dataclass(frozen=True)
class Sequences:
    """2 B completions, chosen first: per-token log-probs (2B, T) under policy and reference, 0 beyond the length."""

    mask: Tensor
    logps: Tensor
    ref_logps: Tensor
    logits: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(dim=1)


def sequences(dtype: torch.dtype = torch.float64) -> Sequences:
    generator = torch.Generator().manual_seed(0)
    rows = 2 * PAIRS
    lengths = torch.randint(1, LONGEST + 1, (rows,), generator=generator)
    mask = torch.arange(LONGEST)[None] < lengths[:, None]
    logits = (torch.randn(rows, LONGEST, VOCABULARY, generator=generator, dtype=torch.float64) * 2).to(dtype)
    logps = logits.log_softmax(dim=2)[:, :, 0] * mask
    ref = (torch.randn(rows, LONGEST, VOCABULARY, generator=generator, dtype=torch.float64) * 2).to(dtype)
    return Sequences(mask, logps, ref.log_softmax(dim=2)[:, :, 0] * mask, logits)


def ours(module: Any, settings: Any, found: Sequences) -> float:
    """The mean loss of our objective on the same numbers."""
    present = torch.ones(PAIRS, 2, dtype=torch.bool)
    lengths, logps, ref = (torch.stack(v.chunk(2), dim=1) for v in
                           (found.lengths, found.logps.sum(dim=1), found.ref_logps.sum(dim=1)))
    row, place = found.mask.nonzero().unbind(dim=1)
    tokens = TokenInputs(
        targets=torch.zeros_like(row), group=row % PAIRS, column=row // PAIRS, position=place,
        logps=found.logps[row, place], ref_logps=found.ref_logps[row, place],
        log_sum_squares=(2 * found.logits[row, place].log_softmax(dim=1)).logsumexp(dim=1),
    )
    batch = LossInputs(logps, lengths, present, ref, tokens=tokens, previous_logps=ref,
                       mean_chosen_length=float(lengths[:, 0].double().mean()))
    return float(module.loss(batch, settings)[0].mean().item())


class Model(torch.nn.Module):
    """Stands where TRL's model stands: gives the log-probs of the sequences, whatever it is asked."""

    is_gradient_checkpointing = False

    def __init__(self, logps: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.logps, self.logits = logps, logits

    def forward(self, **_: Any) -> SimpleNamespace:
        # one place in front of the completion is the prompt's last token, whose log-prob TRL masks
        front = self.logps.new_zeros(self.logps.shape[0], PROMPT - 1)
        wide = torch.cat([front, self.logps], dim=1)
        squares = torch.cat([front, (2 * self.logits.log_softmax(dim=2)).logsumexp(dim=2)], dim=1)
        return SimpleNamespace(log_probs=wide, log_sum_sq_probs=squares, entropy=wide * 0, mean_logits=wide * 0,
                               is_top1=wide > 1)


def trainer(**more: Any) -> SimpleNamespace:
    """What the methods read from `self`."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda v: v, gather=lambda v: v)
    given = {
        "accelerator": accelerator, "aux_loss_enabled": False, "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0, "_tp_size": 1, "beta": 0.1, "label_smoothing": 0.0,
    }  # fmt: skip
    return SimpleNamespace(**(given | more))


def completion_mask(found: Sequences) -> Tensor:
    return torch.cat([torch.zeros(found.mask.shape[0], PROMPT, dtype=torch.long), found.mask.long()], dim=1)


def dpo_trainer_loss(found: Sequences, loss_types: tuple[str, ...] = ("sigmoid",), **more: Any) -> float:
    from trl.trainer.dpo_trainer import DPOTrainer

    given = {
        "model": Model(found.logps, found.logits), "ref_model": Model(found.ref_logps, found.logits),
        "precompute_ref_logps": False, "loss_types": list(loss_types), "loss_weights": [1.0] * len(loss_types),
        "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "ld_alpha": None, "use_weighting": False,
        "args": SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
    }  # fmt: skip
    mask = completion_mask(found)
    inputs = {"input_ids": torch.zeros_like(mask), "completion_mask": mask, "attention_mask": torch.ones_like(mask)}
    me = trainer(**(given | more))
    return float(DPOTrainer._compute_loss(me, me.model, inputs, return_outputs=False).item())


@pytest.mark.parametrize(("name", "module", "settings", "more"), [
    ("sigmoid", dpo, dpo.Settings(beta=0.3), {"beta": 0.3}),
    ("hinge", hinge, hinge.Settings(gamma=0.1), {}),
    ("ipo", ipo, ipo.Settings(tau=0.2), {"beta": 0.2}),
    ("exo_pair", exo, exo.Settings(beta=0.1, label_smoothing=0.01), {"label_smoothing": 0.01}),
    ("nca_pair", nca_pair, nca_pair.Settings(beta=0.1), {}),
    ("robust", rdpo, rdpo.Settings(beta=0.1, label_smoothing=0.2), {"label_smoothing": 0.2}),
    ("bco_pair", bco, bco.Settings(beta=0.1, shift="zero"), {}),
    ("sppo_hard", sppo, sppo.Settings(beta=0.1), {}),
    ("aot", aot, aot.Settings(beta=0.1, label_smoothing=0.1), {"label_smoothing": 0.1}),
    ("aot_unpaired", aot, aot.Settings(beta=0.1, paired=False), {}),
    ("apo_zero", apo_zero, apo_zero.Settings(), {}),
    ("apo_down", apo_down, apo_down.Settings(), {}),
    ("discopop", discopop, discopop.Settings(), {"beta": 0.05}),
    ("sigmoid_norm", sigmoid_norm, sigmoid_norm.Settings(beta=5.0), {"beta": 5.0}),
    ("sigmoid", ld_dpo, ld_dpo.Settings(alpha=0.5), {"ld_alpha": 0.5}),
    ("sigmoid", wpo, wpo.Settings(), {"use_weighting": True}),
    ("sigmoid", fdpo, fdpo.Settings(divergence="forward_kl"), {"f_divergence_type": "forward_kl"}),
    ("sigmoid", fdpo, fdpo.Settings(divergence="js"), {"f_divergence_type": "js_divergence"}),
])  # fmt: skip
def test_losses_of_the_dpo_trainer(name: str, module: Any, settings: Any, more: dict[str, Any]) -> None:
    found = sequences()
    tolerance = 1e-7 if name == "exo_pair" else 1e-12  # TRL makes eps a float32 tensor
    assert ours(module, settings, found) == pytest.approx(dpo_trainer_loss(found, (name,), **more), rel=tolerance)


def test_alpha_divergence_is_one_minus_trls_coefficient() -> None:
    """In float32: TRL knows no clamp for float64."""
    found = sequences(torch.float32)
    theirs = dpo_trainer_loss(found, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7)
    assert ours(fdpo, fdpo.Settings(divergence="alpha", alpha=0.3), found) == pytest.approx(theirs, rel=1e-5)
    assert ours(fdpo, fdpo.Settings(divergence="alpha", alpha=0.7), found) != pytest.approx(theirs, rel=1e-3)


def test_rpo_as_a_sum_of_two_losses() -> None:
    found = sequences()
    theirs = dpo_trainer_loss(found, ("sigmoid", "sft"), loss_weights=[1.0, 0.2])
    assert ours(rpo, rpo.Settings(beta=0.1, eta=0.2, sft_normalise="batch"), found) == pytest.approx(theirs, rel=1e-12)


# -------------------------------------------------------------------------------------------------------------- KTO


@pytest.mark.parametrize(("name", "point"), [("kto", "mismatched"), ("apo_zero_unpaired", "zero")])
@pytest.mark.parametrize("shift", [3.0, -30.0])
def test_losses_of_the_kto_trainer(name: str, point: str, shift: float) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    found = sequences()
    labels = torch.tensor([True, False, True, True, False, False, True, True, False, True, False, True])
    mismatched = torch.linspace(-2, 4, 2 * PAIRS, dtype=torch.float64) + shift
    mask = completion_mask(found)
    me = trainer(
        model=Model(found.logps, found.logits), precompute_ref_logps=True, calculate_KL=name == "kto", loss_type=name,
        desirable_weight=1.2, undesirable_weight=0.7, _compute_kl_logps=lambda model, batch: mismatched,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask), "completion_mask": mask, "attention_mask": torch.ones_like(mask),
        "label": labels, "ref_logps": found.ref_logps.sum(dim=1), "ref_KL_logps": torch.zeros_like(mismatched),
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(me, me.model, inputs, return_outputs=False)
    batch = LossInputs(
        found.logps.sum(dim=1)[:, None], found.lengths[:, None], torch.ones(2 * PAIRS, 1, dtype=torch.bool),
        found.ref_logps.sum(dim=1)[:, None], labels, mismatched_logps=mismatched,
        mismatched_ref_logps=torch.zeros_like(mismatched),
    )
    settings = kto.Settings(desirable_weight=1.2, undesirable_weight=0.7, reference_point=point)
    assert kto.loss(batch, settings)[0].mean().item() == pytest.approx(theirs.item(), rel=1e-12)


# --------------------------------------------------------------------------------------------------------- CPO, ORPO


def concatenated(found: Sequences) -> tuple[dict[str, Tensor], Any]:
    """The batch as CPO and ORPO collate it, and a model that gives the sequences' logits (the target is token 0)."""
    mask = completion_mask(found)
    ids = torch.zeros_like(mask)
    batch = {}
    for i, side in enumerate(("chosen", "rejected")):
        rows = slice(i * PAIRS, (i + 1) * PAIRS)
        batch |= {
            f"{side}_input_ids": ids[rows], f"{side}_attention_mask": torch.ones_like(mask[rows]),
            f"{side}_labels": torch.where(mask[rows] > 0, ids[rows], -100),
        }  # fmt: skip
    blank = found.logits.new_zeros(2 * PAIRS, 1, VOCABULARY)
    logits = torch.cat([blank.expand(-1, PROMPT - 1, -1), found.logits, blank], dim=1)
    return batch, lambda *args, **kwargs: SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("name", "module", "settings", "more"), [
    ("sigmoid", cpo, cpo.Settings(beta=0.2, sft_normalise="batch"), {"beta": 0.2, "cpo_alpha": 1.0}),
    ("sigmoid", cpo, cpo.Settings(alpha=0.0), {"cpo_alpha": 0.0}),
    ("hinge", slic, slic.Settings(gamma=0.1), {"cpo_alpha": 0.0}),
    ("hinge", slic, slic.Settings(gamma=0.1, sft_weight=0.5, sft_normalise="batch"), {"cpo_alpha": 0.5}),
    ("simpo", simpo, simpo.Settings(beta=2.0, gamma_beta_ratio=0.25), {"beta": 2.0, "cpo_alpha": 0.0}),
    ("simpo", alphapo, alphapo.Settings(beta=2.0, gamma_beta_ratio=0.25),
     {"beta": 2.0, "cpo_alpha": 0.0, "alpha": 0.25}),
])  # fmt: skip
def test_losses_of_the_cpo_trainer(name: str, module: Any, settings: Any, more: dict[str, Any]) -> None:
    from trl.experimental.cpo import CPOTrainer

    found = sequences()
    batch, model = concatenated(found)
    given = {"loss_type": name, "alpha": 0.0, "simpo_gamma": 0.5, "is_encoder_decoder": False, "pad_token_id": 0}
    me = trainer(**(given | more), concatenated_inputs=CPOTrainer.concatenated_inputs,
                 get_batch_logps=CPOTrainer.get_batch_logps)
    me.concatenated_forward = lambda *args: CPOTrainer.concatenated_forward(me, *args)
    me.cpo_loss = lambda *args: CPOTrainer.cpo_loss(me, *args)
    theirs, _ = CPOTrainer.get_batch_loss_metrics(me, model, batch)
    assert ours(module, settings, found) == pytest.approx(theirs.item(), rel=1e-10)


def test_odds_ratio_of_the_orpo_trainer() -> None:
    """The odds-ratio part: TRL's likelihood covers the prompt too. In float32, as TRL computes it."""
    from trl.experimental.orpo import ORPOTrainer

    found = sequences(torch.float32)
    averages = (found.logps.sum(dim=1) / found.lengths).chunk(2)
    theirs = -ORPOTrainer.odds_ratio_loss(trainer(beta=0.4), *averages)[0].mean().item()
    difference = ours(orpo, orpo.Settings(odds_weight=0.4), found) - ours(orpo, orpo.Settings(odds_weight=0.0), found)
    assert difference == pytest.approx(theirs, abs=1e-6)
