"""The content-addressed store: what is on disk, and the only proof that something is done.

    <workspace>/artifacts/<kind>/<key>/        payload + manifest.json, written last; shared by all runs
    <workspace>/artifacts/<kind>/.work-<key>/  work in progress, kept after a crash
    <workspace>/locks/<kind>-<key>.lock        flock; the holder's pid, host and time inside

The key is a hash of what the result depends on: kind, version, settings, the *output digests* of the inputs, seed.
The output digest is a hash over (relative path, file hash), so a stage rebuilt to the same bytes rebuilds nothing
after it. Kill this at any moment: a directory without a manifest is not an artifact.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import (
    ALGORITHM,
    WORK,
    Held,
    canonical,
    file_hash,
    is_locked,
    let_read,
    locked,
    noted,
    parsed,
    seal,
    sealed,
    sync,
    write_atomic,
)

KEY_LENGTH = 20
MANIFEST = "manifest.json"
SEAL = "manifest_hash"  # of the rest of the manifest; manifests of older code have none
_HASH = "hash of the rest"  # of file-hashes.json
SCHEMA = 1  # of a manifest
_SMALL = 2**20  # bytes, a millisecond to hash
_NUMBER = (int, float)
_SHAPE: dict[str, type | tuple[type, ...]] = {  # of a manifest without a hash of its own
    "files": dict, "inputs": dict, "counts": dict, "dropped": dict, "settings": dict, "version": int, "run": str,
    "step": str, "created": _NUMBER, "process_seconds": _NUMBER, "peak_memory_mb": _NUMBER}


@dataclass(frozen=True)
class Artifact:
    """A finished result on disk."""

    kind: str
    key: str
    path: Path
    manifest: dict[str, Any]

    def digest(self, part: str = "") -> str:
        """Digest of the payload, or of the sub-folder `part` alone. KeyError if the artifact has no such part."""
        files = self.manifest["files"]
        prefix = f"{part}/" if part else ""
        chosen = {name[len(prefix):]: f["hash"] for name, f in files.items() if name.startswith(prefix)}
        if not chosen:
            raise KeyError(f"artifact {self.kind}/{self.key} has no part {part!r}")
        return tree_digest(chosen)


class Busy(Exception):
    """Somebody else is computing this artifact."""


def fingerprint(kind: str, version: int, settings: Any, inputs: dict[str, list[str]], seed: int | None) -> str:
    """The artifact's key. `inputs` maps an input's name to output digests; `seed` is None where nothing is random."""
    parts = {"kind": kind, "version": version, "settings": settings, "inputs": inputs, "seed": seed}
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:KEY_LENGTH]


def tree_digest(hashes: dict[str, str]) -> str:
    """Digest over (relative path, file hash) pairs."""
    return hashlib.sha256(canonical(hashes).encode()).hexdigest()


def artifact_path(workspace: Path, kind: str, key: str) -> Path:
    return workspace / "artifacts" / kind / key


def work_path(workspace: Path, kind: str, key: str) -> Path:
    return workspace / "artifacts" / kind / f"{WORK}{key}"


def lock_path(workspace: Path, kind: str, key: str) -> Path:
    return workspace / "locks" / f"{kind}-{key}.lock"


def find(workspace: Path, kind: str, key: str) -> Artifact | None:
    """The artifact, if its manifest is there, whole and of this folder, and every file has the size that it says.

    Of its small files outside of parts (gate.json, comparison.json ...) the content, too: no step may read them, but
    the run obeys them, and its report is made of them.
    """
    path = artifact_path(workspace, kind, key)
    try:
        manifest = parsed((path / MANIFEST).read_bytes())
        whole = not manifest_problems(kind, key, manifest) and all(
            (path / name).stat().st_size == f["size"]
            and ("/" in name or f["size"] > _SMALL or file_hash(path / name) == f["hash"])
            for name, f in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Artifact(kind, key, path, manifest) if whole else None


def manifest_problems(kind: str, key: str, manifest: Any) -> list[str]:
    """Why this is not the manifest that was committed as kind/key. One of older code has no hash to compare: then what
    it says has to be of the right kinds.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return ["is no manifest"]
    named = f"{manifest.get('kind', kind)}/{manifest.get('key', key)}"
    problems = [] if named == f"{kind}/{key}" else [f"is of {named}, its folder is {kind}/{key}"]
    if SEAL in manifest and manifest[SEAL] != seal(manifest, SEAL):
        problems.append("content changed (its hash is not the one it carries)")
    if SEAL not in manifest:
        problems += [f"{name} is {manifest.get(name)!r}"[:80] for name, kind in _SHAPE.items()
                     if not isinstance(manifest.get(name), kind)]
        problems += [f"files: {name} has no hash and size" for name, file in manifest["files"].items()
                     if not (isinstance(file, dict) and isinstance(file.get("hash"), str)
                             and isinstance(file.get("size"), int))]
        inputs = manifest["inputs"] if isinstance(manifest.get("inputs"), dict) else {}
        problems += [f"inputs: {name} is no list of digests" for name, digests in inputs.items()
                     if not (isinstance(digests, list) and all(isinstance(digest, str) for digest in digests))]
    return problems


