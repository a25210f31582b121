"""Every command that is printed works as it is printed, from any folder."""

import errno
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from flows import cli, driver, failures, going_on, inspection, summary, watching
from flows.dashboard.report import report
from flows.prepare import prepare
from pipeline import runs
from pipeline.errors import UserError, command
from tests.flows.loops import run as run_stages

COMMAND = re.compile(r"^ {4}(align .*)$", re.MULTILINE)


def test_a_command_names_the_workspace_unless_it_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert command("workspace", "run", "run=a") == "\n    align run run=a"
    assert command(tmp_path / "a b", "explain", "train[2]", "run=a") == (
        f"\n    align explain 'train[2]' run=a 'workspace={tmp_path}/a b'")
    assert command(tmp_path / "b", "run", "recipe=sft", "workspace=b") == (
        f"\n    align run recipe=sft workspace={tmp_path}/b")


@pytest.fixture
def printed(tmp_path: Path, small_world: Path, capsys: pytest.CaptureFixture) -> set[str]:
    """Every command that comes up around a run of which the first step is done."""
    place, texts = tmp_path / "there", list[str]()
    place.mkdir()

    def wrong(call: object, *arguments: object) -> None:
        with pytest.raises(UserError) as caught:
            call(*arguments)  # type: ignore[operator]
        texts.extend(caught.value.problems)

    assert inspection.status(str(place), None) == 0  # no run yet
    words = ["recipe=sft", "run=first", f"workspace={place}", f"data.root={small_world}"]
    done = run_stages([word for word in words if word[:3] not in ("run", "wor")], place, "first", "data")
    run = prepare(words).run
    runs.save(place, run)
    assert inspection.collect(str(place), apply=False) == 0  # the step's artifact is nobody's yet
    wrong(report, str(place), "first", False, False)
    steps = [{**s, "key": done["data"].key, "state": "done"} if s["name"] == "data" else s for s in run.steps]
    run = replace(run, steps=steps, outcome=runs.DONE)
    runs.save(place, run)
    log = runs.log_path(place, "first", "data")
    log.parent.mkdir()
    log.write_text("five rows\n")
    summary.conclude(place, run, done, 1.0)
    inspection.explain("tokens", ["run=first", f"workspace={place}"])
    inspection.explain("sft", ["run=first", f"workspace={place}"])
    with runs.hold(place, "first"):
        wrong(runs.hold(place, "first").__enter__)
    wrong(prepare, [*words, "trainer.sft.lr=1"])
    texts.append(str(failures.InputDamaged("tokens", place, "first", [])))
    texts.append(going_on.after_a_failure(place, "first", ""))
    disk = driver.Driver(place, replace(run, config={**run.config, "workspace": str(place)}), [])
    texts += [disk._why(errno.ENOSPC), disk._why(errno.EIO)]
    return set(COMMAND.findall("\n".join([*texts, capsys.readouterr().out])))


def test_every_printed_command_works_in_another_folder(printed, tmp_path, monkeypatch, capsys):
    """`run` as `plan` of the same words; the page and Prefect's server are not started."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    names = {text.split()[1] for text in printed}
    assert names >= {"run", "status", "gc", "explain", "logs", "stop", "report", "dashboard"}
    for text in sorted(printed, key=lambda text: "--apply" in text):  # what removes things comes last
        name, *words = shlex.split(text)[1:]
        assert words[-1] == f"workspace={tmp_path / 'there'}"
        if name in ("dashboard", "server"):
            assert name in cli._COMMANDS
        else:
            assert cli.main(["plan" if name == "run" else name, *words]) == 0, text
    assert not list(elsewhere.iterdir())
    assert "Traceback" not in capsys.readouterr().err
    assert watching.stop(str(tmp_path / "there"), "first") == 0
