"""Score by verifiable instructions (IFEval, Zhou et al. 2023): the share of target.instructions an answer follows.

An instruction is {"id": "punctuation:no_comma", "kwargs": {...}}, with the published names. All 25 kinds are checked,
two of them in part: sentences are cut at . ! ? where the paper has a trained model, and an answer's language is told
from its script alone; an instruction that asks for a language in Latin letters leaves the answer without a score.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.files import parsed
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Target
from pipeline.rewards.checked import against
from pipeline.rewards.contract import Desk, ScoreGroups, Scorer

_SCRIPTS = {"ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI",
            "bn": "BENGALI", "gu": "GUJARATI", "kn": "KANNADA", "pa": "GURMUKHI", "ta": "TAMIL", "te": "TELUGU",
            "th": "THAI", "ko": "HANGUL", "ru": "CYRILLIC", "bg": "CYRILLIC", "uk": "CYRILLIC", "el": "GREEK",
            "he": "HEBREW", "ja": "HIRAGANA", "zh": "CJK", "zh-cn": "CJK", "zh-tw": "CJK"}


@dataclass(frozen=True)
class Settings:
    """What counts."""

    score: str = setting("share", choices=("share", "all"))
    """share: of the instructions that are followed; all: 1 where all are, else 0."""

    loose: bool = False
    """An instruction counts as followed, too, without the answer's first or last line, or its asterisks."""


def related(number: float, relation: str | None, bound: float) -> bool:
    return number < bound if relation == "less than" else number >= bound


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> int:
    return len([one for one in re.split(r"(?<=[.!?])[\"')\]]*\s+", text.strip()) if re.search(r"\w", one)])


def _paragraphs(text: str, wanted: int) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    return all(part.strip() for part in parts[1:-1]) and sum(bool(part.strip()) for part in parts) == wanted


def _nth(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in text.split("\n\n")]
    if sum(map(bool, parts)) != num_paragraphs or nth_paragraph > len(parts) or not parts[nth_paragraph - 1]:
        return False
    start = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", start)[0].casefold() == first_word.casefold()


def _postscript(text: str, marker: str) -> bool:
    ways = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(ways.get(marker, re.escape(marker.casefold())), text.casefold()) is not None


def _highlights(text: str) -> int:
    single = [one for one in re.findall(r"\*[^\n\*]*\*", text) if one.strip("*").strip()]
    double = [one for one in re.findall(r"\*\*[^\n\*]*\*\*", text) if one.strip("*").strip()]
    return len(single) + len(double)


def _json(text: str) -> bool:
    bare = re.sub(r"^```(?:json)?\s*|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        parsed(bare)
    except ValueError:
        return False
    return True


def _two(text: str) -> bool:
    parts = text.split("******")
    full = [part.strip() for part in parts if part.strip()]
    return all(part.strip() for part in parts[1:-1]) and len(full) == 2 and full[0] != full[1]


def _language(text: str, language: str) -> bool | None:
    """Whether most letters are of the language's script; None where that is the Latin one, or not known."""
    if language not in _SCRIPTS:
        return None
    letters = [unicodedata.name(one, "") for one in text if one.isalpha()]
    also = ("KATAKANA", "CJK") if language == "ja" else ()
    return 2 * sum(name.startswith((_SCRIPTS[language], *also)) for name in letters) > len(letters)


def _found(words: Sequence[str], text: str) -> int:
    return sum(re.search(word, text, re.IGNORECASE) is not None for word in words)


CHECKS: dict[str, Callable[..., bool | None]] = {
    "keywords:existence": lambda t, keywords: _found([re.escape(w) for w in keywords], t) == len(keywords),
    "keywords:frequency": lambda t, keyword, frequency, relation=None: related(
        len(re.findall(re.escape(keyword), t, re.IGNORECASE)), relation, frequency),
    "keywords:forbidden_words": lambda t, forbidden_words: not _found(
        [rf"\b{re.escape(w)}\b" for w in forbidden_words], t),
    "keywords:letter_frequency": lambda t, letter, let_frequency, let_relation=None: related(
        t.casefold().count(letter.casefold()), let_relation, let_frequency),
    "language:response_language": lambda t, language: _language(t, language),
    "length_constraints:number_sentences": lambda t, num_sentences, relation=None: related(
        _sentences(t), relation, num_sentences),
    "length_constraints:number_paragraphs": lambda t, num_paragraphs: _paragraphs(t, num_paragraphs),
    "length_constraints:number_words": lambda t, num_words, relation=None: related(len(_words(t)), relation, num_words),
    "length_constraints:nth_paragraph_first_word": _nth,
    "detectable_content:number_placeholders": lambda t, num_placeholders: len(
        re.findall(r"\[.*?\]", t)) >= num_placeholders,
    "detectable_content:postscript": lambda t, postscript_marker: _postscript(t, postscript_marker),
    "detectable_format:number_bullet_lists": lambda t, num_bullets: len(
        re.findall(r"^\s*(?:\*[^*]|-).*$", t, re.MULTILINE)) == num_bullets,
    "detectable_format:constrained_response": lambda t: any(f"My answer is {w}." in t for w in ("yes", "no", "maybe")),
    "detectable_format:number_highlighted_sections": lambda t, num_highlights: _highlights(t) >= num_highlights,
    "detectable_format:multiple_sections": lambda t, section_spliter, num_sections: len(
        re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", t)) >= num_sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda t: any(one.strip("<> ") for one in re.findall(r"<<[^\n]+>>", t)),
    "combination:two_responses": _two,
    "combination:repeat_prompt": lambda t, prompt_to_repeat: t.strip().casefold().startswith(
        prompt_to_repeat.strip().casefold()),
    "startend:end_checker": lambda t, end_phrase: t.strip().strip('"').casefold().endswith(
        end_phrase.strip().casefold()),
    "startend:quotation": lambda t: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
    "change_case:capital_word_frequency": lambda t, capital_frequency, capital_relation=None: related(
        sum(word.isupper() for word in _words(t)), capital_relation, capital_frequency),
    "change_case:english_capital": lambda t: t.isupper(),
    "change_case:english_lowercase": lambda t: t.islower(),
    "punctuation:no_comma": lambda t: "," not in t,
}


def follows(instruction: dict[str, Any], text: str) -> bool | str:
    """Whether an answer follows an instruction, or why that cannot be told."""
    name = str(instruction.get("id"))
    given = {key: value for key, value in (instruction.get("kwargs") or {}).items() if value is not None}
    if name not in CHECKS:
        return f"there is no check of the instruction {name!r}"
    try:
        found = bool(text.strip()) and CHECKS[name](text, **given)
    except TypeError:
        return f"the instruction {name} has other kwargs than IFEval's"
    return f"the language {given.get('language')} cannot be told from its script" if found is None else found


def versions(text: str, loose: bool) -> list[str]:
    """The answer, and with `loose` what is left of it without first line, last line and asterisks."""
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])] if loose else [text]
    return cut + ([one.replace("*", "") for one in cut] if loose else [])


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. A prompt without instructions scores NaN, as does one with an instruction that cannot be checked."""
    def check(target: Target, text: str) -> float | str:
        found = []
        for instruction in target.instructions:
            ways = [follows(instruction, version) for version in versions(text, settings.loose)]
            if isinstance(ways[0], str):
                return ways[0]
            found.append(any(way is True for way in ways))
        return float(all(found)) if settings.score == "all" else sum(found) / len(found)

    return against("instructions", check, desk)


SCORER = Scorer(Settings, scorer, desk=True)
