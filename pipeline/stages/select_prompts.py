"""The prompts of one iteration: a slice of one shuffled order, so that no two iterations share a prompt.

The order depends on the run's seed and the prompts' ids only; the slice on the iteration. A longer run therefore
takes the same prompts in its first iterations as a shorter one.
"""

from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.stage import Context, Cost, Stage, derive_seed, told


@dataclass(frozen=True)
class Settings:
    """Which slice."""

    iteration: int = setting(low=1)  # the one that samples this slice
    count: int | None = setting(low=1)  # prompts per iteration; null: all, shared by the iterations that sample
    first: int = setting(1, low=1)  # the first iteration that samples: it gets the first slice, so none is wasted
    last: int | None = setting(None, low=1, added=True)  # with count null: the last iteration that samples
    fewer: bool = setting(False, added=True)  # a pool that is too small gives each iteration its share, up to `last`

    def check(self) -> list[tuple[str, str]]:
        if (self.count is None or self.fewer) and (self.last is None or self.last < self.iteration):
            return [("last", f"{self.last} with count null or fewer, expected the last iteration that samples")]
        if self.iteration < self.first:
            return [("first", f"{self.first} is after iteration {self.iteration}, expected at most that")]
        return []


def run(context: Context) -> None:
    """Write groups/: slice i - first of the shuffled pool, `count` prompts long, marked with iteration i.

    Raises UserError where the pool has fewer.
    """
    from pipeline import tables

    settings: Settings = context.settings
    pool = list(tables.read(context.one("prompts")))
    chosen = slice_of([group.id for group in pool], settings, context.seed)
    by_id = {group.id: group for group in pool}
    tables.write(context.out / "groups", (replace(by_id[id], iteration=settings.iteration) for id in chosen))
    used = (settings.iteration - settings.first + 1) * share_of(len(pool), settings)
    context.report.count(prompts=len(chosen), pool=len(pool), left=len(pool) - used)


def share_of(pool: int, settings: Settings) -> int:
    """Prompts of one iteration. Raises UserError where the iterations are more than the prompts."""
    if settings.count is not None and not settings.fewer:
        return settings.count
    assert settings.last is not None
    share = min(pool // (settings.last - settings.first + 1), settings.count or pool)
    if not share:
        raise UserError(f"iterations: {settings.last} share {pool} unlabeled prompts; set fewer, or give more prompts "
                        "(data.root, data.format.limits.unlabeled)")
    return share


def enough(pool: int, settings: Settings) -> tuple[int, int]:
    """Where the slice of one iteration begins and ends in a pool of so many prompts. Raises UserError where too few are
    left.
    """
    count, number = share_of(pool, settings), settings.iteration - settings.first + 1
    start, end = (number - 1) * count, number * count
    if end > pool:
        most, possible = pool // number, pool // count and pool // count + settings.first - 1
        lower = f"set sampling.prompts_per_iteration={most} or less, " if most else ""
        fewer = f"iterations={possible} or less, " if possible else ""
        raise UserError(f"sampling.prompts_per_iteration: iteration {settings.iteration} needs {count} new prompts, "
                        f"but of {pool} unlabeled prompts {max(0, pool - start)} are left; {lower}{fewer}or "
                        "give more unlabeled prompts (data.root, data.format.limits.unlabeled)")
    return start, end


def slice_of(ids: list[str], settings: Settings, seed: int) -> list[str]:
    """The ids of one iteration in shuffled order. Raises UserError where too few are left."""
    start, end = enough(len(ids), settings)
    return sorted(ids, key=lambda id: (derive_seed(seed, "select_prompts", id), id))[start:end]


def short(settings: Settings, held: int) -> str | None:
    try:
        enough(held, settings)
    except UserError as error:
        return str(error)
    return None


STAGE = Stage(Settings, run, version=1, inputs={"prompts": "one"}, seeded=True, seed="data", short=short,
              cost=lambda settings: Cost(prompts=settings.count or 0),
              says=told("{prompts:,.0f} prompts of {pool:,.0f}"))
