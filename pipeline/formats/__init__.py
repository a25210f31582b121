"""Data as people have it: one format per file, each with `FORMAT = Format(...)` at its end (contract.py)."""
