"""What every objective owes the trainer, for every module of pipeline/objectives, every option of the group and
every choice a setting offers: finite losses and gradients, absent completions that weigh nothing, no order, precision.

A module is picked up by being there; nothing is to be registered here.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.objectives
from flows import presets
from flows.settings import option_node, options
from pipeline.config import Part, load_part, problems_of
from pipeline.objectives.contract import LossInputs, Objective, TokenInputs, needs_of

CONF = Path(__file__).parents[2] / "conf"
VOCABULARY, LAYERS, HIDDEN = 7, 2, 3


def modules() -> dict[str, Any]:
    """Every objective: the modules that declare one."""
    names = sorted(m.name for m in pkgutil.iter_modules(pipeline.objectives.__path__))
    loaded = {name: importlib.import_module(f"pipeline.objectives.{name}") for name in names}
    return {name: m for name, m in loaded.items() if "OBJECTIVE" in vars(m)}


def nodes() -> dict[str, dict[str, Any]]:
    """Every option of the group, without what composing and the recipe take out."""
    found = {name: option_node(CONF, "objective", name) for name in options(CONF, "objective")}
    return {name: {k: v for k, v in node.items() if k not in ("later", "companions", presets.WORDS["objective"])}
            for name, node in found.items()}


def choices(part: Part) -> list[tuple[str, Any]]:
    """(field, value) for every value of a choice or a switch that is not the one set."""
    found = []
    for spec in dataclasses.fields(part.settings):
        set_to = getattr(part.settings, spec.name)
        offered = spec.metadata.get("alignloop", {}).get("choices") or ((True, False) if type(set_to) is bool else ())
        found += [(spec.name, value) for value in offered if value != set_to]
    return found


def variants() -> dict[str, Part]:
    """Every option of the group, and beside it every single choice changed."""
    found = {}
    for name, node in nodes().items():
        part = load_part(node, "objective", Objective)
        found[name] = part
        for field, value in choices(part):
            if not problems_of(type(part.settings), {**dataclasses.asdict(part.settings), field: value}):
                found[f"{name}-{field}={value}"] = dataclasses.replace(
                    part, settings=dataclasses.replace(part.settings, **{field: value}))
    return found


MODULES, NODES, VARIANTS = modules(), nodes(), variants()
every_variant = pytest.mark.parametrize("name", VARIANTS)


# ----------------------------------------------------------------------------------------------------- what to feed


@dataclass(frozen=True)
class Case:
    """Numbers for a batch of G groups; how many completions a group has is the objective's business."""

    values: list[float]  # in [-2000, 0], used round and round
    lengths: list[int]
    there: list[bool]
    dtype: torch.dtype = torch.float32
    groups: int = 3


