"""Models and data sets by their name on the Hugging Face hub: `org/name` or `org/name@revision`.

Of models all that is read from it; a data set's files are read by `datasets` (formats/reader.py), its commit here.

The user's cache, token, offline mode and mirror are huggingface_hub's own (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE,
HF_ENDPOINT). A revision is resolved to a commit once per workspace, so that a run goes on with the model that it began
with; after that only files of this commit are fetched, and none that is pickled.
"""

import functools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline import weights as weights_of
from pipeline.errors import UserError, one_line
from pipeline.files import write_atomic

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_GATED = ("the hub gives it only to those who accepted its terms: accept them on its page, then set HF_TOKEN (or hf "
          "auth login)")
_PRIVATE = "the hub does not let you read it; set HF_TOKEN (or hf auth login) to a token that may"
_COMMIT = re.compile(r"[0-9a-f]{40}")
MODELS = ("model.path", "model.base", "reward.path")  # settings that may hold a model's name
DATA = "hf:"  # in front of a data set's name, which could be a folder's
_KNOWN = "hub-revisions.json"  # of a workspace: what each name meant when it was first used there
_SMALL = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken"]
_WEIGHTS = ["*.safetensors"]
_NOT = ["*/*", "consolidated*.safetensors"]  # Mistral's second form of the same weights, which transformers reads not
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of a weight


def named(text: str) -> tuple[str, str | None] | None:
    """(org/name, revision) of a model that is meant by its name; None for a path, or where a file has this name."""
    found = _NAME.fullmatch(text)
    if found is None or text.endswith(".gguf") or Path(text).exists():
        return None
    return found["repo"], found["revision"]


def presets_folder() -> Path:
    """Where scripts/get_smollm2.py puts models and conf/model looks for them."""
    return Path(os.environ.get("ALIGNLOOP_MODELS", "~/.cache/alignloop")).expanduser()


def pinned_data(text: str, workspace: Path, key: str) -> str:
    """As `pinned`, of a data set: `hf:org/name@commit` for hf:org/name or hf:org/name@revision."""
    parts = _NAME.fullmatch(text.removeprefix(DATA))
    if parts is None:
        raise UserError(f"{key}: {text!r}, expected hf:org/name or hf:org/name@revision")
    return DATA + _pinned(parts["repo"], parts["revision"], text, workspace, key)


def pinned(text: str, workspace: Path, key: str = "model.path") -> str:
    """`org/name@commit` for a hub name, with the commit that it first meant in this workspace; a path as it is.

    Raises UserError where the hub has no such model or revision, wants a token, or cannot be reached.
    """
    parts = named(text)
    return text if parts is None else _pinned(*parts, text, workspace, key)


def _pinned(repo: str, revision: str | None, text: str, workspace: Path, key: str) -> str:
    if _COMMIT.fullmatch(revision or ""):
        return f"{repo}@{revision}"
    path = workspace / _KNOWN
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if text not in known:
        known[text] = commit_of(repo, revision, key)
        write_atomic(path, json.dumps(known, indent=1, sort_keys=True))
    return f"{repo}@{known[text]}"


def commit_of(repo: str, revision: str | None, key: str = "model.path") -> str:
    """The commit a revision means today, or meant when the cache saw it last where the hub cannot be reached.

    key: the setting that names it; a data set's is data.root or data.sources.
    """
    import huggingface_hub

    kind = None if key in MODELS else "dataset"
    try:
        return str(huggingface_hub.HfApi().resolve_revision(repo, revision=revision, repo_type=kind).resolved)
    except Exception as error:
        raise _problem(repo, revision, error, key) from None


def fetched(text: str, weights: bool, key: str = "model.path") -> Path:
    """The folder, in the user's cache, of `org/name@commit`: its small files, its weights too if asked for.

    Raises UserError as `pinned` does.
    """
    import huggingface_hub

    repo, revision = named(text) or (text, None)
    wanted = [*_SMALL, *(_WEIGHTS if weights else [])]
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted,
                                                      ignore_patterns=_NOT))
    except Exception as error:
        raise _problem(repo, revision, error, key) from None


