"""`objective=dpo,ipo seed=range(0,3)` -> the runs it stands for; Hydra's syntax: a,b, choice(a,b), range(0,3)."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException

from flows import settings
from flows.compose import CONF
from flows.prepare import absolute
from flows.sweep_record import Arm
from pipeline import runs
from pipeline.errors import UserError

_LONGEST = 64  # characters of a run's name
_SEED = re.compile(r"^seeds?(\.|$)")


def arms(name: str, words: list[str], conf: Path = CONF) -> list[Arm]:
    """Every combination of the words' values, the last word changing first; a run is named after what is its own.

    Raises UserError with every word that is no setting and no list of values.
    """
    problems: list[str] = []
    listed = [list(map(absolute, _values(word, conf, problems))) for word in words]
    if problems:
        raise UserError(*problems)
    swept = [i for i, values in enumerate(listed) if len(values) > 1]
    combined = [list(chosen) for chosen in itertools.product(*listed)]
    labels = ["-".join([name, *_labels([chosen[i] for i in swept], conf)]) for chosen in combined]
    known = Counter(labels)
    return [Arm(_fitting(label, chosen, known[label] > 1), chosen)
            for label, chosen in zip(labels, combined, strict=True)]


def _values(word: str, conf: Path, problems: list[str]) -> list[str]:
    """The word, or one for each of its values."""
    key, equals, typed = word.partition("=")
    if not equals or (key in settings.PATHS and Path(typed).expanduser().exists()):
        problems += [] if equals else [f"{word}: not of the form key=value"]
        return [word]
    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        if key in settings.PATHS:  # as `align run` takes it: as it is typed
            return [word]
        problems.append(f"{word}: not of the form key=value or key=a,b ({str(error).strip().splitlines()[0]})")
        return [word]
    if not parsed.is_sweep_override():
        return [word]
    if parsed.is_interval_sweep():
        problems.append(f"{word}: an interval is no list of values, expected {key}=a,b or {key}=range(from,below,step)")
        return [word]
    found: Iterable[str]
    if isinstance(glob := parsed.value(), Glob):  # type: ignore[unreachable]
        found = glob.filter(settings.options(conf, key))  # type: ignore[unreachable]
    else:
        found = parsed.sweep_string_iterator()
    values = list(dict.fromkeys(found))
    problems += [] if values else [f"{word}: no value at all"]
    return [f"{key}={value}" for value in values] or [word]


def _labels(words: list[str], conf: Path) -> list[str]:
    """What names a run: dpo, beta0.1, s0. Seeds come last, whatever the order of the words."""
    groups, found = settings.groups(conf), []
    for word in sorted(words, key=lambda word: (bool(_SEED.match(word)), word.partition("=")[0] not in groups, word)):
        key, _, value = word.partition("=")
        start = "" if key in groups else "s" if key == "seed" else key.rpartition(".")[2]
        found.append(re.sub(r"[^A-Za-z0-9._]+", "_", start + value.rstrip("/").rpartition("/")[2]).strip("_"))
    return found


def _fitting(label: str, words: list[str], taken: bool) -> str:
    if len(label) <= _LONGEST and not taken:
        return label
    return f"{label[:_LONGEST - 9]}-{hashlib.sha256(' '.join(sorted(words)).encode()).hexdigest()[:8]}"


def sweep_name(given: str | None, words: list[str]) -> str:
    """The name given, else <recipe>-<data> as a run has it. Raises UserError for one that is no name."""
    typed = dict(word.partition("=")[::2] for word in words)
    name = given or f"{typed.get('recipe', typed.get('published', 'sweep'))}-{typed.get('data', 'minifarm')}"
    name = name if given else re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    if not runs.NAME.match(name) or len(name) > _LONGEST // 2:
        raise UserError(f"sweep: {name!r} is no sweep's name, expected up to 32 letters, digits and . _ -")
    return name