logp = st.one_of(st.sampled_from([0.0, -2000.0, -1e-6, -0.5]), st.floats(-2000, 0, width=32))
cases = st.builds(
    Case,
    values=st.lists(logp, min_size=17, max_size=17),
    lengths=st.lists(st.integers(1, 4), min_size=7, max_size=7),
    there=st.lists(st.booleans(), min_size=11, max_size=11),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
PLAIN = Case([-3.0, -10.0, -0.7, -25.5, -200.25, -5.0, -1.5, -17.0, -6.0, -2.25, -31.0], [3, 1, 4, 2, 2], [True])


def width(part: Part) -> int:
    """Completions in a group: two, or for lists as many as its layout names, else three."""
    return len(vars(sys.modules[part.name]).get("COLUMNS", "...")) if needs_of(part).lists else 2


def laid_out(part: Part) -> bool:
    """Whether each column has its own meaning, so that a group has all of them or is none."""
    return "laid_out" in vars(sys.modules[part.name])


def cycled(values: list[Any], count: int, start: int = 0) -> list[Any]:
    return [values[(start + i) % len(values)] for i in range(count)]


def presence(part: Part, case: Case) -> torch.Tensor:
    """(G, K): the last group is whole, the others lack what the case says. Singles where they are taken."""
    g, k = case.groups, width(part)
    present = torch.tensor(cycled(case.there, g * k)).view(g, k)
    if laid_out(part):
        present[:, 1:] = (present[:, 1:].all(dim=1) & present[:, 0])[:, None]
    present[-1] = True
    return present


def batch_of(part: Part, case: Case, present: torch.Tensor | None = None) -> LossInputs:
    """Everything any objective may need, with NaN where a completion is absent, and gradients where there are some."""
    present = presence(part, case) if present is None else present
    g, k = present.shape
    lengths = torch.tensor(cycled(case.lengths, g * k)).view(g, k) * present
    nan = torch.tensor(float("nan"), dtype=case.dtype)

    def table(start: int) -> torch.Tensor:
        values = torch.tensor(cycled(case.values, g * k, start), dtype=case.dtype).view(g, k)
        return torch.where(present, values, nan)

    scores = torch.where(present, (table(6).nan_to_num() / -2000.0) * 0.69, 0.0)
    batch = LossInputs(
        logps=table(0).requires_grad_(),
        lengths=lengths,
        present=present,
        ref_logps=table(3),
        labels=torch.tensor(cycled(case.there, g, 5)),
        previous_logps=table(5),
        scores=scores,
        mismatched_logps=table(1)[:, 0].nan_to_num(),
        mismatched_ref_logps=table(2)[:, 0].nan_to_num(),
        mean_chosen_length=float(lengths[:, 0].double().mean()),
        mean_length=float(lengths.sum(dim=1).double().mean()),
        tokens=tokens_of(case, lengths) if needs_of(part).tokens else None,
        parameters=parameters_of(part, case.dtype),
    )
    return with_state(part, batch)


def tokens_of(case: Case, lengths: torch.Tensor) -> TokenInputs:
    places = [(g, k, t) for g, row in enumerate(lengths.tolist()) for k, n in enumerate(row) for t in range(n)]
    n = len(places)
    group, column, position = torch.tensor(places).view(n, 3).unbind(dim=1)

    def flat(count: int, start: int, low: float) -> torch.Tensor:
        return torch.tensor(cycled(case.values, count, start), dtype=case.dtype).clamp(min=low)

    targets = torch.tensor(cycled([0, 3, 6, 2, 5], n))
    logits = flat(n * VOCABULARY, 2, -200.0).view(n, VOCABULARY)
    top = logits.topk(VOCABULARY, dim=1)
    return TokenInputs(
        targets=targets,
        group=group,
        column=column,
        position=position,
        logps=flat(n, 1, -2000.0).requires_grad_(),
        uniforms=torch.tensor(cycled([0.125, 0.875, 0.375, 0.0, 0.9375, 0.625], n), dtype=case.dtype),
        target_logits=logits.gather(1, targets[:, None])[:, 0].requires_grad_(),
        top_logits=top.values.requires_grad_(),
        top_ids=top.indices,
        log_sum_squares=(2.0 * logits.log_softmax(dim=1)).logsumexp(dim=1),
        divergences=(-flat(n, 2, -2000.0).clamp(max=0.0)).requires_grad_(),
        ref_logps=flat(n, 4, -2000.0),
        ref_hidden=flat(n * LAYERS * HIDDEN, 7, -50.0).view(n, LAYERS, HIDDEN),
    )


def parameters_of(part: Part, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    made = part.plugin.parameters
    values = {} if made is None else made(HIDDEN, LAYERS, part.settings)
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def with_state(part: Part, batch: LossInputs) -> LossInputs:
    """As the trainer does: the state after this batch."""
    if part.plugin.update is None:
        return batch
    dtype = torch.float64 if batch.logps.dtype == torch.float64 else torch.float32
    first = {name: torch.tensor(value, dtype=dtype) for name, value in part.plugin.state(part.settings).items()}
    batch = dataclasses.replace(batch, state=first)
    after = part.plugin.update(batch, part.settings)
    assert set(after) == set(first)
    assert all(v.shape == () and not v.requires_grad and v.isfinite() for v in after.values())
    return dataclasses.replace(batch, state=after)


def leaves(batch: LossInputs) -> dict[str, torch.Tensor]:
    found = {"logps": batch.logps, **batch.parameters}
    if batch.tokens is not None:
        names = ("logps", "target_logits", "top_logits", "divergences")
        found |= {f"tokens.{name}": getattr(batch.tokens, name) for name in names}
    return found


def mapped(record: Any, change: Any) -> Any:
    """A record with `change` applied to every tensor field, token view and state included."""
    values = {}
    for spec in dataclasses.fields(record):
        value = getattr(record, spec.name)
        if isinstance(value, torch.Tensor):
            values[spec.name] = change(spec.name, value)
        elif isinstance(value, TokenInputs):
            values[spec.name] = mapped(value, change)
        elif isinstance(value, dict):
            values[spec.name] = {name: change(name, v) for name, v in value.items()}
    return dataclasses.replace(record, **values)


# --------------------------------------------------------------------------------------------------- what is checked


@every_variant
@settings(max_examples=15, deadline=None)
@given(case=cases)
def test_finite_losses_gradients_and_metrics(name: str, case: Case) -> None:
    part = VARIANTS[name]
    batch = batch_of(part, case)
    losses, metrics = part.plugin.loss(batch, part.settings)
    assert losses.shape == (case.groups,)
    assert losses.dtype == case.dtype
    assert losses.isfinite().all()
    for key, values in metrics.items():
        assert values.shape == (case.groups,), key
        assert values.isfinite().all(), key
        assert not values.requires_grad, key
    if losses.requires_grad:  # a batch may hold nothing that is compared
        losses.sum().backward()
    for key, leaf in leaves(batch).items():
        assert leaf.grad is None or leaf.grad.isfinite().all(), key
    if batch.logps.grad is not None:
        assert (batch.logps.grad[~batch.present] == 0).all()


@every_variant
@settings(max_examples=5, deadline=None)
@given(case=cases)
def test_order_of_the_groups_does_not_matter(name: str, case: Case) -> None:
    part = VARIANTS[name]
    batch = batch_of(part, case)
    order = torch.tensor([2, 0, 1])
    place = order.argsort()
    unmoved = {*batch.state, *batch.parameters}

    def moved(field: str, values: torch.Tensor) -> torch.Tensor:
        if field in unmoved:
            return values
        return values[order]

    tokens = batch.tokens and dataclasses.replace(batch.tokens, group=place[batch.tokens.group])
    shuffled = dataclasses.replace(mapped(dataclasses.replace(batch, tokens=None), moved), tokens=tokens)
    before, after = (part.plugin.loss(b, part.settings)[0] for b in (batch, shuffled))
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if case.dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    if not needs_of(part).batch:
        torch.testing.assert_close(after, before[order], **tolerance)
    torch.testing.assert_close(after.sum(), before.sum(), **tolerance)


@every_variant
@settings(max_examples=5, deadline=None)
@given(case=cases)
def test_a_column_nobody_has_changes_nothing(name: str, case: Case) -> None:
    part = VARIANTS[name]
    present = presence(part, case)
    batch = batch_of(part, case, present)

    def wider(field: str, values: torch.Tensor) -> torch.Tensor:
        if values.shape != present.shape:
            return values
        fill = {torch.bool: False, torch.int64: 0}.get(values.dtype, 0.0 if field == "scores" else float("nan"))
        return torch.nn.functional.pad(values, (0, 1), value=fill)

    padded = dataclasses.replace(mapped(dataclasses.replace(batch, tokens=None), wider), tokens=batch.tokens)
    plain, wide = (part.plugin.loss(b, part.settings) for b in (batch, padded))
    torch.testing.assert_close(wide[0], plain[0], rtol=1e-5, atol=1e-6)
    for key, values in plain[1].items():
        torch.testing.assert_close(wide[1][key], values, rtol=1e-5, atol=1e-6, msg=key)


@every_variant
def test_half_precision_is_computed_in_float32_and_float64_stays(name: str) -> None:
    part = VARIANTS[name]
    double = batch_of(part, dataclasses.replace(PLAIN, dtype=torch.float64))
    exact = part.plugin.loss(double, part.settings)[0]
    assert exact.dtype == torch.float64
    kept = {*double.state, *double.parameters}  # float32 in the trainer, whatever the log-probs are
    for given_type in (torch.bfloat16, torch.float16, torch.float32):

        def cast(field: str, values: torch.Tensor, to: torch.dtype = given_type) -> torch.Tensor:
            if not values.is_floating_point():
                return values
            return values.detach().to(torch.float32 if field in kept else to)

        got = part.plugin.loss(mapped(double, cast), part.settings)[0]
        assert got.dtype == torch.float32
        if given_type == torch.float32:
            torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "mixture"])  # its second part takes demonstrations
