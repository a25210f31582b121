"""The whole loop on a smaller world, as a user runs it: real vLLM, a learned reward model, real Prefect.

What kills and stops do to a run is in tests/chaos.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import columns, runs, store, tables
from pipeline.records import Group
from tests.flows.loops import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(align, small_run, tmp_path_factory) -> tuple[Path, list[str]]:
    """A workspace in which PCO with two iterations has run, and the command that did it."""
    workspace = tmp_path_factory.mktemp("workspace")
    words = ["recipe=pco", "run=first", f"workspace={workspace}", *small_run]
    done = align("run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace, words


def _artifact(workspace: Path, run: str, step: str) -> store.Artifact:
    record = runs.load(workspace, run)
    (facts,) = (s for s in record.steps if s["name"] == step)
    return store.find(workspace, facts["stage"], facts["key"])


def test_every_stage_leaves_its_artifact_and_the_report_says_what_happened(finished):
    workspace, _ = finished
    record = runs.load(workspace, "first")
    assert record.outcome == "done" and {s["state"] for s in record.steps} == {"done"}
    report = json.loads((runs.folder(workspace, "first") / "report.json").read_text())
    assert [row["iteration"] for row in report["iterations"]] == [0, 1, 2]
    second = report["iterations"][2]
    assert second["prompts"] == 24 and second["samples"] == 96
    assert second["kept"] + sum(second["dropped"].values()) == 24
    assert all(
        0 <= row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"] <= 1 for row in report["iterations"][1:]
    )
    assert (runs.folder(workspace, "first") / "report.md").read_text().startswith("# first")


def test_pairs_are_the_best_and_worst_of_what_was_sampled_and_keep_where_they_come_from(finished):
    workspace, _ = finished
    generated, scored = (_artifact(workspace, "first", step) for step in ("generate[2]", "score[2]"))
    source = columns.Source(generated.path / "groups", generated.digest("groups"))
    sampled = {g.id: g for g in columns.with_scores(source, [scored.path / "scores"])}
    for pair in tables.read(_artifact(workspace, "first", "pairs[2]").path / "groups"):
        scores = [c.scores["reward"] for c in sampled[pair.id].completions]
        assert [c.scores["reward"] for c in pair.completions] == [max(scores), min(scores)]
    assert {path.name for path in scored.path.iterdir()} == {"scores", store.MANIFEST}, "no text is written again"
    trained = list(_trained(workspace))
    assert {g.iteration for g in trained} == {0, 2}
    counts = _artifact(workspace, "first", "train[2]").manifest["counts"]
    assert [counts["from_input_0"], counts["from_input_1"]] == [
        sum(g.iteration == i for g in trained) for i in (0, 2)] and counts["groups"] == len(trained)
    policy = {c.policy for g in trained if g.iteration == 2 for c in g.completions}
    assert policy == {_artifact(workspace, "first", "train[1]").digest("model")}


def _trained(workspace: Path) -> Iterator[Group]:
    """The groups train[2] took, from both of its tables."""
    for step, part in (("tokens", "pref"), ("pairs[2]", "groups")):
        yield from tables.read(_artifact(workspace, "first", step).path / part)


def test_token_ids_are_carried_not_made_again(finished):
    """The ids that were sampled are the ids that are trained on, with the stop id if and only if the sample stopped."""
    workspace, _ = finished
    sampled = {g.id: g for g in tables.read(_artifact(workspace, "first", "generate[2]").path / "groups")}
    stop_ids = {2, 6}
    for pair in _trained(workspace):
        for completion in pair.completions:
            assert (completion.token_ids[-1] in stop_ids) == (completion.finish_reason == "stop")
            if pair.iteration == 2:
                assert completion.token_ids == sampled[pair.id].completions[completion.sample].token_ids
                assert pair.prompt_ids == sampled[pair.id].prompt_ids


def test_the_same_command_again_finds_everything_done(finished, align):
    _, words = finished
    started = time.monotonic()
    again = align("run", *words)
    assert again.returncode == 0 and time.monotonic() - started < 10
    assert again.stdout.count("  cached  ") == 23 and "every step cached" in again.stdout


def test_a_third_iteration_reruns_nothing_of_the_first_two(finished, align):
    _, words = finished
    rows = _plan_states(align("plan", *words, "iterations=3").stdout)
    assert {name for name, state in rows.items() if state != "cached"} == {
        f"{name}[3]"
        for name in (
            "prompts",
            "generate",
            "score",
            "pairs",
            "train",
            "answers",
            "answer_scores",
            "evaluate",
            "diagnose",
            "report",
        )
    }


@pytest.mark.parametrize("recipe", ["iterative_dpo", "onmcpo", "mcpo_instruct", "online_dpo"])
def test_other_recipes_reuse_the_sft_and_reward_model(finished, align, recipe):
    _, words = finished
    other = [f"recipe={recipe}", "run=other", *words[2:]]
    rows = _plan_states(align("plan", *other).stdout)
    reused = ("data", "init", "tokens", "sft", "reward", "baseline", "baseline_scores")
    assert [rows[name] for name in reused] == ["cached"] * 7 and rows["train[1]"] != "cached"


def test_onmcpo_runs_its_three_segments(finished, use_vllm):
    workspace, words = finished
    done = run(["recipe=onmcpo", *words[3:]], workspace, "online", "train[3]")
    group = next(tables.read(done["generate[1]"].path / "groups"))
    assert sorted({c.temperature for c in group.completions}) == [0.6, 0.8, 1.0] and len(group.completions) == 6
    trained = [done[f"train[{i}]"] for i in (1, 2, 3)]
    steps = [artifact.manifest["counts"]["steps"] for artifact in trained]
    state = [json.loads(next((artifact.path / "optimizer").glob("*.json")).read_text()) for artifact in trained]
    assert [s["updates"] for s in state] == [sum(steps[:i]) for i in (1, 2, 3)]


def test_a_run_name_in_use_with_other_settings_is_refused(finished, align):
    _, words = finished
    refused = align("run", *words, "objective.alpha=0.5", "sampling.n=2")
    assert refused.returncode == 2
    assert "objective.alpha: 0.005 in the run, 0.5 now" in refused.stderr
    assert "sampling.n: 4 in the run, 2 now" in refused.stderr and "ways out" in refused.stderr


def test_one_step_with_changed_settings_makes_what_follows_stale(finished, align):
    workspace, _ = finished
    where = ["run=first", f"workspace={workspace}"]
    before = _artifact(workspace, "first", "train[2]").key
    changed = align("stage", "train[2]", *where, "objective.alpha=0.02")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert "stale now: answers[2], answer_scores[2], evaluate[2], diagnose[2], report[2]" in changed.stdout
    assert _artifact(workspace, "first", "train[2]").key != before
    why = align("explain", "train[2]", *where)
    assert "settings.objective.alpha" in why.stdout and "0.005" in why.stdout and "0.02" in why.stdout
    back = align("run", *where)
    assert back.returncode == 0, back.stdout + back.stderr
    assert runs.load(workspace, "first").outcome == "done"


def test_verify_finds_one_changed_byte_and_the_run_heals(finished, align):
    workspace, _ = finished
    assert align("verify", f"workspace={workspace}").returncode == 0
    file = _artifact(workspace, "first", "prompts[2]").path / "groups" / "part-00000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = align("verify", f"workspace={workspace}")
    assert found.returncode == 1 and f"{file}: content changed" in found.stdout
    file.write_bytes(content[:-1])  # a short file is not taken for done
    healed = align("run", "run=first", f"workspace={workspace}")
    assert healed.returncode == 0 and file.read_bytes() == content
    rows = [line.split()[:3] for line in healed.stdout.splitlines() if line.startswith("  done")]
    assert [row[2] for row in rows] == ["prompts[2]"]


def _plan_states(text: str) -> dict[str, str]:
    """Step -> "cached", "run" or "run, after its inputs" from the table `align plan` prints."""
    rows = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 2 and words[2].rstrip(",") in ("cached", "run"):
            rows[words[0]] = words[2].rstrip(",")
    return rows
