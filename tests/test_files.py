"""Files that are whole or absent, and locks that die with their holder: checked with real processes."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import files

ROOT = Path(__file__).parent.parent


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "folder" / "record.json"
    files.write_atomic(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    files.write_atomic(path, "new", durable=False)
    assert path.read_text() == "new"


def test_a_sealed_file_tells_a_flipped_bit(tmp_path):
    """Every bit of it; one in the name of the hash leaves the rest as it was. Older code's has no hash."""
    path = tmp_path / "state.json"
    content = {"kept": 12, "why": {"too long": 3}, "words": ["\u2028", None, 0.1]}
    files.write_sealed(path, content)
    assert files.read_sealed(path) == content
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        found = files.read_sealed(path)
        assert found is None or {name: found.get(name) for name in content} == content
    for text, known in (("{}", {}), ('{"kept": 1}', {"kept": 1}), ("[]", None), ("", None), ("\xff", None)):
        path.write_bytes(text.encode("latin-1"))
        assert files.read_sealed(path) == known
    assert files.read_sealed(tmp_path / "none") is None


def test_what_is_finished_of_unfinished_work_is_known_by_its_hash(tmp_path):
    """A part that changes afterwards is found; elsewhere than in unfinished work nothing is noted."""
    work = tmp_path / ".work-key"
    for path in (work / "out/groups/part-00000.parquet", work / "out/groups/part-00001.parquet", tmp_path / "other"):
        with files.replacing(path) as temporary:
            temporary.write_text(path.name)
            files.note(path, temporary)
    first, second = sorted(files.noted(work))
    assert files.noted(work)[first] == hashlib.sha256(b"part-00000.parquet").hexdigest()
    assert files.changed(work) == [] and sorted(tmp_path.iterdir()) == [work, tmp_path / "other"]
    second.write_text("part-00001.parkuet")
    assert files.changed(work) == [second]
    second.unlink()
    assert files.changed(work) == []


def test_a_reader_never_sees_half_of_a_file(tmp_path):
    """A process writes two texts in turn and is killed; every read gives one of them whole."""
    path, texts = tmp_path / "record", {"a" * 300_000, "b" * 300_000}
    code = ("from pathlib import Path; from pipeline import files\n"
            f"while True:\n    for c in 'ab': files.write_atomic(Path({str(path)!r}), c * 300_000)")
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert {path.read_text() for _ in range(300)} <= texts
    finally:
        writer.kill()
        writer.wait()
    assert path.read_text() in texts


def test_hashes_are_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert files.file_hash(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_a_lock_names_its_holder_and_is_free_when_the_holder_dies(tmp_path):
    path = tmp_path / "locks" / "x.lock"
    assert not files.is_locked(path)
    code = ("import time; from pathlib import Path; from pipeline import files\n"
            f"with files.locked(Path({str(path)!r}), 'pid 7'):\n    print('held', flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert files.is_locked(path)
    with pytest.raises(files.Held, match="pid 7"), files.locked(path, "me", wait=0.1):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.locked(path, "me", wait=5):
        assert path.read_text() == "me"
    assert not files.is_locked(path)


def test_a_shared_file_takes_no_second_copy(tmp_path, monkeypatch):
    """A clone or a hard link survives the removal of the first name; on another file system it is a symbolic link."""
    (tmp_path / "a").write_bytes(b"x" * 4096)
    files.share(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x" * 4096 and not (tmp_path / "b").is_symlink()

    def elsewhere(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(files.fcntl, "ioctl", elsewhere)
    files.share(tmp_path / "a", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "a")
    monkeypatch.setattr(files.os, "link", elsewhere)
    files.share(tmp_path / "a", tmp_path / "pointing")
    assert (tmp_path / "pointing").readlink() == (tmp_path / "a").resolve()
    (tmp_path / "a").unlink()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "linked").read_bytes() == b"x" * 4096
