"""Files that are whole or absent, durable, hashed and locked: the only such code.

A reader of `path` sees the old content or the new one, never half of it, whatever is killed and when. What a kill
leaves is named `.NAME.PID.tmp`.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline import clock

ALGORITHM = "sha256"
_SEAL = "content_hash"  # of the rest, in a file of write_sealed
WORK, _NOTES = ".work-", "hashes"  # folders of unfinished work begin so; in each, the hashes of what is finished of it
_CLONE = 0x40049409  # FICLONE: the new file shares the old one's blocks until either is written to
_FAULTS = {errno.ENOSPC: errno.ENOSPC, errno.EDQUOT: errno.ENOSPC, errno.EIO: errno.EIO, errno.EROFS: errno.EROFS}
# Exit codes of a process, by disk_fault; 74 as sysexits' EX_IOERR: there may be no disk to write more on
EXIT = {errno.ENOSPC: 74, errno.EIO: 73, errno.EROFS: 72}


class Held(Exception):
    """Another process holds the lock; the text is what it wrote into the lock's file."""


def canonical(data: Any) -> str:
    """One text per value: sorted keys, no NaN, plain data only."""
    return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=True)


def parsed(text: str | bytes) -> Any:
    """JSON as data. Raises ValueError for whatever is none, nested deeper than Python goes, too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parsed_lines(data: bytes, **kinds: type | tuple[type, ...]) -> list[dict[str, Any]]:
    """The lines of a JSON lines file that are mappings with these keys, of these types: a torn or foreign one is
    passed over.
    """
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            one = parsed(line)
            if isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in kinds.items()):
                found.append(one)
    return found


def append_line(path: Path, text: str) -> None:
    """Add a line; where a write before it was cut short, that stays a line of its own."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        file.write(f"{text}\n".encode())


def disk_fault(error: BaseException | None) -> int:
    """ENOSPC, EIO or EROFS where the error, or one that it came from, says that a disk is full, broken or read-only;
    else 0. safetensors' own says it in words only.
    """
    while error is not None:
        for number, meant in _FAULTS.items():
            if (isinstance(error, OSError) and error.errno == number) or os.strerror(number) in str(error):
                return meant
        error = error.__cause__ or error.__context__
    return 0


def no_room(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, says that a disk is full."""
    return disk_fault(error) == errno.ENOSPC


def seal(content: dict[str, Any], name: str) -> str:
    """Hash of a JSON file's mapping, as it is read from the file, without the hash it carries as `name`."""
    rest = {key: value for key, value in content.items() if key != name}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The mapping as a reader of its JSON will have it, with its hash as `name`."""
    content = json.loads(json.dumps(content))
    return {**content, name: seal(content, name)}


def write_sealed(path: Path, content: dict[str, Any], durable: bool = True, mode: int = 0o666) -> None:
    """Write a mapping as JSON that carries its own hash: `read_sealed` sees whether the disk changed it."""
    write_atomic(path, json.dumps(sealed(content, _SEAL)), durable, mode)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The mapping that `write_sealed` wrote; None where there is none, or not as it was written. One without a hash is
    of older code and taken as it is.
    """
    try:
        found = parsed(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or (_SEAL in found and found[_SEAL] != seal(found, _SEAL)):
        return None
    return {key: value for key, value in found.items() if key != _SEAL}


@clock.spending(clock.HASH)
def file_hash(path: Path) -> str:
    """The sha256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, ALGORITHM).hexdigest()


def note(path: Path, written: Path) -> None:
    """Remember the hash of what was just written and will be at `path`, where that is a part of unfinished work: it may
    lie on the disk for long before somebody goes on.
    """
    for work in path.parents:
        if work.name.startswith(WORK):
            kept = work / _NOTES / path.relative_to(work)
            write_atomic(kept.with_name(f"{kept.name}.{ALGORITHM}"), file_hash(written), durable=False)


def noted(work: Path) -> dict[Path, str]:
    """The files of unfinished work that a hash was remembered of -> that hash."""
    notes = work / _NOTES
    return {work / kept.relative_to(notes).with_suffix(""): kept.read_text(errors="replace")
            for kept in notes.rglob(f"*.{ALGORITHM}")}


def changed(work: Path) -> list[Path]:
    """The files of unfinished work whose content is not what was written."""
    return [path for path, known in sorted(noted(work).items()) if path.exists() and file_hash(path) != known]


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the body ends well.

    durable: on disk before it is seen, so that a power cut cannot tear it either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:  # a full disk, an interrupt: leave nothing of the attempt
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_atomic(path: Path, text: str, durable: bool = True, mode: int = 0o666) -> None:
    """Write a small file in one go: see `replacing`. mode: its rights, less what the umask takes."""
    with replacing(path, durable) as temporary:
        temporary.touch(mode)  # before anything is in it
        temporary.write_text(text)


def share(source: Path, target: Path) -> None:
    """`target` with the content of `source` without a second copy of it: as a clone where the file system makes one,
    else as a hard link, else (on another file system) as a symbolic link. docs/decisions/017 says why.
    """
    source = source.resolve()
    try:
        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new, _CLONE, old.fileno())
    except OSError:
        target.unlink()
        try:
            os.link(source, target)
        except OSError:
            target.symlink_to(source)


def let_read(path: Path, like: Path) -> None:
    """Give a file of ours the rights of `like`: safetensors writes for its owner alone. A shared file keeps its own."""
    known = path.lstat()
    if stat.S_ISREG(known.st_mode) and known.st_nlink == 1:
        path.chmod(stat.S_IMODE(like.stat().st_mode))


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, note: str, wait: float | None = 0) -> Iterator[None]:
    """Hold the lock of `path`, with `note` in it. The kernel frees it when the holder dies.

    wait: seconds to try, None: until it is free. Raises Held with the holder's note after that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = None if wait is None else time.monotonic() + wait
        while not _take(file, fcntl.LOCK_EX):
            if deadline is not None and time.monotonic() >= deadline:
                file.seek(0)
                raise Held(file.read().strip() or "another process")
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, without a note of who has it
            file.truncate(0)
            os.write(file.fileno(), note.encode())
        yield


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of `path`. Takes a share of it for a moment, which `locked` should wait for."""
    try:
        with path.open("rb") as file:
            return not _take(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _take(file: IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
