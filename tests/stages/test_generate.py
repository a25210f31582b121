"""The generate stage: shards, seeds, what is dropped and counted; kill -9 with a real vLLM server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.compose import compose
from flows.prepare import expand
from pipeline import config, tables
from pipeline.engines.sampling import Draw
from pipeline.errors import UserError
from pipeline.records import LENGTH, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import generate

TRANSFORMERS = {"module": "pipeline.engines.transformers", "dtype": "float32"}
VLLM = {"module": "pipeline.engines.vllm", "dtype": "float32", "concurrency": 32}


def prompts(number: int, length: int = 8) -> list[Group]:
    def ids(i: int) -> tuple[int, ...]:
        return (1, 4, *(20 + (i * 7 + k) % 250 for k in range(length)), 5)

    return [
        Group(f"p{i}", (Message("user", f"question {i}"),), prompt_ids=ids(i), dataset="toy", iteration=2)
        for i in range(number)
    ]


@pytest.fixture
def run_stage(tiny_model, tmp_path):
    """run_stage(groups, engine=..., part_size=..., **settings) -> (rows of the table, reporter). Same work folder."""

    def run(asked, /, engine=TRANSFORMERS, part_size=4, work="work", max_refused_share=0.5, **changes):
        folder = tmp_path / "prompts"
        if not tables.parts(folder):
            tables.write(folder, asked)
        values = {"engine": engine["module"], "dtype": "float32", "n": 2, "max_tokens": 12, **changes}
        context = Context(
            settings=config.build(generate.Settings, values),
            runtime=config.build(generate.Runtime, {
                "engine": engine, "part_size": part_size, "max_refused_share": max_refused_share}),
            inputs={"model": (tiny_model,), "prompts": (folder,)},
            digests={"model": ("weights-digest",), "prompts": ("prompts-digest",)},
            work=tmp_path / work, seed=5, report=Reporter(),
        )
        generate.run(context)
        return list(tables.read(context.out / "groups")), context.report

    return run


def test_rows_keep_order_and_carry_their_provenance(run_stage):
    groups = prompts(10)
    rows, report = run_stage(groups, n=2, temperatures=[0.6, 1.0])
    assert [replace(row, completions=()) for row in rows] == groups
    for row in rows:
        assert [c.sample for c in row.completions] == [0, 1, 2, 3]
        assert [c.temperature for c in row.completions] == [0.6, 0.6, 1.0, 1.0]
        assert {c.policy for c in row.completions} == {"weights-digest"}
    completions = [c for row in rows for c in row.completions]
    assert len({c.seed for c in completions}) == 40
    assert report.counts["completions"] == 40
    assert report.counts["tokens"] == sum(len(c.token_ids) for c in completions)
    assert report.counts["truncated_share"] == round(sum(c.finish_reason == LENGTH for c in completions) / 40, 4)
    assert report.dropped == {}


def test_groups_draw_as_each_says_and_what_they_leave_out_is_as_beside_them(run_stage):
    """Two samples at 1.0 as without groups; one greedy of 4 tokens; three at 1.0 again, cut to the likeliest token."""
    groups = [{"temperature": 1.0}, {"temperature": 0, "n": 1, "max_tokens": 4},
              {"temperature": 1.0, "n": 3, "top_k": 1}]
    plain, _ = run_stage(prompts(6), temperatures=[1.0])
    greedy, _ = run_stage(prompts(6), temperatures=[0.0], n=1, work="greedy")
    rows, report = run_stage(prompts(6), groups=groups, temperatures=[0.3], work="groups")
    assert report.counts["completions"] == 36
    for row, alone, likeliest in zip(rows, plain, greedy, strict=True):
        assert [c.sample for c in row.completions] == list(range(6))
        assert [c.temperature for c in row.completions] == [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
        assert row.completions[:2] == alone.completions
        best = likeliest.completions[0].token_ids
        assert row.completions[2].token_ids == best[:4]
        assert {c.token_ids for c in row.completions[3:]} == {best}
        assert len({c.seed for c in row.completions}) == 6


def test_stop_ids_of_a_group_end_a_completion_beside_the_models_own(run_stage):
    """The second token of every greedy completion, made a stop id, cuts it there: the model did not end its turn."""
    (row,), _ = run_stage(prompts(1), temperatures=[0.0], n=1)
    ids = row.completions[0].token_ids
    second = ids[1]
    (cut,), _ = run_stage(prompts(1), groups=[{"temperature": 0, "n": 1, "stop_ids": [second]}], work="cut")
    assert cut.completions[0].token_ids == ids[: ids.index(second) + 1]
    assert cut.completions[0].finish_reason == "length"
    with pytest.raises(UserError, match=r"sampling\.groups\[0\]\.stop_ids: 320 is outside the vocabulary"):
        run_stage(prompts(1), groups=[{"temperature": 0, "n": 1, "stop_ids": [320]}], work="foreign")


def test_a_prompt_that_does_not_fit_the_longest_group_is_too_long_for_all(run_stage):
    """Context 256, prompt 235 + 3: 18 tokens fit, 19 do not."""
    long = replace(prompts(1, length=235)[0], id="long")
    groups = [{"temperature": 1.0, "max_tokens": 2}, {"temperature": 0.5, "max_tokens": 19}]
    rows, report = run_stage([*prompts(2), long], groups=groups)
    assert [len(row.completions) for row in rows] == [4, 4, 0]
    assert report.dropped == {"prompt_too_long": 1}


def test_samples_are_the_same_whatever_the_shards(run_stage):
    rows, _ = run_stage(prompts(10), part_size=4)
    others, _ = run_stage(prompts(10), part_size=3, work="other", engine={**TRANSFORMERS, "batch_size": 2, "window": 3})
    assert rows == others


def test_a_resumed_stage_samples_only_what_is_missing(run_stage, tmp_path):
    """Parts 0 and 2 of three are there at first; 1 and 2 are removed, part 0 is marked: it must be kept as it is."""
    rows, report = run_stage(prompts(10), part_size=4)
    out = tmp_path / "work" / "out" / "groups"
    for index in (1, 2):
        tables.part_path(out, index).unlink()
    (out / ".part-00001.parquet.77.tmp").write_bytes(b"torn")
    marked = [replace(row, weight=9.0) for row in rows[:4]]
    tables.write_part(out, 0, marked)
    again, second = run_stage(prompts(10), part_size=4)
    assert again == marked + rows[4:]
    assert {k: second.counts[k] for k in ("prompts", "completions", "tokens")} == {
        k: report.counts[k] for k in ("prompts", "completions", "tokens")}
    assert sorted(p.name for p in out.iterdir()) == [f"part-0000{i}.parquet" for i in range(3)]


def test_a_prompt_too_long_is_an_empty_row_and_counted(run_stage):
    """The context is 256: 245 prompt ids + 12 do not fit, 244 + 12 do."""
    groups = [*prompts(2), replace(prompts(1, length=242)[0], id="long"), replace(prompts(1, length=241)[0], id="fits")]
    rows, report = run_stage(groups)
    assert [len(row.completions) for row in rows] == [2, 2, 0, 2]
    assert report.dropped == {"prompt_too_long": 1}


def test_too_many_long_prompts_are_told_before_anything_is_sampled(run_stage):
    """Two of three do not fit; a share of 0.7 allows that."""
    long = [replace(group, id=f"long{group.id}") for group in prompts(2, length=250)]
    with pytest.raises(UserError, match=r"max_refused_share: 2 of 3 .* \(prompt_too_long 2\), .* 0\.5"):
        run_stage([*prompts(1), *long], engine={"module": "pipeline.engines.vllm", "url": "http://127.0.0.1:9"})
    rows, report = run_stage([*prompts(1), *long], max_refused_share=0.7)
    assert [len(row.completions) for row in rows] == [2, 0, 0]
    assert report.dropped == {"prompt_too_long": 2}


REFUSING_ENGINE = """
import contextlib, dataclasses
from pipeline.engines.engine import Answer, Backend, Sample
@dataclasses.dataclass(frozen=True)
class Settings:
    first: int  # it refuses every prompt from this one on
