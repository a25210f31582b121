"""Tokenised groups as a reader sees them: every id, special tokens marked, the prompt apart from its answers."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.lm.folders import load_tokenizer, quiet
from pipeline.records import STOP, Group

OPEN, CLOSE = "\u27e6", "\u27e7"  # around a special token: text that only looks like one stands without them


def rendered(folder: Path, groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """(prompt, answers) of groups with ids, decoded id for id by the tokenizer of a model's folder. An answer that does
    not end by itself ends with "(cut)".
    """
    quiet()
    tokenizer = load_tokenizer(folder)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}

    def text(ids: Sequence[int]) -> str:
        pieces, plain = list[str](), list[int]()
        for one in [*ids, None]:
            if one is not None and one not in special:
                plain.append(one)
                continue
            pieces.append(tokenizer.decode(plain))
            plain = []
            pieces.append("" if one is None else f"{OPEN}{tokenizer.decode([one])}{CLOSE}")
        return "".join(pieces)

    return [(text(group.prompt_ids),
             [text(c.token_ids) + ("" if c.finish_reason == STOP else " (cut)") for c in group.completions])
            for group in groups]
