"""Values that go together, by one word: `objective.labels_from=human` in conf/objective/pairwise_cringe.yaml.

An option's file names them under the word's own key:

    labels_from:
      simulated: {}                                          # the default: the file's values as they stand
      human: {alpha: 0.01, later: {2: {alpha: 0.005}}}

They count as if they had been typed, but for the settings that were typed, which hold in every iteration.
"""

import re
from typing import Any

from pipeline.config import flat
from pipeline.errors import UserError, nearest

KEY, GROUP = "labels_from", "objective"
Values = list[tuple[str, Any]]


def expanded(values: Values, node: dict[str, Any]) -> Values:
    """The typed values with what the word stands for in its place; unchanged where the option has no such word.

    values: (dotted key, value). node: the option's file. Raises UserError for a word that the option does not have.
    """
    asked = [value for key, value in values if key == f"{GROUP}.{KEY}"]
    if not asked or KEY not in node:
        return values
    known = node[KEY]
    if asked[-1] not in known:
        raise UserError(f"{GROUP}.{KEY}: {asked[-1]!r}, expected {' or '.join(known)}{nearest(str(asked[-1]), known)}")
    typed = {key for key, _ in values}
    brought = [(key, value) for key, value in flat(known[asked[-1]], GROUP).items()
               if re.sub(r"\.later\.\d+", "", key) not in typed and key not in typed]
    return brought + [(key, value) for key, value in values if key != f"{GROUP}.{KEY}"]