class Engine:
    context_length, facts = 256, {}
    def __init__(self, first): self.first = first
    def sample(self, requests):
        for i, r in enumerate(requests):
            sample = Sample((20,), "length", "text", r.seed)
            yield Answer((sample,)) if i < self.first else Answer(refused="out of memory")
@contextlib.contextmanager
def open_engine(model, settings, log):
    yield Engine(settings.first)
BACKEND = Backend(Settings, open_engine)
"""


def test_too_many_refusals_end_the_stage_and_are_asked_again_next_time(run_stage, tmp_path, monkeypatch, capsys):
    """12 prompts in parts of 2, refused from the sixth on: with the twelfth, 7 are, more than half. Kept are the two
    parts where all was well; then it serves, and nothing of the refusals is left."""
    (tmp_path / "refusing_engine.py").write_text(REFUSING_ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    bad = {"module": "refusing_engine", "first": 5}
    with pytest.raises(UserError, match=r"max_refused_share: 7 of 12 .* \(refused_by_engine 7\)"):
        run_stage(prompts(12), engine=bad, part_size=2, n=1)
    out = tmp_path / "work" / "out" / "groups"
    assert len(tables.parts(out)) == 2
    assert "prompt p5: refused by the engine: out of memory" in capsys.readouterr().out
    rows, report = run_stage(prompts(12), engine={**bad, "first": 99}, part_size=2, n=1)
    assert [len(row.completions) for row in rows] == [1] * 12
    assert report.dropped == {}
    rows, report = run_stage(prompts(12), engine=bad, part_size=2, n=1, work="allowed", max_refused_share=1.0)
    assert [len(row.completions) for row in rows] == [1] * 5 + [0] * 7
    assert report.dropped == {"refused_by_engine": 7}


def test_truncated_completions_are_dropped_by_setting(run_stage):
    kept, first = run_stage(prompts(6), temperatures=[1.5], n=4, max_tokens=24)
    rows, report = run_stage(prompts(6), temperatures=[1.5], n=4, max_tokens=24, truncated="drop", work="dropped")
    number = sum(c.finish_reason == LENGTH for row in kept for c in row.completions)
    assert 0 < number < 24
    assert report.dropped == {"completion_truncated": number}
    assert report.counts["truncated_share"] == first.counts["truncated_share"] == round(number / 24, 4)
    assert [row.completions for row in rows] == [
        tuple(c for c in row.completions if c.finish_reason != LENGTH) for row in kept]


def test_no_prompts_give_an_empty_table(run_stage, tmp_path):
    rows, report = run_stage([])
    assert rows == []
    assert report.counts["prompts"] == 0
    assert [p.name for p in tables.parts(tmp_path / "work" / "out" / "groups")] == ["part-00000.parquet"]


def test_wrong_prompts_are_all_named_before_anything_is_sampled(run_stage, tmp_path):
    good, bare, foreign = prompts(3)
    groups = [good, good, replace(bare, prompt_ids=()), replace(foreign, prompt_ids=(1, 320))]
    with pytest.raises(UserError) as caught:
        run_stage(groups)
    twice, bare_ids, outside = caught.value.problems
    assert "an id that an earlier prompt has too" in twice
    assert "no prompt_ids" in bare_ids
    assert "outside the vocabulary" in outside
    assert not tables.parts(tmp_path / "work" / "out" / "groups")


def test_a_limit_that_leaves_no_room_for_any_prompt_is_known_before_sampling(run_stage):
    """Context 256, shortest prompt 11 tokens: 246 more do not fit, 245 do."""
    with pytest.raises(UserError, match=r"sampling\.max_tokens: 246 leaves no room .* shortest has 11 .*context 256"):
        run_stage(prompts(2), max_tokens=246)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"n": 0}, "n: 0 is out of range"),
    ({"temperatures": []}, "temperatures: is empty"),
    ({"temperatures": [0.7, 0.7]}, "names one twice"),
    ({"temperatures": [-1]}, "out of range"),
    ({"groups": [{"temperature": 1.0, "top_p": 0}]}, "groups[0].top_p: 0.0 is out of range, expected 0.0 < x <= 1.0"),
    ({"groups": [{"temperature": 1.0}, {"temperature": 0.5, "top_k": -1}]}, "groups[1].top_k: -1 is out of range"),
    ({"groups": [{"temperature": 1.0, "n": 0}]}, "groups[0].n: 0 is out of range"),
    ({"groups": [{"temperature": 1.0, "stop_ids": [-4]}]}, "groups[0].stop_ids: -4 is out of range"),
    ({"groups": [{"temperature": 1.0, "topp": 1}]}, "groups[0].topp: unknown key"),
    ({"groups": [{"n": 2}]}, "groups[0].temperature: missing, expected a number"),
    ({"groups": [{"temperature": 1.0, "n": 2}, {"temperature": 1, "n": 3}]}, "groups[1]: draws as groups[0] does"),
    ({"max_tokens": 0}, "max_tokens: 0 is out of range"),
    ({"truncated": "perhaps"}, "expected one of keep, drop"),
])
def test_wrong_settings(changes, expected):
    values = {"engine": "pipeline.engines.vllm", "dtype": "float32", **changes}
    assert any(expected in problem for problem in config.problems_of(generate.Settings, values))


def test_the_plan_tells_wrong_groups_and_servers_by_the_users_keys():
    """Nothing is computed; the answers to the evaluation prompts are drawn without the groups of the loop."""
    words = ["recipe=pco", "sampling.groups=[{temperature:1.0,top_p:2},{temperature:0.5,n:0}]", "selection=best_worst",
             "engine=vllm", "engine.url=http://127.0.0.1:9"]
    with pytest.raises(UserError) as caught:
        expand(compose(words))
    top_p, n, url = caught.value.problems
    assert top_p == "sampling.groups[0].top_p: 2.0 is out of range, expected 0.0 < x <= 1.0"
    assert n == "sampling.groups[1].n: 0 is out of range, expected 1 <= x"
    assert url.startswith("engine.url: http://127.0.0.1:9/v1/models: no vLLM server answers there")
    words = ["recipe=pco", "sampling.groups=[{temperature:1.0,n:1},{temperature:0.5,n:2,top_p:0.9}]"]
    steps = {step.name: step.settings for step in expand(compose(words))}
    assert (steps["generate[2]"].samples, steps["baseline"].samples) == (3, 4)
    assert steps["generate[2]"].draws == (Draw(1.0, 1, 1.0, 0, 300, ()), Draw(0.5, 2, 0.9, 0, 300, ()))
    words[1] = "sampling.groups=[{temperature:1.0,n:1}]"
    with pytest.raises(UserError, match="sampling gives 1"):
        expand(compose(words))


def test_an_unknown_engine_is_a_problem_of_the_plan():
    (problem,) = config.problems_of(generate.Runtime, {"engine": {"module": "pipeline.engines.vlm"}})
    assert problem.startswith("engine.module: no module 'pipeline.engines.vlm'")
    assert "vllm" in problem


def start_worker(
    tmp_path: Path, model: Path, groups: list[Group], part_size: int, engine: dict = VLLM, through: tuple[str, ...] = ()
) -> tuple[subprocess.Popen, Path]:
    """The stage in a process of its own, started by the command `through`; returns it and its output table."""
    if not tables.parts(tmp_path / "prompts"):
        tables.write(tmp_path / "prompts", groups)
    spec = {
        "stage": "generate", "run": "test", "step": "generate", "seed": 5, "work": str(tmp_path / "work"),
        "settings": {"engine": engine["module"], "dtype": "float32", "n": 4, "max_tokens": 64, "temperatures": [0.7]},
        "runtime": {"engine": engine, "part_size": part_size},
        "inputs": {"model": [str(model)], "prompts": [str(tmp_path / "prompts")]},
        "digests": {"model": ["d"], "prompts": ["p"]},
        "metrics": str(tmp_path / "metrics.jsonl"), "progress": str(tmp_path / "progress.json"),
    }
    (tmp_path / "step.json").write_text(json.dumps(spec))
    log = (tmp_path / "worker.log").open("a")
    command = [*through, sys.executable, "-m", "pipeline.worker", str(tmp_path / "step.json")]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    return process, tmp_path / "work" / "out" / "groups"


INSTANT_ENGINE = """
import contextlib, dataclasses
from pipeline.engines.engine import Answer, Backend, Sample
@dataclasses.dataclass(frozen=True)
class Settings:
    dtype: str = "float32"
