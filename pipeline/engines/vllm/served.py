"""Whether the vLLM that is installed serves a model's family, found before a server starts.

A run asks right behind `init` on every device, so before anything is trained.
"""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from pipeline.engines.engine import FACTS, adapter_base
from pipeline.errors import UserError

# Of vLLM's registry: architecture -> a class of its own, or transformers' code where vLLM knows that it can
_TABLES = {"_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS"}
_ASK = "import sys; from vllm.config import ModelConfig; ModelConfig(model=sys.argv[1], dtype='float32')"
_NOT_SERVED = "are not supported"
_SECONDS = 300


def refuse_unserved(model: Path) -> None:
    """Raises UserError for a model of a family that vLLM does not serve.

    What vLLM lists is known from its source at once. About other families, which it may still serve with transformers'
    code, vLLM is asked in a process of its own, which takes about 10 s.
    """
    base = adapter_base(model) or model
    names = json.loads((base / FACTS).read_text()).get("architectures") or []
    if {*names} & _known_classes():
        return
    asked = subprocess.run([sys.executable, "-P", "-c", _ASK, str(base)], stdin=subprocess.DEVNULL, capture_output=True,
                           text=True, timeout=_SECONDS)
    if asked.returncode and _NOT_SERVED in asked.stderr:
        raise UserError(f"engine: the vLLM installed here does not serve {', '.join(names)} ({base}); take "
                        "engine=transformers, or a model of another family")


def _known_classes() -> set[str]:
    """The architectures in vLLM's registry, read from its source: importing it takes seconds."""
    (place,) = importlib.util.find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    tree = ast.parse((Path(place) / "model_executor" / "models" / "registry.py").read_text())
    return {name for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in _TABLES
            for name in ast.literal_eval(node.value)}
