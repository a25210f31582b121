"""Objectives: one file per family. An objective is a module with four names:

    Settings    frozen dataclass of its hyper-parameters (build.setting gives the ranges)
    NEEDS       what it wants beside the policy's log-probs, a subset of
                  "reference"  batch.ref_logps
                  "tokens"     batch.tokens: token-level logits and the uniforms of its draws
                  "pairs"      groups of two completions, the preferred one first
                  "lists"      groups of 1 + M completions, the preferred one first
                  "labels"     binary feedback in batch.labels
    NORMALISE   what the trainer divides the loss sum of a *global* batch by:
                  "groups"  the number of groups
                  "tokens"  the number of completion tokens of all present completions
    loss(batch, settings) -> (losses (G,), metrics)
                losses: unreduced, one per group, with gradient; metrics: name -> (G,) without gradient.
                A completion that is not present contributes nothing; a group that lacks a completion the
                objective compares has loss 0 and metrics 0.

Beside them stand the same formulas as pure functions on plain tensors. Half-precision inputs are computed in
float32, float64 inputs in float64.
"""
