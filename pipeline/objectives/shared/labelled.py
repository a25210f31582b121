"""What the objectives on binary labels share: who is wanted, sums over a group, the metrics of a comparison."""

from dataclasses import dataclass

from pipeline.objectives.contract import LossInputs, Tensor
from pipeline.objectives.shared.pairs import comparison, masked, ratios_of, row_means


@dataclass(frozen=True)
class Labelled:
    """The completions of a batch, all (G, K). A group of one follows its label (none: wanted); in a larger group
    completion 0 is wanted and the others are unwanted. An absent completion is neither.
    """

    wanted: Tensor  # bool
    unwanted: Tensor  # bool
    ratios: Tensor  # log pi - log ref, nats, with gradient; 0 where absent

    @property
    def present(self) -> Tensor:
        return self.wanted | self.unwanted


def signs(batch: LossInputs) -> tuple[Tensor, Tensor]:
    """Which completions are to be raised and which lowered, both (G, K) bool.

    A group of one follows its label (no label: a demonstration, raised). In a larger group the first completion is
    raised and the others are lowered.
    """
    present = batch.present
    raised = present.new_ones(len(present)) if batch.labels is None else batch.labels.bool()
    raised = raised | present[:, 1:].any(dim=1)
    positive = present.new_zeros(present.shape)
    positive[:, 0] = raised & present[:, 0]
    return positive, present & ~positive


def labelled(batch: LossInputs, objective: str) -> Labelled:
    """Raises ValueError without reference log-probs."""
    return Labelled(*signs(batch), ratios_of(batch, objective))


def only_pairs(examples: Labelled) -> Labelled:
    """The same without the groups that lack a wanted or an unwanted completion."""
    both = (examples.wanted.any(dim=1) & examples.unwanted.any(dim=1))[:, None]
    return Labelled(examples.wanted & both, examples.unwanted & both, masked(examples.ratios, both))


def mean_over(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of the kept entries of (G, K), a scalar (); 0 where there is none."""
    return masked(values, keep).sum() / keep.sum().clamp(min=1)


def labelled_metrics(examples: Labelled, beta: float, **more: Tensor) -> dict[str, Tensor]:
    """rewards_chosen and rewards_rejected are means over the group's wanted and unwanted completions, 0 where it has
    none of them; margin and accuracy compare the two, so that a completion alone is compared with reward 0.
    """
    rewards = beta * examples.ratios.detach()
    return comparison(row_means(rewards, examples.wanted), row_means(rewards, examples.unwanted), **more)
