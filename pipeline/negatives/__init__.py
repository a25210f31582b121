"""Which negatives of a group a step trains on: one draw per file, ending in `DRAW = Draw(...)` (contract.py)."""
