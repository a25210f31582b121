"""One answer that is desirable or not (KTO): {"prompt", "completion", "label"}, {"messages", "label"}.

A label is true or false, 1 or 0, one of WORDS, or what data.format.labels maps: {thumbs_up: true}. Without one (null)
the answer is a demonstration.
"""

from dataclasses import replace
from typing import Any

from pipeline.formats.contract import Example, Shape
from pipeline.formats.shapes import demonstrations

WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "desirable": True,
         "undesirable": False, "good": True, "bad": False, "chosen": True, "rejected": False, "yes": True, "no": False}
KEYS = ("label", "kto_tag")


def read(data: dict[str, Any], settings: Any) -> list[Example]:
    key = next(key for key in KEYS if key in data)
    rest = {name: value for name, value in data.items() if name != key}
    (example,) = demonstrations.read(rest, replace(settings, turns="last"))
    if data[key] is None:
        return [example]
    word = str(data[key]).strip().lower()
    known = {**WORDS, **{str(name).lower(): value for name, value in settings.labels.items()}}
    if word not in known or len(example.answers) != 1:
        raise ValueError(f"{key}: {data[key]!r}, expected true or false beside exactly one answer; other words are "
                         "named with data.format.labels={WORD: true}")
    return [replace(example, label=known[word])]


SHAPE = Shape("labelled answers", tuple((*alternative, key) for alternative in demonstrations.SHAPE.needs
                                        if "instances" not in alternative for key in KEYS), read, reads=("input",))
