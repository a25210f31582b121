"""Which completions a group is made of, and which of them a step trains on.

Build time: scored samples -> preference groups. Such a module has

    Settings
    GIVES       "pairs" or "lists" (1 + M, M >= 1): the groups it makes, the preferred completion first; or the name of
                a make-up of its own, whose first two completions are a pair, the preferred one first
    SEEDED      whether the seed changes what it makes
    SAMPLES     fewest samples of a prompt it can use
    select(group, settings, seed) -> (new groups, reason)
                the groups this prompt gives, with ids of their own (candidates.numbered), or none and why.
                Random numbers come from (seed, group id) only: candidates.generator.

each of the constants also as a function of the settings in small letters (gives(settings) ...), and, where they apply,

    reads(settings)   the scores it reads; else (settings.score,). Filters clean and correct these.
    asks(settings)    further scores it cannot do without
    STORES            the scores it writes onto its groups
    ranks(settings)   the score its groups are ordered by; else settings.score. Ties and margins are judged by it.
    REWRITES = True   its groups have other texts than the samples, and no ids: the stage tokenises them
    prompts(group, settings)
                      messages of each completion of a group it made, None where they are the group's: the stage
                      tokenises them into Completion.prompt_ids
    DRAWS = True      samples stand in its groups as draws from a model: filters.duplicates does not apply
    BESIDE = True     it also takes samples of another model for the same prompt (the stage's input `beside`), which
                      `select` then gets as a fourth argument, `other`
    survey(groups, settings, seed)
                      what must be known of the whole table first, from one pass over it; `select` then takes the
                      result as a fourth argument, `found`

A rule meets samples that filters.clean let through: not empty, finite scores, by default no two alike.
A soft label is the score "win_rate": P(chosen is better) on the chosen completion, 1 - P on the rejected one. Objective
spce reads it with train.score=win_rate and labels=probability. sppo_table stores the win
rates against all samples of the prompt there, which objective sppo takes with labels=soft.

Training time (mc, uniform, hardest, easiest): groups of 1 + L -> the M negatives of this step. Such a module has

    Settings                 with m, the number of negatives
    NEEDS_LOGPS              whether it looks at the policy's log-probs of the candidates
    draw(logps, ref_logps, present, uniforms, settings, lengths=None)
        logps, ref_logps: (G, K) sums over completion tokens, nats; None where not needed
        present: (G, K) bool; column 0 is the preferred completion and never drawn
        uniforms: (G, K) in [0, 1), the only randomness
        lengths: (G, K) tokens, for settings with length_normalize
     -> indices (G, M) int64 into the K completions, never 0;
        valid (G, M) bool, False where a group has fewer than M candidates (such an index means nothing);
        metrics, name -> (G,)
    No gradient flows through a draw.
"""
