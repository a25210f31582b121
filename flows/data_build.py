"""`align data build NAME PATH ...`: preference pairs, or texts with their continuations, from data of another kind."""

import json
from pathlib import Path

from flows import screen
from pipeline import files, pair_builders
from pipeline.errors import UserError, nearest


def build(words: list[str]) -> int:
    """Write what builder NAME makes of the files. words: NAME, PATHs, to=FILE (pairs/NAME.jsonl), seed=N (0)."""
    bare, typed = [w for w in words if "=" not in w], dict(w.split("=", 1) for w in words if "=" in w)
    known = pair_builders.BUILDERS
    problems = [f"{key}: unknown here, expected to=FILE or seed=N" for key in typed if key not in ("to", "seed")]
    if not bare or bare[0] not in known:
        said = f"no builder named {bare[0]!r}{nearest(bare[0], known)}" if bare else "missing"
        problems.append(f"NAME: {said}, expected one of {', '.join(known)}")
    elif len(bare) < 2:
        problems.append(f"PATH: missing, say which file: align data build {bare[0]} FILE")
    if not typed.get("seed", "0").isdecimal():
        problems.append(f"seed: {typed['seed']!r}, expected a whole number from 0 on")
    if problems:
        raise UserError(*problems)
    name, target = bare[0], Path(typed.get("to", f"pairs/{bare[0]}.jsonl")).expanduser()
    rows, tally = pair_builders.build(name, [Path(p).expanduser() for p in bare[1:]], int(typed.get("seed", "0")))
    if not rows:
        raise UserError(f"PATH: {name} makes nothing of {', '.join(bare[1:])} ({dict(tally)})")
    files.write_atomic(target, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    left = ", ".join(f"{why.removeprefix('left out: ')} {n}" for why, n in tally.items() if n and why != "rows")
    screen.paragraph(f"{target}: {len(rows):,} rows of {tally['rows']:,}" + (f"; left out: {left}" if left else ""))
    if (distance := pair_builders.distance(rows)) is not None:
        shown = f"of the tokens: align data show {target}"
        screen.paragraph(f"normalised edit distance {distance:.1%} of the words; {shown}")
    return 0
