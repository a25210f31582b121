"""W&B's own client against a stub of its service on this machine: what arrives there is what W&B would draw."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.tracking import Settings, mirrored
from pipeline.tracking.wandb import Wandb
from tests.tracking.wandb_stub import serving


def lines(run_dir: Path, step: str, at: range) -> None:
    with (run_dir / tracking.METRICS).open("a") as file:
        file.writelines(json.dumps({"step": step, "at": i, "time": 1.0, "loss": 3.0 - i / 2}) + "\n" for i in at)


def test_a_resumed_run_is_one_curve_in_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two sessions of the mirror, as before and after a crash: one run, each line once and at its own step. The stub
    answers GraphQL and the file stream; nothing else was asked of it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    folder = tmp_path / "workspace" / "runs" / "demo"
    folder.mkdir(parents=True)
    wandb = {"mode": "online", "alerts": True}
    steps = [{"name": "sft", "stage": "sft", "key": "k1"}]
    record = {"name": "demo", "created": 1.5, "steps": steps, "config": {"seed": 7, "tracking": {"wandb": wandb}}}
    with serving() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        said: list[str] = []
        for outcome, at in (("running", range(3)), ("done", range(3, 5))):
            (folder / "run.json").write_text(json.dumps({**record, "outcome": outcome}))
            lines(folder, "sft", at)
            with mirrored(Settings(Wandb(mode="online")), folder, said.append):
                pass
    assert ["sent online" in line for line in said] == [True, True], (folder / tracking.LOG).read_text()
    (sft,) = (run for name, run in service.runs.items() if name.startswith("demo-sft-"))
    assert [(line["_step"], line["at"], line["loss"]) for line in sft["history"]] == [
        (0, 0, 3), (1, 1, 2.5), (2, 2, 2), (3, 3, 1.5), (4, 4, 1)]
    assert (sft["about"]["groupName"], sft["about"]["jobType"], sft["complete"]) == ("demo", "sft", 0)
    assert json.loads(sft["about"]["config"])["seed"]["value"] == 7
    assert service.alerts == [("demo: was interrupted", "ERROR"), ("demo: finished", "INFO")]
    assert service.unknown == []
