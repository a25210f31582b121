"""What scores a completion: one scorer per file, each with `SCORER = Scorer(...)` at its end (contract.py)."""
