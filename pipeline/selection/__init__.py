"""Which completions a group is made of: one rule per file, each with `RULE = Rule(...)` at its end (contract.py)."""
