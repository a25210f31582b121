"""Values that go together, by one word: `objective.labels_from=human`, `data.world=hackable`.

An option's file names them under the word's own key:

    labels_from:
      human: {alpha: 0.01, later: {2: {alpha: 0.005}}}       # settings of the file's own group
    world:
      hackable:
        of_objective: {pairwise_cringe: {labels_from: simulated}}  # and of the objective, where it is this one

They count as if they had been typed, but for the settings that were typed, which hold in every iteration.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows import settings
from pipeline.config import flat
from pipeline.errors import UserError, nearest

WORDS = {"data": "world", "objective": "labels_from"}  # group -> its word; one may bring that of the next
_DEFAULTS = {"data": "minifarm"}  # as conf/config.yaml has it
_OF_OBJECTIVE = "of_objective"
Values = list[tuple[str, Any]]


def expanded(values: Values, conf: Path, options: Mapping[str, Any]) -> tuple[Values, list[str]]:
    """The typed values with what the words stand for in their place, and a remark on each word.

    values: (dotted key, value); unchanged where the option has no such word. options: what is chosen in each group.
    Raises UserError for a word that the option does not have.
    """
    notes, options = list[str](), {**_DEFAULTS, **options}
    for group, name in WORDS.items():
        word, node = f"{group}.{name}", settings.option_node(conf, group, options[group]) if group in options else {}
        asked = [value for key, value in values if key == word]
        if not asked or name not in node:
            continue
        if asked[-1] not in node[name]:
            raise UserError(f"{word}: {asked[-1]!r}, expected {' or '.join(node[name])}"
                            f"{nearest(str(asked[-1]), node[name])}")
        found = dict(node[name][asked[-1]])
        of_objective = found.pop(_OF_OBJECTIVE, {}).get(options.get("objective"), {})
        typed = {key for key, _ in values}
        brought = [(key, value) for key, value in (flat(found, group) | flat(of_objective, "objective")).items()
                   if in_every_iteration(key) not in typed and key not in typed]
        values = brought + [(key, value) for key, value in values if key != word]
        notes += [f"{word}={asked[-1]} brings " + ", ".join(f"{k}={v}" for k, v in brought)] if brought else []
    return values, notes


def in_every_iteration(key: str) -> str:
    """`objective.alpha` of `objective.later.2.alpha`: the key that holds in all of them."""
    return re.sub(r"\.later\.\d+", "", key)
