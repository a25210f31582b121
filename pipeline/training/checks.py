"""Groups as the objective takes them, or every reason why it cannot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config import Part
from pipeline.errors import UserError
from pipeline.lm.examples import Example, columns, shaped, subset
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Auxiliary, Needs, Objective, needs_of


@dataclass
class Misfits:
    """Looks at every group once, keeps counts only."""

    needs: Needs
    drawn: bool  # negatives are drawn at every step
    seen: int = 0
    number: Counter[str] = field(default_factory=Counter)  # by kind of problem
    first: dict[str, str] = field(default_factory=dict)  # a group with it

    def look(self, example: Example) -> None:
        needs, k = self.needs, len(example.completions)
        self.seen += 1
        self._count(needs.compares and k < 2 and (self.drawn or not needs.singles), "short", example)
        self._count(needs.pairs and not needs.lists and k > 2 and not self.drawn, "long", example)
        self._count(needs.rationale and example.rationale is None, "rationale", example)
        self._count(needs.labels and k == 1 and example.label is None, "unlabeled", example)
        self._count(needs.reference and example.ref_logps is None, "reference", example)
        self._count(needs.previous and example.previous_logps is None, "previous", example)
        self._count(needs.scores and example.scores is None, "scores", example)

    def _count(self, wrong: bool, kind: str, example: Example) -> None:
        if wrong:
            self.number[kind] += 1
            self.first.setdefault(kind, example.id)

    def problems(self, name: str) -> list[str]:
        texts = {
            "short": ("compares completions, but {} have one",
                      "train on preference data or use an objective for demonstrations"),
            "long": ("takes pairs, but {} have more than two completions",
                     "set negatives= to draw one, or use an objective for lists"),
            "rationale": ("beside auxiliary.rationale_gamma needs rationales, but {} have none",
                          "give pairs a `rationale` (docs/data.md), or set auxiliary.rationale_gamma=0"),
            "unlabeled": ("needs labels, but {} have none", "give single completions a label"),
            "reference": ("needs reference log-probs, but {} have none",
                          "give the step a `reference` input made by reference_logprobs"),
            "previous": ("needs log-probs of the policy before, but {} have none",
                         "give the step a `previous` input made by reference_logprobs"),
            "scores": ("needs the score train.score of every completion, but {} have none",
                       "train on groups built from scored samples, or give the step a `scored` input")}
        return [f"objective: {name} " + texts[kind][0].format(f"{number} of {self.seen} groups")
                + f" (first {self.first[kind]!r}); {texts[kind][1]}" for kind, number in self.number.items()
                if kind != "rationale" or number == self.seen]  # the term acts on the groups that have one


def fit_to_objective(
    examples: Sequence[Example], objective: Part[Objective], negatives: Part[Draw] | None,
    auxiliary: Part[Auxiliary] | None = None,
) -> Sequence[Example]:
    """The examples as the objective takes them: one that compares nothing learns from demonstrations, so it sees
    completion 0, and nothing labelled unwanted. Raises UserError, all kinds of misfit at once.

    What is wrong between the parts themselves is the stage's to refuse (train_preference.Settings).
    """
    needs = needs_of(objective, auxiliary)
    looked, wanted = Misfits(needs, negatives is not None), list[int]()
    for i, example in enumerate(examples):
        looked.look(example)
        if len(example.completions) > 1 or example.label is not False:
            wanted.append(i)
    problems = looked.problems(objective.name)
    if problems:
        raise UserError(*problems)
    if needs.compares or needs.labels:
        return examples
    if not wanted:
        raise UserError(f"objective: {objective.name} learns from demonstrations, but all {looked.seen} groups are "
                        "labelled unwanted; train on wanted answers, or use an objective for labels (objective=kto)")
    return shaped(examples if len(wanted) == looked.seen else subset(examples, wanted), lambda e: columns(e, [0]))
