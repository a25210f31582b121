"""Judging a policy: comparisons, length control, diversity, what preference training did to log-probs, gates.

Pure functions of groups and numbers; the stages `evaluate`, `diagnose`, `gate` and `report` read and write the files.
"""
