"""Objectives: one file per family member, each with `OBJECTIVE = Objective(...)` at its end (contract.py).

Beside the loss stand the same formulas as pure functions on plain tensors, for notebooks. Half-precision inputs are
computed in float32, float32 in float32, float64 in float64.
"""
