"""The easiest negatives: the M candidates of the smallest weight ("Min" in Chen et al. 2025). Deterministic."""

from functools import partial

from pipeline.negatives.contract import Draw
from pipeline.negatives.draws import Ends as Settings
from pipeline.negatives.draws import ends, weighs_by_reward

draw = partial(ends, sign=-1)
DRAW = Draw(Settings, draw, needs_logps=True, needs_reference=weighs_by_reward)
