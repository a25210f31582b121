"""Prefect's environment, to be set before Prefect is imported."""

from __future__ import annotations

from pathlib import Path


def prefect_environment(workspace: Path) -> dict[str, str]:
    """Keep all of Prefect's state in the workspace, its telemetry off, its console quiet. A user's own values win."""
    home = workspace / ".prefect"
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    }
