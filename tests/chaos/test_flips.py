"""One bit of a file that flipped on the disk: found before anything made from it is committed, whatever file it is."""

from __future__ import annotations

import collections
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from flows import failures
from flows import step as launch
from pipeline import plan, runs, store, tables
from pipeline.errors import UserError
from tests.chaos import small
from tests.flows.loops import in_this_process

pytestmark = pytest.mark.slow
SEED = 1


@pytest.fixture(scope="module")
def copied(reference, tmp_path_factory) -> tuple[Path, Path]:
    """A copy of the undisturbed run's workspace to damage, and the original."""
    copy = tmp_path_factory.mktemp("flips") / "workspace"
    shutil.copytree(reference[1], copy)
    return copy, reference[1]


def flip(file: Path, rng: random.Random) -> None:
    """One seeded bit of it."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def read_files(workspace: Path) -> dict[str, list[tuple[plan.Step, str, str]]]:
    """Kind of file -> (step that reads it, step that made it, its name in that one's artifact), all there are."""
    made, found = small.made(workspace), collections.defaultdict(list)
    for step in plan.steps_of(runs.load(workspace, "small")):
        for ref in {ref for refs in step.inputs.values() for ref in refs}:
            for name in made[ref.step].manifest["files"]:
                if not ref.part or name.startswith(f"{ref.part}/"):
                    kind = re.sub(r"\d+", "*", f"{made[ref.step].kind}/{name}")
                    found[kind].append((step, ref.step, name))
    return found


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_flipped_bit_of_what_a_step_reads_is_found_before_it_commits(times, copied, monkeypatch):
    """Every kind of file that any stage reads, by seed: its maker is set aside, its reader commits nothing."""
    workspace, original = copied
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    kinds, rng = read_files(workspace), random.Random(SEED)
    assert len(kinds) >= 20, sorted(kinds)
    place = launch.Launch(workspace, "small", 5.0, 0.0)
    for kind, read in sorted(kinds.items()):
        for reader, maker, name in rng.choices(read, k=times):
            done = small.made(workspace)
            bad, lost = done[maker], done.pop(reader.name)
            shutil.rmtree(lost.path)
            flip(bad.path / name, rng)
            with pytest.raises(failures.InputDamaged, match=re.escape(f"{bad.path / name}: content changed")):
                launch.ensure(place, plan.look_up(workspace, reader, done), done, {}, lambda *_: None)
            assert not lost.path.exists() and not bad.path.exists(), kind
            assert not list(lost.path.parent.glob(".work-*")), kind
            for artifact in (bad, lost):
                shutil.copytree(original / artifact.path.relative_to(workspace), artifact.path)
    assert small.differing(workspace, original) == []


@pytest.mark.parametrize("most", [50, pytest.param(10**6, marks=pytest.mark.long)])
def test_every_byte_counts(most, copied):
    """One seeded bit in each byte of one file of each kind, `most` bytes of it: what a commit asks of everything that
    was read finds them all, and finds nothing once they are as they were."""
    workspace, rng, flips = copied[0], random.Random(SEED), 0
    done = small.made(workspace)
    for _, maker, name in (read[0] for _, read in sorted(read_files(workspace).items())):
        artifact, file, part = done[maker], done[maker].path / name, name.rpartition("/")[0]
        content = file.read_bytes()
        with file.open("r+b", buffering=0) as raw:
            for at in sorted(rng.sample(range(len(content)), min(most, len(content)))):
                os.pwrite(raw.fileno(), bytes([content[at] ^ 1 << rng.randrange(8)]), at)
                assert store.damaged_files(artifact, part) == [
                    f"{file}: content changed (its {store.ALGORITHM} is not the manifest's)"], (name, at)
                os.pwrite(raw.fileno(), content[at : at + 1], at)
                flips += 1
        assert store.damaged_files(artifact, part) == []
    print(f"{flips} flips in {len(read_files(workspace))} kinds of files")


@pytest.mark.parametrize(("name", "table"), [("generate[2]", "groups"), ("score[2]", "scores")])
@pytest.mark.parametrize("when", ["while it waits", "while it is made"])
def test_a_flipped_bit_of_a_finished_part_is_found(when, name, table, copied, monkeypatch):
    """Of work that was cut short after its second part, and is gone on with; or of the first part while the third is
    made, which costs the attempt. The bytes are those of the undisturbed run in the end."""
    workspace, original = copied
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done, rng, written = small.made(workspace), random.Random(SEED), []
    lost = done.pop(name)
    shutil.rmtree(lost.path)
    step = next(one for one in plan.steps_of(runs.load(workspace, "small")) if one.name == name)
    place, put = launch.Launch(workspace, "small", 5.0, 0.0), tables.put

    def disturbed(path: Path, *more: object) -> Path:
        if len(written) == 2 and when == "while it waits":
            raise SystemExit(143)
        if len(written) == 2:
            flip(written[0], rng)
        written.append(put(path, *more))
        return written[-1]

    def ensure() -> store.Artifact:
        return launch.ensure(place, plan.look_up(workspace, step, done), done, {}, lambda *_: None)[0]

    with monkeypatch.context() as patch:
        patch.setattr(tables, "put", disturbed)
        with pytest.raises((SystemExit, UserError)):
            ensure()
    assert not lost.path.exists()
    if when == "while it waits":
        flip(written[0], rng)
    made = ensure()
    assert {file.parent.name for file in written} == {table}
    assert made.manifest["files"] == lost.manifest["files"] and store.damage(made) == []
    shutil.rmtree(made.path)
    shutil.copytree(original / made.path.relative_to(workspace), made.path)


@pytest.mark.parametrize("number", [2, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["data", "tokens", "sft", "generate[2]", "score[2]"])
def test_a_flipped_bit_of_unfinished_work_changes_nothing(name, number, copied, monkeypatch):
    """Of any file of work that was killed before its commit: rows, marks of what is done, tallies, the arrays that
    training reads, checkpoints and what they say of themselves. The same bytes and counts come of it."""
    workspace, original = copied
    monkeypatch.setattr(launch, "_run_worker", in_this_process)
    done, rng = small.made(workspace), random.Random(SEED)
    lost = done.pop(name)
    step = next(one for one in plan.steps_of(runs.load(workspace, "small")) if one.name == name)
    place, work = launch.Launch(workspace, "small", 5.0, 0.0), store.work_path(workspace, step.stage, lost.key)

    def ensure() -> store.Artifact:
        return launch.ensure(place, plan.look_up(workspace, step, done), done, {}, lambda *_: None)[0]

    def killed(*_: object) -> None:
        raise SystemExit(143)

    shutil.rmtree(lost.path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(store, "commit", killed)
        ensure()
    kept = workspace.parent / f"kept-{name}"
    shutil.copytree(work, kept, dirs_exist_ok=True)
    found = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file() and path.stat().st_size]
    for file in rng.sample(found, min(number, len(found))):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(kept, work)
        flip(work / file, rng)
        made = ensure()
        assert made.manifest["files"] == lost.manifest["files"] and store.damage(made) == [], file
        assert timeless(made) == timeless(lost), file
        shutil.rmtree(made.path)
    shutil.rmtree(kept)
    shutil.copytree(original / lost.path.relative_to(workspace), lost.path)


def timeless(artifact: store.Artifact) -> dict:
    """What its manifest counts, without seconds, and what only a stage that has opened its engine says."""
    counts = artifact.manifest["counts"].items()
    return {k: v for k, v in counts if "second" not in k and k != "logprob_gap"} | artifact.manifest["dropped"]


def test_a_flipped_bit_of_what_no_step_reads_is_found_when_the_run_looks(copied):
    """comparison.json, diagnostics.json, evaluation.json: the run obeys them, and its report is made of them."""
    workspace, original = copied
    rng, names = random.Random(SEED), set()
    for artifact in small.made(workspace).values():
        for name in (name for name in artifact.manifest["files"] if "/" not in name):
            flip(artifact.path / name, rng)
            assert store.find(workspace, artifact.kind, artifact.key) is None, name
            shutil.copy(original / artifact.path.relative_to(workspace) / name, artifact.path / name)
            names.add(name)
    assert names >= {"comparison.json", "comparison.md", "diagnostics.json", "evaluation.json", "outcomes.jsonl"}
    assert small.differing(workspace, original) == []


@pytest.mark.parametrize("times", [200, pytest.param(5000, marks=pytest.mark.long)])
def test_a_flipped_bit_of_a_record_is_found(times, copied):
    """Manifests, so that the artifact is no longer taken for done; run.json, so that the run is refused; remembered
    hashes, so that the files are read again. A flip in the name of the hash leaves what it guards as it was."""
    workspace, original = copied
    rng, manifests = random.Random(SEED), sorted((workspace / "artifacts").glob("*/[!.]*/manifest.json"))
    for _ in range(times):
        manifest = rng.choice(manifests)
        flip(manifest, rng)
        found = store.find(workspace, manifest.parent.parent.name, manifest.parent.name)
        good = json.loads((original / manifest.relative_to(workspace)).read_bytes())
        assert found is None or same(found.manifest, good, store.SEAL)
        shutil.copy(original / manifest.relative_to(workspace), manifest)
    record, hashes = workspace / "runs/small/run.json", workspace / "file-hashes.json"
    remembered, good_run = store._remembered(workspace), vars(runs.load(workspace, "small"))
    assert remembered
    for _ in range(times):
        flip(record, rng)
        try:
            assert vars(runs.load(workspace, "small")) == good_run
        except UserError as error:
            assert "not a run record" in str(error)
        shutil.copy(original / "runs/small/run.json", record)
        flip(hashes, rng)
        found = store._remembered(workspace)
        assert found == {} or same(found, remembered, store._HASH)
        shutil.copy(original / "file-hashes.json", hashes)


def same(found: dict, good: dict, seal: str) -> bool:
    """They differ in the name of the hash alone, which the bit flipped in: every other byte is as it was."""
    return {k: v for k, v in found.items() if k in good and k != seal} == {k: v for k, v in good.items() if k != seal}
