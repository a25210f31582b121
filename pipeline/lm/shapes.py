"""Chat templates for models that bring none, or another than wanted: a file, or a shape by its name. Loads no torch."""

import datetime
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.lm import tiny
from pipeline.lm.rendering import DATE_KEY

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
PLAIN = ("{% for m in messages %}{{ {'system': '', 'user': 'User: ', 'assistant': 'Assistant: ', 'tool': 'Tool: '}"
         "[m['role']] + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
         "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
NAMES = (*tiny.TEMPLATES, "plain")


def choice_problem(choice: str | None) -> str:
    """What is wrong with a chosen template before a tokenizer is there; '' where nothing is."""
    if choice is None or choice in NAMES or Path(choice).expanduser().is_file():
        return ""
    return (f"{choice!r} is no file, expected a file of Jinja or one of {', '.join(NAMES)}"
            f"{nearest(choice, NAMES)}")


def named(choice: str, tokenizer: Any, key: str = "model.chat_template") -> str:
    """The Jinja text of a chosen template, for a model with this tokenizer.

    A shape writes BOS where the tokenizer puts one in front of a text by itself. Raises UserError for a choice that is
    neither file nor shape, and for a shape whose tokens are not in the vocabulary.
    """
    if choice not in NAMES:
        if problem := choice_problem(choice):
            raise UserError(f"{key}: {problem}")
        return Path(choice).expanduser().read_text()
    if choice == "plain":
        text, wanted = PLAIN, [tokenizer.eos_token or "an eos_token"]
    else:
        shape = tiny.TEMPLATES[choice]
        text, wanted = shape.text.removeprefix(tiny.BOS), [t for t in shape.specials if t not in (tiny.BOS, tiny.PAD)]
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in wanted if token not in vocabulary]:
        raise UserError(f"{key}: {choice} needs {', '.join(missing)}, which this model's vocabulary does not have; "
                        + ("set eos_token in tokenizer_config.json" if choice == "plain" else "take plain, or a file"))
    bos = tokenizer.bos_token_id
    return ("{{ bos_token }}" if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else "") + text


def files(choice: str | None) -> list[Path]:
    """The file of a chosen template: its content is part of the model's key."""
    return [] if choice is None or choice in NAMES else [Path(choice).expanduser()]


def dress(folder: Path, choice: str | None, date: str | None) -> None:
    """Write the chosen template and date into a model's folder; None: what is there stays, byte for byte.

    Raises UserError as `named`, and for a date that is none.
    """
    if choice is not None:
        import transformers

        text = named(choice, transformers.AutoTokenizer.from_pretrained(folder))
        (folder / TEMPLATE).write_text(text)
    if date is not None:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), DATE_KEY: date}, indent=2, sort_keys=True) + "\n")


def date_problem(date: str | None) -> str:
    """What is wrong with the date a template is told; '' where nothing is."""
    try:
        datetime.date.fromisoformat(date or "2024-07-26")
    except ValueError:
        return f"{date!r}, expected a day such as 2024-07-26"
    return ""
