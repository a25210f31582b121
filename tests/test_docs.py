"""README and docs are true: their commands run, their links lead somewhere, what they name in backticks exists.

Short commands run as they stand, in a workspace with one planned run called demo. `align run` and `align stage` are
planned: composed, expanded and checked, without computing. Words in capitals (RUN, PATH ...) are placeholders.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from flows.compose import CONF
from flows.prepare import prepare
from pipeline import runs
from pipeline.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").glob("*.md")])
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "__pycache__"}
# What a placeholder is run as. Folders and servers that are not here are the one thing a plan may complain about.
READER = {"RUN": "demo", "NAME": "demo", "my-run": "demo", "STEP": "train[2]", "S": "0"}
ELSEWHERE = re.compile(
    r"(data\.root|evaluation\.watch\.root|reward\.bench\.root|[a-z0-9_.]+\.path): "
    r".*(cannot be opened|is not a folder|no folder)|"
    r"engine\.url: |data\.new: adds prompts to a run, and .* has none named |"
    r"launcher\.(module: (sbatch is not|Slurm does not|ray is not)|address: nothing answers|prefix: no program )|"
    r"[a-z0-9_.]+\.key: the environment variable|notify\.[a-z_.]+: the environment has no ")
# They would not end, load everything, or need a trained model: only their options are checked.
NOT_RUN = {"dashboard", "deploy", "server", "doctor", "chat", "sample", "export", "data", "label"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[str]:
    """The fenced and the indented code of a page, one block each, outputs of figures left out."""
    text = re.sub(r"<!-- figures.*?<!-- end -->", "", text, flags=re.DOTALL)
    yield from re.findall(r"^```(?!python)[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"(?:^ {4}[^ -].*\n(?: {4}.*\n)*)", text, flags=re.MULTILINE)


def ticked(text: str) -> list[str]:
    """What stands in single backticks outside of code blocks, line breaks as spaces."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", text)]


def lines_of(block: str) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        if line.strip():
            yield line.strip()


def commands(path: Path, word: str) -> list[list[str]]:
    """Every command that begins with `word`, cut into words, without its comment."""
    text, found = path.read_text(), []
    for line in [*(line for block in blocks(text) for line in lines_of(block)), *ticked(text)]:
        if line.startswith(f"{word} "):
            found.append(shlex.split(line, comments=True))
    return found


def everywhere(*starts: str) -> dict[str, tuple[str, ...]]:
    """The commands of all pages that begin with one of these words: "page: command" -> its words; each command once."""
    found = {tuple(words): path for path in reversed(PAGES) for start in starts for words in commands(path, start)}
    return {f"{name_of(path)}: {' '.join(words)}": words for words, path in sorted(found.items())}


ALIGN, MAKE, PYTHON = everywhere("align"), everywhere("make"), everywhere("python", ".venv/bin/python")


@functools.cache
def align():  # type: ignore[no-untyped-def]
    """The function behind the installed command."""
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["align"]
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def called(words: list[str]) -> tuple[int, str]:
    """Exit code and everything printed by `align WORDS` in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = align()(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, out.getvalue()


@functools.cache
def planned(*words: str) -> tuple[int, str]:
    """As `called`, once for commands that differ in what they do after planning."""
    return called(list(words))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which run demo is planned and nothing is computed."""
    place = tmp_path_factory.mktemp("docs") / "workspace"
    planned = prepare(["recipe=pco", "run=demo", f"workspace={place}", "gate=stop"])
    runs.save(planned.workspace, planned.run)
    return place


def readers(words: Sequence[str]) -> list[str]:
    """The command with the reader's words filled in; what is optional or only hinted at is left out."""
    filled = []
    for word in words:
        if word == "..." or word.startswith("[") or (word.endswith("]") and "[" not in word):
            continue
        key, equals, value = word.partition("=")
        if key == "engine.url":
            value = "http://127.0.0.1:9"  # a port at which nothing answers, at once
        filled.append(f"{key}={READER.get(value, value)}" if equals else READER.get(word, word))
    return filled


