"""The CUDA devices torch can use here, and what it lacks where it can use none: `python -P -m pipeline.lm.devices`.

Planning imports no torch, so it asks in a process of its own. Prints one JSON object as its last line.
"""

import json
import os

import torch

# The oldest NVIDIA driver for Linux that a build of torch runs on, by the major version of its CUDA (CUDA's release
# notes, "minor version compatibility").
_DRIVERS = {11: "450", 12: "525", 13: "580"}


def why_none() -> str:
    """Why torch sees no CUDA device here, and the way out."""
    if torch.version.cuda is None:
        return f"the torch installed ({torch.__version__}) is a build for CPUs; make setup DEVICE=cuda installs another"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if shown is None else f"; CUDA_VISIBLE_DEVICES={shown!r} may hide the devices"
    try:
        torch.cuda.init()
        said = "no CUDA device"
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition(". ")[0]
    driver = _DRIVERS.get(int(torch.version.cuda.partition(".")[0]), "of that release")
    return (f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and wants an NVIDIA driver {driver} or "
            f"newer; it says: {said}{hidden}")


def found() -> dict[str, object]:
    """The devices, [name, bytes] each in torch's order, and why there are none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts = map(torch.cuda.get_device_properties, range(count))
    return {"devices": [[one.name, one.total_memory] for one in facts], "why": "" if count else why_none()}


if __name__ == "__main__":
    print(json.dumps(found()))
