"""What a run ends with: report.md and report.json in its folder, a table in the terminal, where to look next."""

import json
from pathlib import Path
from typing import Any

from flows import gates, origins, outcome, reward_models, rewarded, screen, verdicts, watched
from flows.told import told
from pipeline import files, report, runs, store
from pipeline.errors import command


def conclude(workspace: Path, run: runs.Run, done: dict[str, store.Artifact], seconds: float) -> None:
    """Write the report from the manifests and print it. `seconds`: wall time of this call's work."""
    steps = [_record(step, done[step["name"]]) for step in run.steps if step["name"] in done]
    rows = report.rows(steps)
    folder = runs.folder(workspace, run.name)
    title = f"{run.name}: {run.config['choices']['recipe']} on {run.config['choices'].get('data', 'minifarm')}"
    compared = [path for _, path in _folders(run, done, "report")][-1:]
    diagnostics = [(s["iteration"], json.loads((path / "diagnostics.json").read_text()))
                   for s, path in _folders(run, done, "diagnose")]
    counted, learned = [(step.iteration, step.kind, step.counts) for step in steps], rewarded.count_of(run.config)
    said, story = verdicts.of_steps(counted, learned), told(counted, learned)
    means = "".join(f"- iteration {iteration}: {one.text} ({one.rule})\n" for iteration, found in said for one in found)
    sections = {"In three sentences": " ".join(story),
                "What it means": means and f"By the rules of docs/reading-a-run.md:\n\n{means}",
                "Evaluation": "".join((path / "comparison.md").read_text() for path in compared),
                "Diagnostics": report.diagnostics_table(diagnostics), "Gates": gates.table(run, done),
                "Reward models": reward_models.table(steps, [
                    (s["name"], path) for s, path in _folders(run, done, "bench_reward")]),
                "What it trained on": origins.table(run, done),
                "What it still can": watched.table([(s["iteration"], json.loads((path / "watch.json").read_text()))
                                                    for s, path in _folders(run, done, "watch")])}
    files.write_atomic(folder / "report.md", report.to_markdown(title, rows, steps, sections))
    files.write_atomic(folder / "report.json", json.dumps(report.to_json(title, rows, steps), indent=1))
    screen.say("")
    left_out = _LEFT_OUT | (set(outcome.HEADERS[1:]) if compared else set())
    shown = [i for i, header in enumerate(report.HEADERS) if header not in left_out]
    screen.table(title, [report.HEADERS[i] for i in shown], [[row[i] for i in shown] for row in report.cells(rows)])
    if run.outcome.startswith("stopped"):
        _say_why(run, done)
    for path in compared:
        entries = json.loads((path / "comparison.json").read_text())
        kl = {iteration: data["kl"]["per_answer"] for iteration, data in diagnostics}
        screen.say("")
        heads = [rewarded.heading(run.config) if head == "learned" else head for head in outcome.HEADERS]
        screen.table(outcome.title(entries), heads, outcome.rows(entries, kl, rewarded.name_of(run.config)))
        screen.paragraph(outcome.seen(entries))
    for one in (one for _, found in said[-1:] for one in found if one.rule not in ("gold", "quiet")):
        screen.paragraph(f"{one.rule}: {one.text}")
    if story:
        screen.say("\nin three sentences:")
    for sentence in story:
        screen.paragraph(sentence)
    _say_time(run, steps, seconds)
    screen.say(f"report    {folder / 'report.md'}\nmetrics   {folder / 'metrics.jsonl'}\nlogs      {folder / 'logs'}\n"
               f"samples   {_samples(run, done)}\nto read   docs/reading-a-run.md: what the numbers mean\n")
    ways = {"see it in the browser": ("dashboard",), "keep or send it as one page": ("report", run.name, "--html"),
            "see its steps": ("status", run.name)}
    for what, words in ways.items():
        screen.say(f"{what}:{command(workspace, *words)}")


def _say_time(run: runs.Run, steps: list[report.StepRecord], seconds: float) -> None:
    work = sum(step.seconds for step in steps if not step.cached)
    jobs = run.config["hardware"].get("jobs", 1)  # records of older code do not say it
    if work and jobs > 1:
        screen.say(f"\n{seconds:.1f} s; its steps, up to {jobs} at a time, took {work:.1f} s together")
    elif work:
        screen.say(f"\n{seconds:.1f} s, of them {work:.1f} s in stages (orchestration "
                    f"{100 * max(0.0, seconds - work) / seconds:.1f} %)")
    else:
        screen.say(f"\nevery step cached, {seconds:.1f} s")


def _folders(run: runs.Run, done: dict[str, store.Artifact], stage: str) -> list[tuple[dict[str, Any], Path]]:
    """The run's steps of a stage that were done, each with its artifact's folder."""
    return [(s, done[s["name"]].path) for s in run.steps if s["stage"] == stage and s["name"] in done]


def _say_why(run: runs.Run, done: dict[str, store.Artifact]) -> None:
    step = run.outcome.removeprefix(runs.STOPPED_BY)
    decision = gates.read(done[step])
    assert decision is not None
    screen.say(f"\n{run.outcome}: {'; '.join(decision['reasons'])}\nmodel     {done[step].path / 'model'} "
                f"(of iteration {decision['goes_on_from']}; 0: what the loop began with)")


def _samples(run: runs.Run, done: dict[str, store.Artifact]) -> str:
    """Where the last answers and their scores are."""
    scored = _folders(run, done, "score")
    found = runs.groups_of(run.steps, scored[-1][0]["name"]) if scored else []
    if not found:
        return "none: this recipe samples nothing"
    (step, part), *_ = found  # score reads one table
    return f"{done[step['name']].path / part}\nscores    {scored[-1][1] / 'scores'}"


_LEFT_OUT = {"samples", "best of N", "peak memory"}  # in the report, too wide for a terminal


def _record(step: dict[str, Any], artifact: store.Artifact) -> report.StepRecord:
    facts = artifact.manifest  # its own step names are those of the run that made it
    return report.StepRecord(
        step=step["name"], kind=artifact.kind, key=artifact.key, iteration=step["iteration"],
        inputs=tuple(ref.partition("/")[0] for ref in step["inputs"]), cached=step["state"] != "done",
        settings=facts["settings"], counts=facts["counts"], dropped=facts["dropped"],
        seconds=facts["process_seconds"], peak_memory_mb=facts["peak_memory_mb"])
