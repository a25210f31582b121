"""A pair of code with a test by which tests of the policy's own separate them (DSTC, Liu et al. 2024).

Scored by pipeline.rewards.cross_tests: which sample's code passes which sample's test. The chosen answer is the code
that passes the most tests, with the hardest of these (the one that the fewest codes pass); the rejected one the code
that passes the fewest, with the easiest test it fails (the one that the most codes pass). Each answer is code and test
together, so that what is chosen runs and what is rejected fails whether or not the tests are right. Of equals the
earlier sample counts (a choice). The answers are new texts, which stage build_groups tokenises.
"""

from dataclasses import replace

from pipeline.code import code_and_tests
from pipeline.records import STOP, Completion, Group
from pipeline.selection.candidates import Scored as Settings
from pipeline.selection.candidates import ends, scores_of
from pipeline.selection.contract import Rule, Selected

SAME = "no_test_separates"


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Reasons: no_test_separates."""
    shares, passed = scores_of(group, settings.score), [int(n) for n in scores_of(group, f"{settings.score}_passed")]
    tests = {c.sample: test for c in group.completions if (test := code_and_tests(c.text)[1])}
    easy = {j: sum(row >> j & 1 for row in passed) for j in tests}
    best, worst = ends(shares)
    won = [j for j in tests if passed[best] >> j & 1]
    lost = [j for j in tests if not passed[worst] >> j & 1]
    if not won or not lost or shares[best] == shares[worst]:
        return [], SAME
    chosen = _with_test(group.completions[best], tests[min(won, key=lambda j: easy[j])])
    rejected = _with_test(group.completions[worst], tests[max(lost, key=lambda j: easy[j])])
    return [replace(group, completions=(chosen, rejected), prompt_ids=())], ""


def _with_test(answer: Completion, test: str) -> Completion:
    text = f"```python\n{code_and_tests(answer.text)[0]}\n\n{test}\n```"
    return replace(answer, text=text, token_ids=(), finish_reason=STOP, ref_logp=None, logprobs=None)


RULE = Rule(Settings, select, asks=lambda s: (f"{s.score}_passed",), rewrites=True)
