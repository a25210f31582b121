"""Objectives: one file per family member. An objective is a module with these names:

    Settings    frozen dataclass of its hyper-parameters (build.setting gives the ranges, `check()` what spans several)
    NEEDS       what it wants beside the policy's log-probs, a frozenset of
                  "pairs"             groups of two completions, the preferred one first
                  "lists"             groups of 1 + M completions, M >= 1, the preferred one first
                  "singles"           beside pairs or lists also groups of one (a label, or a demonstration)
                  "layout:NAME"       groups of a make-up of their own, told in the module's text; a selection that
                                      builds them says GIVES = NAME
                  "takes:NAME"        such groups too, beside pairs or lists
                  "labels"            binary feedback: batch.labels for groups of one; in larger groups completion 0
                                      is wanted and the others are unwanted
                  "reference"         batch.ref_logps
                  "previous"          batch.previous_logps: the policy this iteration began with (pi_t)
                  "scores"            batch.scores: the reward of every completion
                  "score:NAME"        beside "scores": that they are the score NAME and no other
                  "token_logps"       batch.tokens.logps, per token
                  "uniforms"          batch.tokens.uniforms, one per token and step
                  "top"               batch.tokens.target_logits, .top_logits and .top_ids
                  "top:K"             beside "top": how many
                  "sum_squares"       batch.tokens.log_sum_squares
                  "divergences"       batch.tokens.divergences, from the reference; holds the reference model
                  "reference_tokens"  batch.tokens.ref_logps; holds the reference model
                  "reference_hidden"  batch.tokens.ref_hidden; holds the reference model
                  "mismatched"        batch.mismatched_logps and .mismatched_ref_logps; holds the reference model
                  "batch"             the loss of a group depends on the other groups: the trainer gives the *global*
                                      batch, whatever the micro-batches are
    NORMALISE   what the trainer divides the loss sum of a *global* batch by:
                  "groups"  the number of groups
                  "tokens"  the number of completion tokens of all present completions
    loss(batch, settings) -> (losses (G,), metrics)
                losses: unreduced, one per group, with gradient; metrics: name -> (G,) without gradient.
                A completion that is not present contributes nothing; a group that lacks a completion the
                objective compares has loss 0 and metrics 0.

and, where they apply,

    needs(settings)          instead of NEEDS, where the needs depend on the settings
    normalise(settings)      instead of NORMALISE
    state(settings)          -> name -> float: what is carried from step to step, as it starts. Checkpointed.
    update(batch, settings)  -> name -> () tensor: the state after this batch, without gradient. The trainer calls it
                             with the global batch, before `loss`, which then sees the new state (needs "batch").
    parameters(hidden, layers, settings) -> name -> tensor: what is trained beside the policy, as it starts (zeros or
                             constants; random values are drawn from a generator seeded with a constant)

Metrics every comparison reports: rewards_chosen, rewards_rejected, margin, accuracy. Beside them stand the same
formulas as pure functions on plain tensors, for notebooks. Half-precision inputs are computed in float32, float32 in
float32, float64 in float64.
"""