def complaints(words: list[str], place: Path, step: str | None = None) -> list[str]:
    """The problems `align plan` has with these words, but for places and machines that are not here."""
    given = [word for word in words if not word.startswith(("run=", "workspace="))]
    try:
        if step is None:
            recipe = [] if any(word.startswith("recipe=") for word in given) else ["recipe=pco"]
            prepare([*recipe, *given, "run=checked", f"workspace={place}"])
        else:
            prepare(["run=demo", f"workspace={place}"], {step: given})
    except UserError as error:
        return [problem for problem in error.problems if not ELSEWHERE.match(problem)]
    return []


@pytest.mark.parametrize("words", ALIGN.values(), ids=ALIGN)
def test_every_align_command_runs(words: tuple[str, ...], workspace: Path):
    command, *rest = readers(words[1:])
    if command == "--help":
        assert called([command])[0] == 0
        return
    code, shown = called([command, "--help"])
    assert code == 0, f"align has no command {command!r}: {shown}"
    options = [word.strip("[]") for word in words if word.lstrip("[").startswith("--")]
    assert [option for option in options if option not in shown] == [], f"align {command} has no such option"
    rest = [word for word in rest if not word.startswith("--")]
    if command in ("run", "plan"):
        assert complaints(rest, workspace.parent / "other") == []
    elif command == "stage":
        assert complaints(rest[1:], workspace, rest[0]) == []
    elif command in ("report", "compare"):
        code, shown = called([command, *dict.fromkeys(rest), f"workspace={workspace}"])
        assert code == 0 or re.search("no (report|evaluation) yet|no sweep named", shown), shown
    elif command in ("sweep", "reproduce"):
        quick = ["--quick"] if command == "reproduce" else []
        code, shown = planned(command, *rest, *quick, "--plan", f"workspace={workspace.parent / 'other'}")
        assert code == 0 or re.search("no (sweep|table) named '(demo|NAME)'|not there, make it first", shown), shown
    elif command == "logs":
        code, shown = called([command, *rest, f"workspace={workspace}"])
        assert code == 0 or "no log" in shown, shown
    elif command == "options":
        assert called([command, *rest])[0] == 0
    elif command == "stop":  # its option stands in the place of a run
        code, shown = called([command, *rest, *options, f"workspace={workspace}"])
        assert code == 0, shown
    elif command not in NOT_RUN:
        code, shown = called([command, *rest, f"workspace={workspace}"])
        assert code == 0, shown


def test_the_commands_of_the_readme_are_all_of_them():
    """One line of README's table for each command that `align` lists, and no other."""
    table = next(block for block in blocks((ROOT / "README.md").read_text()) if "align doctor" in block)
    shown = {line.split()[1] for line in table.splitlines() if line.startswith("align ")}
    listed = set(re.findall(r"^  ([a-z]+) ", called([])[1], flags=re.MULTILINE))
    assert shown == listed