class Engine:
    context_length, facts = 256, {}
    def sample(self, requests):
        for r in requests:
            ids = tuple(range(20, 20 + r.max_tokens))
            yield Answer(tuple(Sample(ids, "length", f"text {j}", r.seed + j) for j in range(r.n)))
@contextlib.contextmanager
def open_engine(model, settings, log):
    yield Engine()
BACKEND = Backend(Settings, open_engine)
"""


def test_memory_does_not_grow_with_the_number_of_prompts(tiny_model, tmp_path, monkeypatch):
    """Twelve times the prompts, all answered at once: only the ids that must be unique grow, by about 1 MB.

    A process's peak begins with that of the one that started it, and this one is large: a shell stands between them.
    """
    (tmp_path / "instant_engine.py").write_text(INSTANT_ENGINE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent.parent}")
    peaks = []
    for number in (1000, 12_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        engine, shell = {"module": "instant_engine", "dtype": "float32"}, ("sh", "-c", '"$@"; exit $?', "sh")
        process, out = start_worker(folder, tiny_model, prompts(number), 256, engine, shell)
        assert process.wait(300) == 0, (folder / "worker.log").read_text()
        assert tables.count(out) == number
        peaks.append(json.loads((folder / "work" / "result.json").read_text())["peak_memory_mb"])
    assert peaks[0] < 300  # its own, not this process's
    assert peaks[1] - peaks[0] < 5  # MB, of the stage's own process


@pytest.mark.slow
def test_kill_9_loses_nothing_and_samples_nothing_twice(use_vllm, tiny_model, tmp_path):
    groups = prompts(96)
    process, out = start_worker(tmp_path, tiny_model, groups, part_size=8)
    deadline = time.monotonic() + 120
    while len(tables.parts(out)) < 2:
        assert process.poll() is None, (tmp_path / "worker.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {part.name: part.stat().st_mtime_ns for part in tables.parts(out)}
    assert 2 <= len(before) < 12
    process, out = start_worker(tmp_path, tiny_model, groups, part_size=8)
    assert process.wait(120) == 0, (tmp_path / "worker.log").read_text()
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    rows = list(tables.read(out))
    assert [row.id for row in rows] == [group.id for group in groups]
    assert all(len(row.completions) == 4 for row in rows)

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    process, whole = start_worker(fresh, tiny_model, groups, part_size=8)
    assert process.wait(120) == 0
    assert list(tables.read(whole)) == rows  # as if it had never been killed
    counts = [json.loads((folder / "work" / "result.json").read_text())["counts"] for folder in (tmp_path, fresh)]
    assert counts[0]["tokens"] == counts[1]["tokens"] == sum(len(c.token_ids) for row in rows for c in row.completions)


@pytest.mark.slow
def test_a_server_that_crashes_mid_run_comes_back_and_nothing_is_lost(use_vllm, tiny_model, tmp_path):
    """vLLM's engine process is killed; the stage goes on by itself, and what it had finished is not sampled again."""
    groups = prompts(192)
    process, out = start_worker(tmp_path, tiny_model, groups, part_size=8)
    deadline = time.monotonic() + 120
    while len(tables.parts(out)) < 2:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
        time.sleep(0.02)
    family = psutil.Process(use_vllm.processes[0].pid).children(recursive=True)
    (engine,) = [p for p in family if "EngineCore" in " ".join(p.cmdline())]
    engine.kill()
    before = {part.name: part.stat().st_mtime_ns for part in tables.parts(out)}
    assert process.wait(400) == 0, (tmp_path / "worker.log").read_text()
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    said = (tmp_path / "worker.log").read_text()
    assert f"the vLLM server at {use_vllm.url} was lost (" in said and "serves again" in said
    rows = list(tables.read(out))
    assert [row.id for row in rows] == [group.id for group in groups]
    assert all(len(row.completions) == 4 for row in rows)
    result = json.loads((tmp_path / "work" / "result.json").read_text())
    assert result["counts"]["server_losses"] == 1
    assert result["dropped"] == {}

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    process, whole = start_worker(fresh, tiny_model, groups, part_size=8)
    assert process.wait(120) == 0
    assert list(tables.read(whole)) == rows  # as if it had never crashed


@pytest.mark.slow
def test_log_probs_are_in_the_table_where_they_are_wanted(use_vllm, run_stage):
    rows, _ = run_stage(prompts(4), engine=VLLM, logprobs=True)
    ours, _ = run_stage(prompts(4), logprobs=True, temperatures=[0.0], n=1, work="ours")
    for row in [*rows, *ours]:
        for completion in row.completions:
            assert completion.logprobs is not None
            assert len(completion.logprobs) == len(completion.token_ids)
            assert max(completion.logprobs) <= 0
    plain, _ = run_stage(prompts(4), work="plain")
    assert {c.logprobs for row in plain for c in row.completions} == {None}


@pytest.mark.slow
def test_both_engines_give_the_same_greedy_table(use_vllm, run_stage):
    ours, _ = run_stage(prompts(6), n=1, temperatures=[0.0])
    served, report = run_stage(prompts(6), engine=VLLM, n=1, temperatures=[0.0], work="vllm")
    assert served == ours
    assert report.counts["logprob_gap"] < 1e-3
