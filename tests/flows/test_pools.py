"""Too few prompts for the iterations are told at plan, before hours of work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.prepare import prepare
from pipeline.errors import UserError


def test_a_pool_that_is_too_small_is_refused(tmp_path: Path):
    """Of 20 prompts one is kept for evaluation. Iterations 2 and 3 take 9 each, for a fourth there is one left."""
    rows = [*({"prompt": f"Say the number {i} aloud please now"} for i in range(20)),
            *({"prompt": f"Is {i} more than one hundred or not", "chosen": "yes", "rejected": "no"} for i in range(60))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["recipe=pco", "data=files", f"data.root={tmp_path}/a.jsonl", f"workspace={tmp_path}/ws",
             "sampling.prompts_per_iteration=9"]
    with pytest.raises(UserError, match="iteration 4 needs 9 new prompts, but of 19 unlabeled prompts 1 are left"):
        prepare([*words, "iterations=4"])
    assert prepare([*words, "iterations=3"]).steps
