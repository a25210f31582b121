"""How often a scorer prefers what people prefer: real scorers on pairs of files, by subset."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows import reward_models
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.report import StepRecord
from pipeline.stage import Context, Reporter
from pipeline.stages import bench_reward
from pipeline.statistics import wilson
from tests.rewards.judges.server import serving

LENGTH = {"module": "pipeline.rewards.length", "low": 0, "high": 3}  # words; shorter than four is best


def write(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair(number: int, chosen: str, rejected: str, **more: str) -> dict[str, str]:
    return {"prompt": f"question {number}", "chosen": chosen, "rejected": rejected, **more}


def run(tmp_path: Path, reward: dict[str, Any], **inputs: Path) -> tuple[dict[str, Any], Reporter, Path]:
    report = Reporter()
    context = Context(build(bench_reward.Settings, {"reward": reward}),
                      bench_reward.Runtime(root=str(tmp_path / "bench"), answers=str(tmp_path / "kept")),
                      {name: (path,) for name, path in inputs.items()}, {}, tmp_path / "work", 0, report)
    bench_reward.run(context)
    return json.loads((context.out / "bench.json").read_text()), report, context.out


def test_accuracy_by_subset_beside_length_and_chance(tmp_path: Path) -> None:
    """Right about 2 of 3 of "chat" (a tie is a half: 1 + 1 + 0.5 over 3), 0 of 1 of the other file's, whose name is its
    subset. All: 2.5 of 4. The longer one is right in the last and in neither of the others but the second.
    """
    write(tmp_path / "bench", "rows.jsonl", pair(1, "a b", "a b c d e", subset="chat"),
          pair(2, "aaaa aaaa", "a b c d", subset="chat"), pair(3, "a b", "abc", subset="chat"))
    write(tmp_path / "bench", "hard.test.jsonl", pair(4, "one two three four five", "one"))
    found, report, _ = run(tmp_path, LENGTH)
    chat, hard, whole = found["subsets"]["chat"], found["subsets"]["hard.test"], found["all"]
    assert (chat["pairs"], chat["accuracy"], hard["pairs"], hard["accuracy"]) == (3, pytest.approx(2.5 / 3), 1, 0.0)
    assert (whole["pairs"], whole["accuracy"], whole["length_accuracy"]) == (4, 0.625, pytest.approx(2.5 / 4))
    assert (whole["accuracy_low"], whole["accuracy_high"]) == wilson(0.625, 4)
    assert whole["mean_of_subsets"] == pytest.approx(2.5 / 6)
    assert bench_reward.STAGE.says is not None
    assert bench_reward.STAGE.says(report.counts)[1:] == [
        "length alone 62.5%, chance 50 %", "mean of 2 subsets 41.7%"]


def test_ranked_lists_and_rows_without_a_preference(tmp_path: Path) -> None:
    """Of a list the first is compared with each other one; a demonstration and a repeated row are counted."""
    ranked = {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "a b c d e f", "rank": 2},
                                         {"answer": "a b c d", "rank": 3}]}
    write(tmp_path / "bench", "rows.jsonl", ranked, {"prompt": "q", "completion": "x"}, pair(1, "a", "a b c d"),
          pair(1, "a", "a b c d"))
    found, report, _ = run(tmp_path, LENGTH)
    assert (found["all"]["pairs"], found["all"]["accuracy"]) == (3, 1.0)
    assert report.dropped == {"no preference": 1, "same row again": 1}


SEEN: list[str] = []


def once(messages: object, text: str) -> float:
    """A rule that is killed at its seventh answer."""
    SEEN.append(text)
    if len(SEEN) == 7:
        raise KeyboardInterrupt
    return float(len(text))


def test_a_killed_one_goes_on_behind_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_reward, "_SLICE", 2)
    SEEN.clear()
    write(tmp_path / "bench", "rows.jsonl", *(pair(i, f"{i} aa", f"{i} b") for i in range(5)))
    rule = {"module": "pipeline.rewards.rule", "function": f"{__name__}.once"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, rule)
    found, _, _ = run(tmp_path, rule)
    assert (found["all"]["pairs"], found["all"]["accuracy"]) == (5, 1.0)
    again = SEEN[4:7]  # what was in hand when it was killed
    assert Counter(SEEN) == Counter(f"{i} {text}" for i in range(5) for text in ("aa", "b")) + Counter(again)


def test_a_judge_is_measured_as_it_scores(tmp_path: Path) -> None:
    """It prefers the longer answer; what it refuses has no score and is left out."""
    write(tmp_path / "bench", "rows.jsonl", pair(1, "longer", "short"), pair(2, "a", "bbb"), pair(3, "refuse", "x"))
    with serving(tmp_path / "log") as url:
        found, report, _ = run(tmp_path, {"module": "pipeline.rewards.judge", "model": "judge", "base_url": url})
    assert (found["all"]["pairs"], found["all"]["accuracy"]) == (2, 0.5)
    assert report.dropped == {"without a score": 1}


def test_a_reward_model_of_the_loop(tmp_path: Path, make_model: Any) -> None:
    """Its scores are those of the scorer: the share of pairs with the higher one for the preferred answer."""
    import torch
    import transformers

    from pipeline.records import Completion, Group, Message
    from pipeline.rewards import model

    folder = make_model(tmp_path / "base")
    torch.manual_seed(1)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    net.save_pretrained(tmp_path / "rm")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "rm")
    texts = [("yes", "no"), ("left", "right"), ("one", "two"), ("a", "b")]
    write(tmp_path / "bench", "rows.jsonl", *(pair(i, *two) for i, two in enumerate(texts)))
    found, _, _ = run(tmp_path, {"module": "pipeline.rewards.model", "precision": "float32"}, model=tmp_path / "rm")
    groups = [Group(str(i), (Message("user", f"question {i}"),), tuple(map(Completion, two)))
              for i, two in enumerate(texts)]
    own = model.scorer(model.Settings(precision="float32"), model=tmp_path / "rm")(groups)
    assert found["all"]["accuracy"] == sum(a > b for a, b in own) / 4
    wanted = [bench_reward.wanted(build(bench_reward.Settings, {"reward": reward}))
              for reward in ({"module": "pipeline.rewards.model"}, LENGTH)]
    assert wanted == [{"model"}, set()]


def test_what_is_wrong_is_said_at_plan(tmp_path: Path) -> None:
    settings = build(bench_reward.Settings, {"reward": LENGTH})
    write(tmp_path / "bench", "rows.jsonl", {"prompt": "q", "completion": "x"})
    runtime = bench_reward.Runtime(root=str(tmp_path / "bench"))
    assert bench_reward.check(settings, runtime) == [f"reward.bench.root: {tmp_path}/bench has {bench_reward.NONE}"]
    (missing,) = bench_reward.check(settings, bench_reward.Runtime(root=str(tmp_path / "none")))
    assert missing.startswith("reward.bench.root: ")
    write(tmp_path / "bench", "rows.jsonl", pair(1, "a", "b"), {"prompt": "q", "chosen": [], "rejected": "x"})
    (wrong,) = bench_reward.check(settings, runtime)
    assert wrong.startswith(f"{tmp_path}/bench/rows.jsonl:2: chosen:")
    assert problems_of(bench_reward.Settings, {"reward": {"module": "pipeline.rewards.lenght"}}, "s")[0].startswith(
        "s.reward.module: no module")
    with pytest.raises(UserError, match=r"reward\.bench\.root: not set"):
        bench_reward.files(settings, bench_reward.Runtime())


def test_the_reports_table(tmp_path: Path) -> None:
    """A line for the held-out pairs of a training, one for each subset, one for all of several."""
    write(tmp_path / "bench", "a.jsonl", pair(1, "a", "a b c d"))
    write(tmp_path / "bench", "b.jsonl", pair(2, "a b c d", "a"))
    _, _, out = run(tmp_path, LENGTH)
    counts = {"held_out_groups": 80, "held_out_accuracy": 0.55, "held_out_accuracy_low": 0.44, "held_out_ece": 0.1,
              "held_out_accuracy_high": 0.65, "held_out_length_accuracy": 0.5, "held_out_controlled_accuracy": 0.53}
    text = reward_models.table([StepRecord("reward", "train_reward", 0, counts=counts)], [("bench", out)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert rows[0] == ["reward: held out", "80", "55.0% (44.0% to 65.0%)", "50.0%", "50.0%", "53.0%", "0.100"]
    assert [row[0] for row in rows[1:]] == ["bench: a", "bench: b", "bench: all"]
    assert [row[2].partition(" ")[0] for row in rows[1:]] == ["100.0%", "0.0%", "50.0%"]
    assert reward_models.table([], []) == ""