@pytest.mark.parametrize("words", MAKE.values(), ids=MAKE)
def test_every_make_target_and_variable_exists(words: tuple[str, ...]):
    makefile = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        name, equals, _ = word.partition("=")
        assert re.search(rf"^{re.escape(name)}\s*\?=" if equals else rf"^{re.escape(name)}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("words", PYTHON.values(), ids=PYTHON)
def test_every_script_and_its_options_exist(words: tuple[str, ...]):
    rest = words[1:]
    if rest[0] == "-m" and not rest[1].startswith(("pipeline", "flows", "scripts")):
        return  # pytest, vllm: another package's
    file = ROOT / (rest[1].replace(".", "/") + ".py" if rest[0] == "-m" else rest[0])
    if not file.is_file() and rest[0] == "-m":
        file = ROOT / rest[1].replace(".", "/") / "__main__.py"
    assert file.is_file()
    source = file.read_text()
    assert [word for word in rest if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_and_image_leads_somewhere(path: Path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file) if file else path
        if not page.exists() or (anchor and anchor not in anchors(page.read_text())):
            missing.append(target)
    assert missing == []


def anchors(text: str) -> set[str]:
    """The names under which a page's headings can be linked to."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", head.lower()).replace(" ", "-") for head in heads}


# Folders of the tree, and of the package, under which pages name files: `conf/...` and, short, `training/...`.
TOPS = {"conf", "data", "docs", "flows", "pipeline", "scripts", "tests"}
PARTS = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir()}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_file_in_backticks_exists(path: Path):
    missing = []
    for word in ticked(path.read_text()):
        top, slash, _ = word.partition("/")
        if not slash or not re.fullmatch(r"[\w./*-]+", word) or re.search(r"\bx\.(py|yaml)$|\bx$", word):
            continue
        if top in TOPS or top in PARTS:
            base = ROOT if top in TOPS else ROOT / "pipeline"
            if top == "data" and not (base / word).exists():
                continue  # a run's step data, not the folder
            if not list(base.glob(word.rstrip("/"))):
                missing.append(word)
    assert missing == []


@functools.cache
def known_keys() -> frozenset[str]:
    """Every key of conf, and every field of a settings class: what a dotted setting is put together from."""
    found = {"settings", "runtime", *GROUPS}
    for file in CONF.rglob("*.yaml"):
        waiting = [yaml.safe_load(file.read_text())]
        while waiting:
            data = waiting.pop()
            if isinstance(data, dict):
                found |= {str(key) for key in data}
                waiting += data.values()
    for file in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "flows" / name for name in ("settings.py", "notify.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                found |= {ast.unparse(field.target) for field in node.body if isinstance(field, ast.AnnAssign)}
    return frozenset(found)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_setting_in_backticks_exists(path: Path):
    """`trainer.preference.lr`, with or without a value: each of its words is a key of conf or a field of Settings."""
    stages = {file.stem for file in (ROOT / "pipeline" / "stages").glob("*.py")}
    unknown = []
    for ticks in ticked(path.read_text()):
        for word in ticks.split():
            key = word.partition("=")[0].removesuffix(".*")
            first, *rest = key.split(".")
            if rest and first in GROUPS and re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", key) and rest[-1] not in (
                    "py", "json", "jsonl", "md", "yaml", "example"):
                unknown += [word for part in rest if part not in known_keys() | stages]
    assert unknown == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_option_in_backticks_exists(path: Path):
    """`objective=dpo`: an option that can be composed, whether it has a file of its own or not."""
    found = sorted({word for ticks in ticked(path.read_text()) for word in ticks.split()
                    if re.fullmatch(r"[a-z]+=[a-z][a-z0-9_]*", word) and word.partition("=")[0] in GROUPS})
    problems: list[str] = []
    while found:  # one option of each group at a time
        picked = {word.partition("=")[0]: word for word in found}
        found = [word for word in found if word not in picked.values()]
        words = [*([] if "recipe" in picked else ["recipe=pco"]), *picked.values()]
        problems += [p for p in composed_problems(words) if re.search(r"no \w+ named", p)]
    assert problems == []


def composed_problems(words: list[str]) -> list[str]:
    from flows.compose import compose

    try:
        return compose(words).problems
    except UserError as error:
        return error.problems


@pytest.mark.parametrize("path", [p for p in PAGES if "```python" in p.read_text()], ids=name_of)
def test_python_examples_run(path: Path):
    """Where the last line names its value in a comment, ending in `= NUMBER`, that is the value."""
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(code, name_of(path), "exec"), names)
        said = re.search(r"= (-?[\d.]+)$", code.strip())
        assert said is not None, "say in a comment what the example gives"
        assert names["losses"].item() == pytest.approx(float(said[1]), abs=0.005)  # type: ignore[attr-defined]


def test_every_decision_has_a_date_a_status_and_a_line_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for record in sorted(folder.glob("[0-9]*.md")):
        number, title = re.match(r"# (\d{3}) (.*)", record.read_text()).groups()  # type: ignore[union-attr]
        facts = re.search(r"^Date: (\d{4}-\d{2}-\d{2})\n\nStatus: (.+)$", record.read_text(), flags=re.MULTILINE)
        assert facts is not None and record.name.startswith(number)
        assert f"| [{number}]({record.name}) | {facts[1]} | {facts[2]} | {title} |" in index
