"""Score by form: 1 where an answer matches a regular expression, is JSON, follows a JSON schema, else 0.

Of an answer with a ```json block, the block is what is read as JSON.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import one_line
from pipeline.files import parsed
from pipeline.lm.settings import ModelRuntime
from pipeline.rewards.checked import each
from pipeline.rewards.contract import ScoreGroups, Scorer

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """What is asked for; of several all must hold."""

    regex: str | None = None
    """Somewhere in the answer, . for any character; (?s)\\A...\\Z for the whole of it."""

    json: bool = False
    """The answer must be JSON."""

    schema: str | None = None
    """A file with the JSON schema (draft 2020-12) that it must follow."""

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if self.regex is None and not self.json and self.schema is None:
            problems.append(("regex", "null with json=false and schema=null asks for nothing, set one of them"))
        try:
            re.compile(self.regex or "")
        except re.error as error:
            problems.append(("regex", f"{self.regex!r} is no regular expression ({error})"))
        if self.schema is not None:
            problems += _schema_problems(Path(self.schema).expanduser())
        return problems


def _schema_problems(path: Path) -> list[tuple[str, str]]:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(parsed(path.read_bytes()))
    except OSError:
        return [("schema", f"no file {str(path)!r}, expected a JSON schema")]
    except (ValueError, SchemaError) as error:
        return [("schema", f"{path} is no JSON schema ({one_line(error)})")]
    return []


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None) -> ScoreGroups:
    """See Scorer."""
    from jsonschema import Draft202012Validator

    schema: Any = {} if settings.schema is None else json.loads(Path(settings.schema).expanduser().read_text())
    validator = Draft202012Validator(schema)

    def score(text: str) -> float:
        if settings.regex is not None and re.search(settings.regex, text) is None:
            return 0.0
        if settings.json or settings.schema is not None:
            fenced = _FENCED.search(text)
            try:
                return float(validator.is_valid(parsed(fenced[1] if fenced else text)))
            except ValueError:
                return 0.0
        return 1.0

    return each(score)


SCORER = Scorer(Settings, scorer, files=lambda s: [] if s.schema is None else [Path(s.schema).expanduser()])