def sizes(text: str) -> dict[str, int]:
    """Bytes of every file at the top of `org/name@commit`: by the cache where it has all of them, else by the hub."""
    import huggingface_hub

    repo, revision = named(text) or (text, None)
    if cached := _cached(repo, revision):
        return cached
    try:
        found = huggingface_hub.HfApi().model_info(repo, revision=revision, files_metadata=True).siblings or []
        return {one.rfilename: one.size or 0 for one in found if "/" not in one.rfilename}
    except Exception as error:
        raise _problem(repo, revision, error) from None


def _cached(repo: str, revision: str | None) -> dict[str, int]:
    """Bytes of every file of a model that is wholly in the user's cache; nothing of one that is not."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True,
                                                        allow_patterns=[*_SMALL, *_WEIGHTS], ignore_patterns=_NOT))
        whole = all(path.is_file() for path in weights_of.files(folder))
    except Exception:  # not there, or its index cannot be read: what the hub has is asked for
        return {}
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()} if whole else {}


@functools.cache  # a commit does not change
def parameters(text: str) -> int | None:
    """About how many weights `org/name@commit` has, by its files' bytes and its dtype; None where they do not tell."""
    if not _COMMIT.fullmatch((named(text) or ("", None))[1] or ""):
        return None
    try:
        folder = fetched(text, weights=False)
        config, index = json.loads((folder / "config.json").read_text()), folder / weights_of.INDEX
        each = _BYTES[config.get("dtype") or config.get("torch_dtype")]
        whole = folder / "model.safetensors"  # once it is in the cache, its size is known without the hub
        if index.is_file():
            return int(json.loads(index.read_text())["metadata"]["total_size"]) // each
        return (whole.stat().st_size if whole.is_file() else sizes(text)[whole.name]) // each
    except (UserError, OSError, ValueError, KeyError, TypeError):  # what is wrong with it is told elsewhere
        return None


def copy_to(repo: str, target: Path) -> str:
    """Write the model's newest files as a plain folder of its own. Returns the commit."""
    commit = commit_of(repo, None)
    shutil.copytree(fetched(f"{repo}@{commit}", weights=True), target)
    return commit


def refused(error: BaseException | None) -> str:
    """What to do about a data set that the hub does not give to everybody; '' where the error says something else."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.GatedRepoError) or "gated dataset" in str(error):
            return _GATED
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            return _PRIVATE
        error = error.__cause__ or error.__context__
    return ""


def _unreached(error: Exception) -> list[type]:
    """The kinds of error by which the client's HTTP library, whichever it is, says that nothing answered."""
    return [kind for kind in type(error).__mro__ if kind.__name__ in ("TransportError", "ConnectionError")]


def _problem(repo: str, revision: str | None, error: Exception, key: str = "model.path") -> UserError:
    """What huggingface_hub met, in one line with the way out."""
    from huggingface_hub import errors

    what = "model" if key in MODELS else "data set"
    where = f"{key}: {repo}" + (f"@{revision}" if revision else "")
    texts: list[tuple[Any, str]] = [
        (errors.GatedRepoError, _GATED),
        (errors.RepositoryNotFoundError, f"no folder here and no {what} on the hub has this name, or it is private; "
         "check the spelling, or set HF_TOKEN (or hf auth login) for a private one"),
        (errors.RevisionNotFoundError, f"the hub's {what} has no such revision; give a branch, tag or commit"),
        ((errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled,
          *_unreached(error)),
         f"no folder here has this name, the hub cannot be reached (or HF_HUB_OFFLINE is set), and the {what} is not "
         "in the cache; give a folder, or fetch it once online (hf download)")]
    for kind, text in texts:
        if isinstance(error, kind):
            return UserError(f"{where}: {text}")
    return UserError(f"{where}: {type(error).__name__}: {one_line(error)}; "
                     "the hub could not be read, give a folder")