def test_groups_that_lack_what_is_compared_cost_nothing(name: str) -> None:
    """A pair or list without its completions: no loss, no metric, no gradient."""
    part = VARIANTS[name]
    needs = needs_of(part)
    present = torch.ones(3, width(part), dtype=torch.bool)
    present[0] = False
    if needs.compares and not needs.singles:
        present[1, 1:] = False
    batch = batch_of(part, PLAIN, present)
    losses, metrics = part.plugin.loss(batch, part.settings)
    lacking = [0, 1] if not present[1].all() else [0]
    assert losses[lacking].tolist() == [0.0] * len(lacking)
    assert losses[2].item() != 0.0
    losses.sum().backward()
    if batch.logps.grad is not None:
        assert (batch.logps.grad[lacking] == 0).all()
        assert needs.batch or batch.logps.grad[2].abs().max() > 0
    if needs.compares and not needs.singles:
        assert {"margin", "accuracy"} <= set(metrics)
        shared = {"delta", "reference_point"}
        assert all(values[i] == 0 for key, values in metrics.items() if key not in shared for i in lacking)


# ------------------------------------------------------------------------------------------------- what is declared


def test_every_module_can_be_chosen_and_every_choice_is_a_module() -> None:
    chosen = {node["module"].rpartition(".")[2] for node in NODES.values()}
    assert chosen == set(MODULES)
    assert set(MODULES) <= set(NODES), "an objective's file is named after its module"


def test_the_table_of_objectives_names_all_of_them() -> None:
    text = (CONF.parent / "docs" / "objectives.md").read_text()
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert set(NODES) <= rows


@every_variant
def test_what_is_declared_goes_together(name: str) -> None:
    part = VARIANTS[name]
    needs = needs_of(part)
    assert part.of(part.plugin.normalise) in ("groups", "tokens")
    assert needs.batch or not part.plugin.state(part.settings)
    assert not needs.batch or not needs.tokens


@pytest.mark.parametrize("name", MODULES)
def test_settings_outside_their_range_are_named(name: str) -> None:
    for spec in dataclasses.fields(MODULES[name].Settings):
        limits = spec.metadata.get("alignloop", {})
        low, above, high, below = (limits.get(key) for key in ("low", "above", "high", "below"))
        wrong = [v for v in (low if low is None else low - 1, above, high if high is None else high + 1, below)
                 if v is not None]
        if limits.get("choices"):
            wrong.append("no such choice")
        for value in wrong:
            problems = problems_of(MODULES[name].Settings, {spec.name: value}, "objective")
            assert any(p.startswith(f"objective.{spec.name}:") for p in problems), (spec.name, value, problems)
