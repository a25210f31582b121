"""A folder on the Hugging Face hub, by huggingface_hub's own client: HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count."""

import re
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


def check(name: str) -> None:
    """Raises UserError, one line, where the name is none, the hub cannot be reached or does not know who asks."""
    if not _NAME.fullmatch(name):
        raise UserError(f"--hub: {name!r}, expected NAME or ORGANISATION/NAME")
    _asked(lambda api: api.whoami(), "nothing was written")


def send(name: str, folder: Path) -> str:
    """Put the folder there as a private model, which is made if it is not there. Returns its address."""
    def upload(api: Any) -> str:
        made = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Exported by alignloop")
        return str(made)

    return _asked(upload, f"the folder is written; send it later with: hf upload {name} {folder}")


def _asked(ask: Any, state: str) -> Any:
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        return ask(huggingface_hub.HfApi())
    except LocalTokenNotFoundError:
        raise UserError(f"--hub: no token, expected HF_TOKEN or `hf auth login`; {state}") from None
    except Exception as error:  # of the network, the hub, the client's own checks
        raise UserError(f"--hub: {ENDPOINT} said no or nothing ({_first_line(error)}); {state}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
