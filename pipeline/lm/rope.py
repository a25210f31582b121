"""Rotary positions in config.json for readers of both kinds: `rope_parameters` (transformers 5), and `rope_theta`,
`rope_scaling` and `rope_local_base_freq` (everything older). A reader that misses its words takes a default, and
computes another model without a word.
"""

from typing import Any

_OLD = ("rope_theta", "rope_scaling", "rope_local_base_freq")
_LAYERS = ("full_attention", "sliding_attention")  # whose positions differ in some families


def in_old_words(config: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json with the older keys beside `rope_parameters`, in `text_config` too; what says its
    positions by neither is as it was.
    """
    made = {k: in_old_words(v) if k == "text_config" and isinstance(v, dict) else v for k, v in config.items()}
    given = config.get("rope_parameters")
    if not given:
        return made
    if not any(name in given for name in _LAYERS):
        return {**made, **_theta_and_scaling(given)}
    full, sliding = (given.get(name) or {} for name in _LAYERS)
    local = {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}
    return {**made, **_theta_and_scaling(full), **local}


def has_old_words(config: dict[str, Any]) -> bool:
    """Whether the content of a config.json says its positions in the older keys."""
    return any(name in part for part in (config, config.get("text_config") or {}) for name in _OLD)


def _theta_and_scaling(given: dict[str, Any]) -> dict[str, Any]:
    """`type` is what `rope_type` was called at first."""
    kind = given.get("rope_type", "default")
    rest = {k: v for k, v in given.items() if k not in ("rope_theta", "rope_type", "type", "partial_rotary_factor")}
    scaling = None if kind == "default" else {"rope_type": kind, "type": kind, **rest}
    part = {k: given[k] for k in ("partial_rotary_factor",) if k in given}
    return {**({"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}), "rope_scaling": scaling, **part}
