"""Which completions a group is made of, and which of them a step trains on.

Build time (best_worst, best_rest): scored samples -> a preference group. Such a module has

    Settings
    select(group, settings) -> (new group with the preferred completion first | None, reason it was dropped | "")

Training time (mc, uniform, hardest, easiest): groups of 1 + L -> the M negatives of this step. Such a module has

    Settings                 with m, the number of negatives
    NEEDS_LOGPS              whether it looks at the policy's log-probs of the candidates
    draw(logps, ref_logps, present, uniforms, settings)
        logps, ref_logps: (G, K) sums over completion tokens, nats; None where not needed
        present: (G, K) bool; column 0 is the preferred completion and never drawn
        uniforms: (G, K) in [0, 1), the only randomness
     -> indices (G, M) int64 into the K completions, never 0;
        valid (G, M) bool, False where a group has fewer than M candidates (such an index means nothing);
        metrics, name -> (G,)
    No gradient flows through a draw.
"""