def artifacts(workspace: Path) -> Iterator[Artifact]:
    """Every artifact of the workspace."""
    for manifest in sorted((workspace / "artifacts").glob(f"*/*/{MANIFEST}")):
        found = find(workspace, manifest.parent.parent.name, manifest.parent.name)
        if found is not None:
            yield found


def commit(workspace: Path, kind: str, key: str, facts: dict[str, Any]) -> Artifact:
    """Turn `.work-<key>/out` into the artifact: hash everything, manifest last, rename, then drop the work folder.

    Raises UserError where the disk has changed a file since it was written.
    """
    work, target = work_path(workspace, kind, key), artifact_path(workspace, kind, key)
    out = work / "out"
    for left_over in out.rglob(".*.tmp"):  # of a write that was killed
        left_over.unlink()
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    files = {n: {"hash": file_hash(out / n), "size": (out / n).stat().st_size} for n in names if n != MANIFEST}
    hashes = {out / name: file["hash"] for name, file in files.items()}
    if damaged := [path for path, known in noted(work).items()
                   if path.exists() and (hashes.get(path) or file_hash(path)) != known]:
        raise UserError(*(f"{path}: content changed since it was written; run again, it is made again"
                          for path in damaged))
    for name in files:
        sync(out / name)
    for folder in [p for p in out.rglob("*") if p.is_dir()]:
        sync(folder)
    manifest = sealed({"schema": SCHEMA, "kind": kind, "key": key, "algorithm": ALGORITHM, **facts, "files": files},
                      SEAL)
    write_atomic(out / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    for name in files:
        let_read(out / name, out / MANIFEST)
    if target.exists():  # damaged, or we would not have computed it again
        trash = target.with_name(f".trash-{key}-{os.getpid()}")
        os.replace(target, trash)
        shutil.rmtree(trash)
    os.replace(out, target)
    sync(target.parent)
    shutil.rmtree(work)
    return Artifact(kind, key, target, manifest)


def tidy(workspace: Path, kind: str, key: str) -> None:
    """Remove what a commit that was killed left beside its artifact: its work folder, the one it replaced."""
    beside = artifact_path(workspace, kind, key).parent
    for folder in [work_path(workspace, kind, key), *beside.glob(f".trash-{key}-*")]:
        if folder.is_dir():
            with contextlib.suppress(Busy), lock(workspace, kind, key):
                if find(workspace, kind, key) is not None:
                    shutil.rmtree(folder, ignore_errors=True)


def damage(artifact: Artifact) -> list[str]:
    """Every file whose bytes are not those the manifest promises, as 'path: what' lines."""
    problems = manifest_problems(artifact.kind, artifact.key, artifact.manifest)
    problems = [f"{artifact.path / MANIFEST}: {problem}" for problem in problems]
    if SEAL not in artifact.manifest and problems:
        return problems  # what it says of its files cannot be read
    problems += damaged_files(artifact)
    known = set(artifact.manifest["files"]) | {MANIFEST}
    extra = [p for p in artifact.path.rglob("*") if p.is_file() and str(p.relative_to(artifact.path)) not in known]
    return problems + [f"{p}: not in the manifest" for p in extra]


def damaged_files(artifact: Artifact, part: str = "") -> list[str]:
    """Every promised file, of the sub-folder `part` alone if given, whose bytes are not those the manifest promises."""
    problems = []
    for name, promised in artifact.manifest["files"].items():
        path = artifact.path / name
        if part and not name.startswith(f"{part}/"):
            continue
        if not path.exists():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != promised["size"]:
            problems.append(f"{path}: {path.stat().st_size} bytes, expected {promised['size']}")
        elif file_hash(path) != promised["hash"]:
            problems.append(f"{path}: content changed (its {ALGORITHM} is not the manifest's)")
    return problems


def set_aside(workspace: Path, artifact: Artifact) -> None:
    """Take a damaged artifact out of its place, so that it is made again, and drop the unfinished work that has read
    it. gc removes what was set aside. Does nothing where another process is making it again, or has made it.
    """
    try:
        with lock(workspace, artifact.kind, artifact.key):
            if not artifact.path.exists() or not damaged_files(artifact):
                return
            os.replace(artifact.path, artifact.path.with_name(f".trash-{artifact.key}-{time.time_ns()}"))
    except Busy:
        return
    for spec in (workspace / "artifacts").glob("*/.work-*/step.json"):
        kind, key = spec.parent.parent.name, spec.parent.name.removeprefix(".work-")
        if artifact.key in spec.read_text(errors="replace") and not is_locked(lock_path(workspace, kind, key)):
            shutil.rmtree(spec.parent)


@contextlib.contextmanager
def lock(workspace: Path, kind: str, key: str, wait: float = 0) -> Iterator[None]:
    """Hold the right to compute an artifact. The kernel frees it when the holder dies. Raises Busy after `wait` s."""
    note = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
    try:
        with locked(lock_path(workspace, kind, key), note, wait):
            yield
    except Held as holder:
        raise Busy(f"{kind}/{key} is being computed by {holder}") from None


def cached_hashes(workspace: Path, files: list[Path]) -> dict[Path, str]:
    """Content hashes of files from outside, remembered by (size, mtime, inode) so that planning reads them once."""
    known = _remembered(workspace)
    found = {path: known.get(_identity(path)) or file_hash(path) for path in files}
    _remember(workspace, known, {_identity(path): digest for path, digest in found.items()})
    return found


def unread(workspace: Path, files: list[Path]) -> int:
    """Bytes that `cached_hashes` would read: of the files whose hashes it does not remember."""
    known = _remembered(workspace)
    return sum(path.stat().st_size for path in files if _identity(path) not in known)


def checked(workspace: Path, what: Any, files: list[Path], check: Callable[[], tuple[list[str], dict[str, int]]]
            ) -> tuple[list[str], dict[str, int]]:
    """The problems `check` finds in files from outside, and what it counts there. Of files found good both are
    remembered as the hashes are. what: plain data, all the check depends on beside the files.
    """
    known = _remembered(workspace)
    mark = hashlib.sha256(canonical([what, sorted(map(_identity, files))]).encode()).hexdigest()
    if f"checked:{mark}" in known:
        return [], json.loads(known[f"checked:{mark}"] or "{}")
    problems, counts = check()
    if not problems:
        _remember(workspace, _remembered(workspace), {f"checked:{mark}": json.dumps(counts)})
    return problems, counts


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def _remembered(workspace: Path) -> dict[str, str]:
    try:
        known = parsed((workspace / "file-hashes.json").read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict) or (_HASH in known and known[_HASH] != seal(known, _HASH)):
        return {}  # of a byte that flipped, too: the files are read again
    return {k: v for k, v in known.items() if isinstance(v, str) and k != _HASH}


def _remember(workspace: Path, known: dict[str, str], new: dict[str, str]) -> None:
    if not new.keys() <= known.keys():
        with contextlib.suppress(OSError):  # a full disk, one that is read only: the files are read again
            write_atomic(workspace / "file-hashes.json", json.dumps(sealed({**known, **new}, _HASH), indent=0))
