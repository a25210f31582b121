"""The build-time rules: hand-worked pairs, soft labels, draws and what every rule promises."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_part, problems_of, settled
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.selection import (
    all_pairs,
    best_random,
    best_rest,
    best_rest_varied,
    best_worst,
    cdr,
    drafts,
    drawn,
    maxmin,
    osp,
    pair_and_samples,
    pairwise_ranking,
    policy_and_reference,
    quantile,
    relabel,
    rso,
    spa,
    sppo_table,
    top_bottom,
    upo,
)
from pipeline.selection.contract import Rule


def group_of(*scores: float, name: str = "p1", **more: list[float]) -> Group:
    """One sample per score, named a, b, c ...; `more` gives further scores by name."""
    completions = tuple(
        Completion(chr(97 + i), (97 + i, 2), scores={"reward": score, **{k: v[i] for k, v in more.items()}}, sample=i)
        for i, score in enumerate(scores)
    )
    return Group(name, (Message("user", "hi"),), completions, (1, 5), weight=0.5, dataset="d", iteration=2)


def texts(groups: list[Group]) -> list[str]:
    return ["".join(c.text for c in group.completions) for group in groups]


def labels(groups: list[Group], name: str = "win_rate") -> list[tuple[float, float]]:
    return [(g.completions[0].scores[name], g.completions[1].scores[name]) for g in groups]


RULES: dict[str, tuple[ModuleType, dict]] = {
    "best_worst": (best_worst, {}),
    "best_rest": (best_rest, {}),
    "best_rest_varied": (best_rest_varied, {"leave_out": 1}),
    "pair_and_samples": (pair_and_samples, {}),
    "best_random": (best_random, {}),
    "top_bottom": (top_bottom, {"k": 1}),
    "all_pairs": (all_pairs, {}),
    "quantile": (quantile, {}),
    "rso": (rso, {"n": 4}),
    "rso_tournament": (rso, {"n": 4, "pairing": "tournament"}),
    "osp": (osp, {}),
    "sppo_table": (sppo_table, {}),
    "pairwise_ranking": (pairwise_ranking, {}),
    "pairwise_ranking_rest": (pairwise_ranking, {"rejected": "rest"}),
    "relabel": (relabel, {}),
    "spa": (spa, {}),
    "drawn": (drawn, {}),
    "drawn_pair": (drawn, {"opponents": 0}),
    "drafts": (drafts, {}),
}


def rule_of(name: str) -> tuple[ModuleType, object]:
    module, values = RULES[name]
    return module, module.Settings(**values)


@pytest.mark.parametrize("name", RULES)
@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_what_every_rule_promises(name: str, scores: list[float], seed: int) -> None:
    """Groups or a reason; at least two distinct members each, as many as the rule says; unique ids; the first is never
    worse by the score that orders them; probabilities in [0, 1]; the same again, wherever the prompt stands.
    """
    module, chosen = rule_of(name)
    group = group_of(*scores)
    made, reason = module.select(group, chosen, seed)
    assert bool(made) == (reason == "")
    assert module.select(group, chosen, seed) == (made, reason)
    assert len({g.id for g in made}) == len(made)
    part = load_part({"module": module.__name__, **RULES[name][1]}, "selection", Rule)
    rank = part.of(part.plugin.ranks)
    for one in made:
        judged = one.completions[:2] if part.of(part.plugin.gives) not in ("pairs", "lists") else one.completions
        assert len({c.sample for c in judged}) == len(judged) >= 2
        assert part.of(part.plugin.gives) != "pairs" or len(one.completions) == 2
        best, *others = (c.scores[rank] for c in judged)
        assert all(best >= other for other in others)
        assert one.id.startswith("p1")
        assert (one.weight, one.dataset, one.iteration) == (0.5, "d", 2)
        for completion in one.completions:
            assert 0.0 <= completion.scores.get("win_rate", 0.5) <= 1.0
    if len(scores) < part.of(part.plugin.samples):  # of a rule that wants more than the two there always are
        assert (made, reason) == ([], "too_few_samples")


@pytest.mark.parametrize("name", RULES)
def test_a_score_nobody_has_is_named_with_the_nearest(name: str) -> None:
    module, values = RULES[name]
    with pytest.raises(UserError, match=r"selection.score: sample 0 of 'p1' has no score 'rewards' \(did you mean rew"):
        module.select(group_of(1.0, 2.0), module.Settings(**{**values, "score": "rewards"}))


def draws(name: str) -> bool:
    part = load_part({"module": RULES[name][0].__name__, **RULES[name][1]}, "selection", Rule)
    return part.of(part.plugin.seeded)


# osp's baseline is the first sample, so its labels may depend on the order
@pytest.mark.parametrize("name", [n for n in RULES if n != "osp" and not draws(n)])
def test_order_of_the_samples_does_not_matter_to_rules_that_draw_nothing(name: str) -> None:
    module, chosen = rule_of(name)
    scores = [3.0, -1.0, 0.5, 8.0, 2.0]
    group = group_of(*scores)
    turned = replace(group, completions=group.completions[::-1])
    assert sorted(texts(module.select(group, chosen)[0])) == sorted(texts(module.select(turned, chosen)[0]))


@pytest.mark.parametrize(
    ("scores", "pair"),
    [((1.0, 3.0, -2.0, 0.0), "bc"), ((5.0, 4.0), "ab"), ((1.0, 2.0, 2.0, 1.0), "ba"), ((0.0, 0.0, 1e-9), "ca"),
     ((2.0, 2.0), "ab")],
)
def test_best_against_worst_the_earlier_of_equals(scores: tuple[float, ...], pair: str) -> None:
    assert texts(best_worst.select(group_of(*scores), best_worst.Settings())[0]) == [pair]


def test_the_group_keeps_what_it_is() -> None:
    (made,), _ = best_worst.select(group_of(1.0, 2.0, 3.0), best_worst.Settings())
    assert (made.id, made.prompt_ids, made.weight, made.dataset, made.iteration) == ("p1", (1, 5), 0.5, "d", 2)
    assert [c.sample for c in made.completions] == [2, 0]


def test_best_first_then_the_others_by_score() -> None:
    group = group_of(1.0, 3.0, -2.0, 3.0, 0.0)
    assert texts(best_rest.select(group, best_rest.Settings())[0]) == ["bdaec"]
    assert texts(pair_and_samples.select(group, pair_and_samples.Settings())[0]) == ["bcabcde"]
    assert best_rest.select(group, best_rest.Settings(min_candidates=5)) == ([], "too_few_samples")


def test_candidates_without_the_next_best_and_with_a_spoilt_copy_of_the_best() -> None:
    """Scores 1, 5, 3 of a, b, c: b is preferred, c left out. The copy has b's tokens, two of them in other places,
    its stop token last, a's score and no text yet; where b has one token only, there is none.
    """
    def made(**chosen: object) -> tuple[list[Group], str]:
        return best_rest_varied.select(group, best_rest_varied.Settings(**chosen), 7)

    group = group_of(1.0, 5.0, 3.0)
    group = replace(group, completions=tuple(replace(c, token_ids=(10 + i, 20, 30, 2))
                                             for i, c in enumerate(group.completions)))
    assert texts(made(leave_out=1)[0]) == ["ba"] and made(leave_out=2) == ([], "too_few_samples")
    ((added,), _), ((alone,), _) = made(swapped="added"), made(swapped="alone")
    copy = added.completions[-1]
    assert texts([added, alone]) == ["bca", "b"] and alone.completions[1:] == (copy,)
    assert copy.scores == {"reward": 1.0} and copy.text == "" and copy.token_ids[-1] == 2
    assert sum(x != y for x, y in zip(copy.token_ids, (11, 20, 30, 2), strict=True)) == 2
    assert sorted(copy.token_ids) == [2, 11, 20, 30]
    (listed,), _ = made(score=None, leave_out=1)  # a is preferred, the group being a list in its order
    assert texts([listed]) == ["ac"] and [c.scores["place"] for c in listed.completions] == [0.0, -1.0]
    group = replace(group, completions=tuple(replace(c, token_ids=(9, 9, 2)) for c in group.completions))
    assert made(swapped="added") == ([], "no_two_different_tokens")


def test_best_against_any_other_each_as_often() -> None:
    """Best c; a, b, d each in a third of 3,000 prompts: 1,000 +- 4 standard deviations of 26."""
    found = Counter(
        texts(best_random.select(group_of(1.0, 0.0, 9.0, 3.0, name=f"p{i}"), best_random.Settings(), 7)[0])[0]
        for i in range(3000)
    )
    assert set(found) == {"ca", "cb", "cd"}
    assert all(abs(number - 1000) < 104 for number in found.values())


def test_the_k_best_against_the_k_worst() -> None:
    """Ranking d c a e b (8, 5, 3, 1, 0): d and c against b and e."""
    made, _ = top_bottom.select(group_of(3.0, 0.0, 5.0, 8.0, 1.0), top_bottom.Settings(k=2))
    assert texts(made) == ["db", "de", "cb", "ce"]
    assert [g.id for g in made] == ["p1#0", "p1#1", "p1#2", "p1#3"]
    assert top_bottom.select(group_of(1.0, 2.0, 3.0), top_bottom.Settings(k=2)) == ([], "too_few_samples")
    single, _ = top_bottom.select(group_of(1.0, 2.0, 3.0), top_bottom.Settings(k=1))
    assert (texts(single), single[0].id) == (["ca"], "p1")


def test_all_pairs_above_a_margin_the_widest_first() -> None:
    """Scores 0, 3, 1: margins b-a 3, b-c 2, c-a 1."""
    group = group_of(0.0, 3.0, 1.0)
    assert texts(all_pairs.select(group, all_pairs.Settings())[0]) == ["ba", "bc", "ca"]
    assert texts(all_pairs.select(group, all_pairs.Settings(margin=1.0))[0]) == ["ba", "bc"]
    assert texts(all_pairs.select(group, all_pairs.Settings(max_pairs=1))[0]) == ["ba"]
    assert all_pairs.select(group, all_pairs.Settings(margin=3.0)) == ([], "low_margin")


def test_the_rejected_one_is_nearest_to_mean_minus_two_sigma() -> None:
    """Mean and sigma of (5, 0, 0, 0, -1, -4) are 0 and sqrt(42 / 6) = 2.6458. The target is -5.29, nearest is -4; one
    sigma below, -2.65, is nearer to -4 (1.35) than to -1 (1.65); half a sigma, -1.32, is nearest to -1.
    """
    group = group_of(5.0, 0.0, 0.0, 0.0, -1.0, -4.0)
    for sigmas, pair in ((2.0, "af"), (1.0, "af"), (0.5, "ae"), (0.0, "ab"), (-2.0, "ab")):
        assert texts(quantile.select(group, quantile.Settings(sigmas=sigmas))[0]) == [pair]


def test_rejection_sampling_limits() -> None:
    """beta -> 0: the n best; every reward equal or beta -> infinity: any n; fewer samples than n: all of them."""
    rewards = [1.0, 5.0, 3.0, 4.0, 2.0]
    rng = random.Random(0)
    assert sorted(rso.accept(rewards, 3, 1e-9, rng)) == [1, 2, 3]
    assert sorted(rso.accept(rewards, 8, 0.5, rng)) == [0, 1, 2, 3, 4]
    found = Counter(i for _ in range(4000) for i in rso.accept(rewards, 2, 1e12, rng))
    assert all(abs(number - 1600) < 4 * math.sqrt(4000 * 0.4 * 0.6) for number in found.values())


def test_rejection_sampling_accepts_by_the_distance_to_the_largest() -> None:
    """n = 1, rewards 0 and -ln 3 at beta 1: in random order, acceptance 1 and 1/3. The second is taken only if it comes
    first and is accepted: 1/2 * 1/3 = 1/6. With beta 0.5 acceptance is 1/9: 1/18.
    """
    rewards = [0.0, -math.log(3.0)]
    rng = random.Random(1)
    for beta, share in ((1.0, 1 / 6), (0.5, 1 / 18)):
        number = sum(rso.accept(rewards, 1, beta, rng) == [1] for _ in range(20_000))
        assert number / 20_000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))


def test_first_round_and_tournament() -> None:
    """Rewards 0 .. 4. Neighbours 3-0, 1-4; 2 is left over. Then 3 meets 4, then 4 meets 2."""
    rewards = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert rso.first_round([3, 0, 1, 4, 2], rewards) == [(3, 0), (4, 1)]
    assert rso.tournament([3, 0, 1, 4, 2], rewards) == [(3, 0), (4, 1), (4, 3), (4, 2)]


def test_rso_pairs_are_disjoint_and_labelled() -> None:
    """Eight of twelve, four disjoint pairs, P = sigmoid(r_w - r_l); seven pairs in a tournament."""
    group = group_of(*(0.3 * i for i in range(12)))
    made, _ = rso.select(group, rso.Settings(n=8), 3)
    members = [c.sample for g in made for c in g.completions]
    assert len(made) == 4
    assert len(set(members)) == 8
    for g, (p, q) in zip(made, labels(made), strict=True):
        w, loser = (c.scores["reward"] for c in g.completions)
        assert p == pytest.approx(1 / (1 + math.exp(loser - w)))
        assert p + q == pytest.approx(1.0)
    assert len(rso.select(group, rso.Settings(n=8, pairing="tournament"), 3)[0]) == 7
    assert texts(rso.select(group, rso.Settings(n=8), 4)[0]) != texts(made)


def test_rso_rewards_are_logits_of_probabilities() -> None:
    """p = 0.9 and 0.5: r = ln 9 and 0, the label is sigmoid(ln 9) = 0.9."""
    made, _ = rso.select(group_of(0.9, 0.5), rso.Settings(given="probabilities"))
    assert labels(made)[0] == pytest.approx((0.9, 0.1))
    with pytest.raises(UserError, match="found the score 3 where a probability is expected"):
        rso.select(group_of(0.9, 3.0), rso.Settings(given="probabilities"))


def test_osp_labels_follow_from_the_baseline() -> None:
    """Probabilities to beat the baseline a: 0.5, 0.8, 0.2. Ranking b a c; odds 4, 1, 1/4: adjacent labels 4 / 5, best
    against worst 16 / 17.
    """
    group = group_of(0.5, 0.8, 0.2)
    chosen = osp.Settings(given="probabilities")
    made, _ = osp.select(group, chosen)
    assert texts(made) == ["ba", "bc", "ac"]
    assert [p for p, _ in labels(made)] == pytest.approx([0.8, 16 / 17, 0.8])
    assert texts(osp.select(group, osp.Settings(given="probabilities", pairs="ends"))[0]) == ["bc"]
    four = group_of(0.5, 0.6, 0.7, 0.8)
    assert texts(osp.select(four, osp.Settings(given="probabilities", pairs="all"))[0]) == [
        "dc", "db", "da", "cb", "ca", "ba"]
    assert texts(osp.select(four, chosen)[0]) == ["dc", "da", "cb", "ba"]


def test_osp_on_rewards_is_bradley_terry_and_clipped() -> None:
    """Rewards 0 (baseline), 2, 100: p = 1/2, sigmoid 2, clipped to 0.99. b against a: sigmoid(2) = 0.8808; c against a:
    0.99. Twice the temperature: sigmoid(1). The median baseline of 0, 2, 100 is b: c clipped to 0.99, a sigmoid(-2).
    """
    group = group_of(0.0, 2.0, 100.0)
    found, _ = osp.select(group, osp.Settings(pairs="all"))
    made = dict(zip(texts(found), [p for p, _ in labels(found)], strict=True))
    assert made["ba"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert made["ca"] == pytest.approx(0.99)
    warm, _ = osp.select(group_of(0.0, 2.0), osp.Settings(temperature=2.0))
    assert labels(warm)[0][0] == pytest.approx(1 / (1 + math.exp(-1)))
    middle, _ = osp.select(group, osp.Settings(baseline="median", pairs="ends"))
    odds = 99 * math.exp(2)
    assert labels(middle)[0][0] == pytest.approx(odds / (1 + odds))
    assert osp.select(group_of(1.0, 1.0), osp.Settings()) == ([], "tied_scores")


def test_sppo_win_rates_include_the_sample_itself() -> None:
    """Scores ln 3, 0, -ln 3: sigmoid(ln 3) = 3/4, sigmoid(2 ln 3) = 9/10. P_a = (1/2 + 3/4 + 9/10) / 3 = 0.71667,
    P_c = 1 - that, P_ac = 0.9.
    """
    group = group_of(math.log(3), 0.0, -math.log(3))
    made, _ = sppo_table.select(group, sppo_table.Settings())
    assert texts(made) == ["ac"]
    assert labels(made)[0] == pytest.approx((2.15 / 3, 0.85 / 3))
    assert labels(made, "win_rate_pair")[0] == pytest.approx((0.9, 0.1))
    warm, _ = sppo_table.select(group, sppo_table.Settings(temperature=2.0))
    assert labels(warm, "win_rate_pair")[0][0] == pytest.approx(0.75)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8))
def test_sppo_win_rates_average_to_one_half(scores: list[float]) -> None:
    assert sum(sppo_table.win_rates(scores)) / len(scores) == pytest.approx(0.5)


@given(st.permutations(range(7)), st.permutations(range(7)))
def test_a_fair_transitive_judge_finds_the_best_in_any_order(order: list[int], other: list[int]) -> None:
    calls: list[tuple[int, int]] = []

    def judge(first: int, second: int) -> float:
        calls.append((first, second))
        return 0.9 if first > second else 0.1

    assert pairwise_ranking.champion(order, judge) == pairwise_ranking.champion(other, judge) == 6
    assert len(calls) <= 2 * 2 * 6  # N - 1 comparisons, at most twice each, in two rankings


def test_a_judge_with_a_favourite_position_changes_nothing() -> None:
    """It always calls the first one better: every comparison disagrees with itself, the incumbent stays."""
    assert pairwise_ranking.champion([4, 2, 9], lambda first, second: 0.8) == 4
    assert pairwise_ranking.champion([4, 2, 9], lambda first, second: 0.5) == 4


def test_winners_that_depend_on_the_order_are_found() -> None:
    """0, 1, 2 with ties up to 1: a < c only. From a, c wins at once or after b; from b nobody beats b."""
    close = group_of(0.0, 1.0, 2.0)
    assert pairwise_ranking.select(close, pairwise_ranking.Settings(tie=1.0, orders=20)) == ([], "order_dependent")
    made, _ = pairwise_ranking.select(close, pairwise_ranking.Settings(orders=20, rejected="worst"))
    assert texts(made) == ["ca"]
    made, _ = pairwise_ranking.select(group_of(0.0, 5.0, 2.0, 3.0), pairwise_ranking.Settings(rejected="rest"))
    assert texts(made) == ["bdca"]


def test_relabelled_pairs_ask_for_their_own_score() -> None:
    """8 and 3.25: the first asks for 8, the second, turned round, for 3.2; ids are gone, the text is kept."""
    made, _ = relabel.select(group_of(3.25, 8.0), relabel.Settings())
    assert texts(made) == ["ba", "ab"]
    assert [g.id for g in made] == ["p1#0", "p1#1"]
    for g, score in zip(made, ("8", "3.2"), strict=True):
        assert g.messages == (Message("system", relabel.TEXT.replace("{goal}", score)), Message("user", "hi"))
        assert g.messages[0].content.endswith(f"\nOverall score: {score}.")
        assert (g.prompt_ids, [c.token_ids for c in g.completions]) == ((), [(), ()])
        assert [c.scores["goal"] for c in g.completions] == [0.0, -4.75]


def test_relabelling_without_a_system_role_and_on_the_tables_scale() -> None:
    """Range -1 .. 3 onto 1 .. 10: 2 is 7.75 -> 7.8, 0 is 3.25 -> 3.2."""
    group = Group("p", (Message("system", "be kind"), Message("user", "x")), group_of(2.0, 0.0).completions)
    chosen = relabel.Settings(role="user", scale="one_to_ten", text="Aim at {goal}.")
    found = relabel.survey([group, group_of(-1.0, 3.0)], chosen)
    assert found == (-1.0, 3.0)
    made, _ = relabel.select(group, chosen, 0, found)
    assert [g.messages[1].content for g in made] == ["Aim at 7.8.\n\nx", "Aim at 3.2.\n\nx"]
    made, _ = relabel.select(group, relabel.Settings(text="{goal}"))
    assert made[0].messages[0] == Message("system", "2\n\nbe kind")


def test_relabelling_keeps_pairs_whose_fine_scores_agree() -> None:
    chosen = relabel.Settings(rejected="worst", fine="fine")
    assert len(relabel.select(group_of(2.0, 1.0, fine=[5.0, 5.0]), chosen)[0]) == 2
    assert relabel.select(group_of(2.0, 1.0, fine=[4.0, 5.0]), chosen) == ([], "fine_score_disagrees")


def passes(name: str, *columns: list[float], mean: list[float]) -> Group:
    return group_of(*mean, name=name, **{f"reward_pass{t}": column for t, column in enumerate(columns)})


def test_information_gain() -> None:
    """Passes 1 and 0 disagree completely: H(1/2) - 0 = ln 2. Passes that agree: 0. 0.9 and 0.5: mean 0.7,
    H(0.7) = 0.610864, H(0.9) = 0.325083, H(0.5) = 0.693147: 0.610864 - 0.509115 = 0.101749.
    """
    assert upo.information_gain([1.0, 0.0]) == pytest.approx(math.log(2))
    assert upo.information_gain([0.7, 0.7, 0.7]) == pytest.approx(0.0, abs=1e-12)
    assert upo.information_gain([0.9, 0.5]) == pytest.approx(0.101749, abs=1e-6)


def test_upo_candidates_are_upper_against_lower_half() -> None:
    """Six samples: 9 of the 15 pairs; five: 4, the middle one is in neither half."""
    for number, pairs in ((6, 9), (5, 4), (4, 4)):
        mean = [float(i) for i in range(number)]
        made, _ = upo.select(passes("p", mean, mean, mean=mean), upo.Settings(share=1.0))
        assert len(made) == pairs
        for g in made:
            assert g.completions[0].sample >= number - number // 2
            assert g.completions[1].sample < number // 2
    assert upo.select(group_of(1.0, 2.0, 3.0), upo.Settings()) == ([], "too_few_samples")
    with pytest.raises(UserError, match="has no scores reward_pass0"):
        upo.select(group_of(1.0, 2.0, 3.0, 4.0), upo.Settings())


def test_upo_labels_and_shares() -> None:
    """Two passes, rewards of the upper two ln 9 and 0 above the lower two: p = 0.9 and 0.5, IG = 0.101749 for every
    pair of four: P_j = 1/4, label 1 - IG / (2 ln 2) = 0.926603.
    """
    group = passes("p", [math.log(9)] * 2 + [0.0] * 2, [0.0] * 4, mean=[1.0, 1.0, 0.0, 0.0])
    chosen = upo.Settings(share=1.0)
    made, _ = upo.select(group, chosen, 0, upo.survey([group], chosen))
    assert len(made) == 4
    for g in made:
        scores = g.completions[0].scores
        assert scores["information_gain"] == pytest.approx(0.101749, abs=1e-6)
        assert scores["sampling_share"] == pytest.approx(0.25)
        assert scores["win_rate"] == pytest.approx(1 - 0.101749 / (2 * math.log(2)), abs=1e-6)


def test_upo_draws_its_share_of_the_table_certain_pairs_more_often() -> None:
    """Half of 1,600 pairs; of certain (IG 0) and uncertain prompts (IG near ln 2, weight 0.307^4 = 0.0089 with mu 4)
    nearly all drawn pairs are certain. mu 0: no difference.
    """
    sure = [passes(f"s{i}", *[[60.0, 60.0, 0.0, 0.0]] * 2, mean=[1.0, 1.0, 0.0, 0.0]) for i in range(200)]
    torn = [passes(f"t{i}", [60.0, 60.0, 0.0, 0.0], [0.0, 0.0, 60.0, 60.0], mean=[1.0, 1.0, 0.0, 0.0])
            for i in range(200)]
    for mu, least, most in ((4.0, 760, 800), (0.0, 340, 460)):
        chosen = upo.Settings(mu=mu, share=0.5)
        found = upo.survey([*sure, *torn], chosen, 5)
        drawn = {kind: sum(len(upo.select(g, chosen, 5, found)[0]) for g in groups)
                 for kind, groups in (("sure", sure), ("torn", torn))}
        assert drawn["sure"] + drawn["torn"] == 800
        assert least <= drawn["sure"] <= most


def test_spa_marks_the_least_trusted_tenth() -> None:
    """Eleven pairs with de-coupled margins 0, 1 .. 10: the 10th percentile is 1, so margins 0 and 1 are noise."""
    groups = [group_of(2.0, 1.0, name=f"p{i}", mix=[float(i), 0.0]) for i in range(11)]
    chosen = spa.Settings(decoupled="mix", alpha=0.1)
    found = spa.survey(groups, chosen)
    assert found == 1.0
    made = [spa.select(g, chosen, 0, found)[0][0] for g in groups]
    assert [p for p, _ in labels(made)] == pytest.approx([0.9, 0.9] + [1.0] * 9)
    plain, _ = spa.select(groups[0], spa.Settings(), 0, spa.survey(groups, spa.Settings()))
    assert labels(plain) == [(1.0, 0.0)]


def test_spa_draws_only_where_it_is_asked_to() -> None:
    assert not settled(spa.RULE.seeded, spa.Settings())
    assert settled(spa.RULE.seeded, spa.Settings(pairing="best_random"))
    found = {texts(spa.select(group_of(3.0, 1.0, 2.0, name=f"p{i}"), spa.Settings(pairing="best_random"))[0])[0]
             for i in range(30)}
    assert found == {"ab", "ac"}


def test_density_ratio() -> None:
    """log p: strong -10, -6, -8; weak -12, -7, -11: ratios 2, 1, 3. Two tokens each: halved, same order."""
    group = group_of(-10.0, -6.0, -8.0, logp_weak=[-12.0, -7.0, -11.0])
    made, _ = cdr.select(group, cdr.Settings())
    assert texts(made) == ["cb"]
    assert labels(made, "density_ratio") == [(3.0, 1.0)]
    made, _ = cdr.select(group, cdr.Settings(per_token=True))
    assert labels(made, "density_ratio") == [(1.5, 0.5)]


def test_maxmin_takes_the_least_satisfied() -> None:
    """r1 = 3, 2, 0 and r2 = 0, 1, 4. Lowest of each: 0, 1, 0 -> b against a. Lowest mean on the prompt is r1's (5/3, r2
    also 5/3: the first) -> a against c. Over the table r2 is lower (another prompt gives it -9) -> c against a.
    """
    group = group_of(3.0, 2.0, 0.0, r2=[0.0, 1.0, 4.0])
    table = [group, group_of(1.0, 1.0, r2=[-9.0, -9.0])]
    for level, pair in (("completion", "ba"), ("prompt", "ac"), ("table", "ca")):
        chosen = maxmin.Settings(("reward", "r2"), level=level, scale="as_is")
        made, _ = maxmin.select(group, chosen, 0, maxmin.survey(table, chosen))
        assert texts(made) == [pair]


def test_maxmin_brings_scores_to_one_scale() -> None:
    """r1 = 0, 1, 2 and r2 = 200, 100, 150: z1 = -1.22, 0, 1.22 and z2 = 1.22, -1.22, 0, so the minima are -1.22, -1.22
    and 0: c first. As they are, the minimum would be r1 alone.
    """
    group = group_of(0.0, 1.0, 2.0, r2=[200.0, 100.0, 150.0])
    chosen = maxmin.Settings(("reward", "r2"))
    found = maxmin.survey([group], chosen)
    assert found.means == pytest.approx((1.0, 150.0))
    assert found.deviations == pytest.approx((math.sqrt(2 / 3), 100 * math.sqrt(1 / 6)))
    (made,), _ = maxmin.select(group, chosen, 0, found)
    assert made.completions[0].text == "c"
    assert made.completions[0].scores["minimum"] == pytest.approx(0.0)
    assert made.completions[1].scores["minimum"] == pytest.approx(-math.sqrt(1.5))


def test_samples_as_they_were_drawn() -> None:
    """Samples a .. d score 1, 4, 9, 0: a and b are the pair, b the better one; c is an opponent although it is best."""
    group = group_of(1.0, 4.0, 9.0, 0.0)
    turned = replace(group, completions=group.completions[::-1])
    for one in (group, turned):
        assert texts(drawn.select(one, drawn.Settings())[0]) == ["bacd"]
    assert texts(drawn.select(group, drawn.Settings(opponents=1))[0]) == ["bac"]
    assert texts(drawn.select(group, drawn.Settings(opponents=0))[0]) == ["ba"]
    assert settled(drawn.RULE.gives, drawn.Settings(opponents=0)) == "pairs"
    assert settled(drawn.RULE.gives, drawn.Settings()) == "drawn"
    assert texts(drawn.select(group_of(1.0, 2.0), drawn.Settings())[0]) == ["ba"]
    assert drawn.select(group_of(1.0, 2.0), drawn.Settings(opponents=1)) == ([], "too_few_samples")
    assert [settled(drawn.RULE.samples, drawn.Settings(opponents=n)) for n in (None, 0, 1, 3)] == [2, 2, 3, 5]


def test_opponents_from_the_table_beside() -> None:
    """The pair is the first table's, whoever else is there. Of the other table the samples 0 and 1 have the pair's
    random numbers; those after them are its opponents.
    """
    other = replace(group_of(7.0, 8.0, 2.0, 3.0), completions=tuple(
        replace(c, text=c.text.upper()) for c in group_of(7.0, 8.0, 2.0, 3.0).completions))
    chosen = drawn.Settings(opponents_from="beside")
    assert texts(drawn.select(group_of(1.0, 4.0, 9.0), chosen, 0, other)[0]) == ["baCD"]
    two = replace(other, completions=other.completions[:2])
    assert drawn.select(group_of(1.0, 4.0), chosen, 0, two) == ([], "too_few_samples")
    assert settled(drawn.RULE.samples, chosen) == 3
    assert settled(drawn.RULE.beside, chosen) and not settled(drawn.RULE.beside, drawn.Settings())
    assert drawn.select(group_of(1.0, 4.0), chosen, 0, replace(other, completions=())) == ([], "too_few_samples")


def of_two_models(ours: tuple[float, ...], theirs: tuple[float, ...]) -> tuple[Group, Group]:
    """Samples of the policy, and of the reference in capitals; each knows who wrote it."""
    marked = [
        replace(group_of(*scores), completions=tuple(
            replace(c, policy=name, text=c.text.upper() if name == "ref" else c.text)
            for c in group_of(*scores).completions))
        for name, scores in (("pi", ours), ("ref", theirs))
    ]
    return marked[0], marked[1]


@pytest.mark.parametrize(("score", "expected"), [(1.0, "aBB"), (5.0, "BaB")])
def test_the_references_sample_stands_last_whoever_won(score: float, expected: str) -> None:
    """Sample 0 of the policy, worth 3, meets sample 1 of the reference, which has another seed."""
    policy, reference = of_two_models((3.0, 0.0), (9.0, score))
    (made,), reason = policy_and_reference.select(policy, policy_and_reference.Settings(), 0, reference)
    assert (texts([made]), reason) == ([expected], "")
    assert made.completions[2].policy == "ref"
    assert {c.policy for c in made.completions[:2]} == {"pi", "ref"}


def test_more_comparisons_use_every_sample_once() -> None:
    policy, reference = of_two_models((5.0, 6.0, 7.0), (1.0, 2.0, 3.0))
    made, _ = policy_and_reference.select(policy, policy_and_reference.Settings(pairs=3), 0, reference)
    assert texts(made) == ["aBB", "bCC", "cAA"]
    assert [g.id for g in made] == ["p1#0", "p1#1", "p1#2"]
    assert policy_and_reference.select(policy, policy_and_reference.Settings(pairs=4), 0, reference)[0] == []
    assert policy_and_reference.select(policy, policy_and_reference.Settings(), 0) == ([], "too_few_samples")


def test_drafts_are_the_six_conditionals_of_srpo() -> None:
    """b is best and c is worst: b|x, c|x, b|c, c|c, c|b, b|b."""
    (made,), _ = drafts.select(group_of(1.0, 3.0, 0.0), drafts.Settings())
    assert texts([made]) == ["bcbccb"]
    own = drafts.prompts(made, drafts.Settings(text="Again."))
    assert own[:2] == (None, None)
    assert [messages[-2].content for messages in own[2:]] == ["c", "c", "b", "b"]
    assert own[2] == (Message("user", "hi"), Message("assistant", "c"), Message("user", "Again."))


def test_settings_are_checked() -> None:
    cases = [
        (drawn, {"opponents": 0, "opponents_from": "beside"}, "selection.opponents: 0 leaves the second table unread"),
        (drafts, {"text": " "}, "selection.text: is empty, expected what asks for a better answer"),
        (policy_and_reference, {"pairs": 0}, "selection.pairs: 0 is out of range, expected 1 <= x"),
        (top_bottom, {"k": 0}, "selection.k: 0 is out of range, expected 1 <= x"),
        (rso, {"beta": 0}, "selection.beta: 0.0 is out of range, expected 0.0 < x"),
        (rso, {"n": 1}, "selection.n: 1 is out of range, expected 2 <= x"),
        (osp, {"clip": 0.5}, "selection.clip: 0.5 is out of range, expected 0.0 < x < 0.5"),
        (spa, {"percentile": 100}, "selection.percentile: 100.0 is out of range, expected 0.0 < x < 100.0"),
        (upo, {"share": 0}, "selection.share: 0.0 is out of range, expected 0.0 < x <= 1.0"),
        (all_pairs, {"margin": -1}, "selection.margin: -1.0 is out of range, expected 0.0 <= x"),
        (pairwise_ranking, {"rejected": "all"},
         "selection.rejected: 'all' is not allowed, expected one of random, worst, rest"),
        (relabel, {"text": "no"}, "selection.text: has no {goal}, expected it where the score is to stand"),
        (cdr, {"weak": "reward"}, "selection.weak: 'reward' is the strong model's score too"),
        (maxmin, {"scores": ["reward"]}, "selection.scores: ['reward'] names fewer than two scores"),
        (maxmin, {"scores": ["a", "b"], "level": "table"}, "selection.scale: 'standardise' gives every score"),
        (best_rest, {"min_candidates": 0}, "selection.min_candidates: 0 is out of range, expected 1 <= x"),
    ]
    for module, values, expected in cases:
        (problem,) = problems_of(module.Settings, values, "selection")
        assert problem.startswith(expected)
