"""What scores a completion. A scorer is a module with five names:

    Settings
    needs_model(settings)   whether it takes a reward model made by an earlier step
    files(settings)         files from outside it reads: a change of their content is a change of the scores
    scorer(settings, *, model, runtime)
                            -> a function from groups to one list of scores per group, one score per completion;
                            made once per stage, so that a model is loaded once. NaN: could not be scored. `runtime`
                            (lm.settings.ModelRuntime) says where and how a model runs, and changes no result.

and, where it applies,

    needs(settings)         further models of earlier steps it takes, of "policy" and "reference"; `scorer` then gets
                            their folders under these names
    suffixes(settings)      the keys of its mappings, see below; else it gives plain scores

Higher is better; the scale is the scorer's own. A score that comes with others (a standard deviation, single passes) is
a mapping: "" is the score itself, every other key is put behind its name.
"""
