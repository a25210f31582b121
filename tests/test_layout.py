"""The house rules, checked on the source itself: who imports whom, what planning may load, sizes, descriptions."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PARTS = ("objectives", "selection", "negatives", "rewards", "replay", "engines", "training", "formats", "evaluation",
         "worlds")
# What every part may stand on. "" is the package itself (its version, its place on disk).
BASE = {"", "errors", "clock", "files", "records", "tables", "columns", "config", "stage", "statistics", "logistic",
        "markdown", "web", "supervisor", "hub", "weights", "gguf_header", "source", "code", "waiting"}
# What both sides of a contract stand on.
CONTRACTS = tuple(f"{part}.contract" for part in ("objectives", "selection", "negatives", "rewards")) + (
    "engines.engine",)
HEAVY = ("torch", "transformers", "vllm", "accelerate", "peft", "datasets", "wandb")
# The one home of each package that would otherwise leak everywhere.
HOMES = {
    "prefect": ("flows/",),
    "hydra": ("flows/",),
    "omegaconf": ("flows/",),
    "wandb": ("pipeline/tracking/wandb.py",),
    "tensorboard": ("pipeline/tracking/tensorboard.py",),
    "vllm": ("pipeline/engines/",),
    "rich": ("flows/",),
    "huggingface_hub": ("pipeline/hub.py", "pipeline/upload.py"),  # what is read from the hub, what is sent to it
    "fastapi": ("flows/dashboard/",),
    "uvicorn": ("flows/dashboard/",),
}
MOST_LINES = 28600  # of code: docs/decisions/003-size.md
MOST_YAML = 120  # files of conf; those of published and reproduce hold one paper's values or claims each
# Distribution name -> the name it is imported by, where they differ.
IMPORT_NAMES = {"hydra-core": "hydra", "pyyaml": "yaml", "nvidia-ml-py": "pynvml"}


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import statement, wherever it stands; `from a import b` gives a and a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import; write the whole path"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def area(dotted: str) -> str:
    """The part of the house a dotted name is in: "stages", "objectives" ..., "base", "pipeline", "flows", "outside"."""
    top, _, rest = dotted.partition(".")
    if top != "pipeline":
        return top if top in ("flows", "conf", "scripts", "tests") else "outside"
    inner = rest.partition(".")[0]
    if inner in BASE or rest.startswith(CONTRACTS):
        return "base"
    return inner if inner in (*PARTS, "stages", "lm") else "pipeline"


def area_of(path: Path) -> str:
    return area(".".join(path.relative_to(ROOT).with_suffix("").parts))


ALLOWED = {
    "base": {"base"},
    "lm": {"lm", "base"},
    **{part: {part, "lm", "base"} for part in PARTS},
    "stages": {*PARTS, "lm", "base"},
    "pipeline": {"pipeline", "base"},  # store, plan, worker, runs ...: they load stages by name, at run time
    "flows": {"flows", "pipeline", "base", "conf"},
}


@pytest.mark.parametrize("path", sources("pipeline", "flows"), ids=name_of)
def test_imports_go_one_way(path: Path):
    """flows -> pipeline; stages -> parts -> lm -> base. No part imports another, no stage another, none flows."""
    where = area_of(path)
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    wrong = [
        f"{name_of(path)}:{line} imports {target}"
        for line, target in imported(path)
        if area(target) not in ALLOWED[where] | {"outside"} and target != own
    ]
    assert wrong == []


# hasattr and getattr by a name written out: on objects of other packages, and `check` of a Settings. What a module of
# ours may declare is in its contract.
LOOKED_UP = {
    "flows/doctor.py": {"sched_getaffinity"},
    "pipeline/config.py": {"check", "__name__"},
    "pipeline/lm/probe.py": {"max_position_embeddings", "vocab_size", "is_decoder"},
    "pipeline/lm/round_trip.py": {"layer_types"},
    "pipeline/engines/vllm/service.py": {"sched_getaffinity"},
    "pipeline/engines/vllm/worker.py": {"cpu_linear"},
    "pipeline/lm/folders.py": {"max_position_embeddings"},
    "pipeline/lm/head.py": {"logit_scale", "logits_scaling", "final_logit_softcapping"},
    "pipeline/lm/forward.py": {"get_base_model"},
    "pipeline/lm/prefix.py": {"attention_chunk_size", "sliding_window"},
    "pipeline/lm/scores.py": {"score"},
}


@pytest.mark.parametrize("path", sources("pipeline", "flows"), ids=name_of)
def test_contracts_are_types(path: Path):
    """No module is asked by name for what it declares: its dataclass says it, and mypy sees it."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = {call.args[1].value for call in calls if isinstance(call.func, ast.Name)
             and call.func.id in ("hasattr", "getattr") and isinstance(call.args[1], ast.Constant)}
    assert found <= LOOKED_UP.get(name_of(path), set())


@pytest.mark.parametrize("package", HOMES)
def test_each_special_package_has_one_home(package: str):
    strangers = [
        f"{name_of(path)}:{line}"
        for path in sources("pipeline", "flows")
        for line, target in imported(path)
        if target.partition(".")[0] == package and not name_of(path).startswith(HOMES[package])
    ]
    assert strangers == []


def test_fsync_and_locks_have_one_home():
    """Atomic files and locks are subtle: pipeline/files.py is the only code that makes either."""
    low_level = re.compile(r"fsync\(|flock\(|\.tmp\"\)\.(replace|rename)\(")
    found = {name_of(path) for path in sources("pipeline", "flows") if low_level.search(path.read_text())}
    assert found == {"pipeline/files.py"}


def test_every_imported_package_is_declared():
    """No package is used because another one happens to bring it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["vllm"],
              *project["optional-dependencies"]["tensorboard"], *project["optional-dependencies"]["gguf"],
              *project["optional-dependencies"]["nvml"]]
    names = [re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in wanted]
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    used = {
        target.partition(".")[0]: f"{name_of(path)}:{line}"
        for path in sources("pipeline", "flows")
        for line, target in imported(path)
        if area(target) == "outside"
    }
    unknown = {name: place for name, place in used.items() if name not in declared | sys.stdlib_module_names}
    assert unknown == {}


def test_planning_loads_nothing_heavy():
    """What `align plan`, `status` and `--help` import, all stages and pluggable parts included, in a fresh process."""
    folders = ("stages", "objectives", "selection", "rewards")
    modules = ["flows.cli"] + [
        f"pipeline.{folder}.{path.stem}"
        for folder in folders for path in (ROOT / "pipeline" / folder).glob("*.py") if path.stem != "__init__"
    ]
    assert len(modules) > 20
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        f"print([name for name in {(*HEAVY, 'prefect')} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def code_lines(text: str) -> int:
    """Lines that are neither blank nor comment nor docstring (a text that stands alone, under a field too)."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.split("\n"), 1)
    return sum(1 for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in prose)


def test_sizes_stay_readable():
    """Files under 300 lines, functions under 50, pipeline and flows together under MOST_LINES of code."""
    too_long, total = [], 0
    for path in sources("pipeline", "flows"):
        text = path.read_text()
        lines = text.count("\n")
        total += code_lines(text)
        if lines >= 300:
            too_long.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size >= 50:
                    too_long.append(f"{name_of(path)}:{node.lineno} {node.name}: {size} lines")
    assert too_long == []
    assert total < MOST_LINES


@pytest.mark.parametrize("path", sources("pipeline", "flows"), ids=name_of)
def test_every_module_says_what_it_is(path: Path):
    text = path.read_text()
    if path.name == "__init__.py" and not text.strip():
        return
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def test_every_make_target_has_a_description_and_help_prints_it():
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):(?!=)(.*)$", text, flags=re.MULTILINE)
    assert {name for name, _ in targets} == {
        "help", "setup", "demo", "test", "test-long", "chaos", "families", "check", "docs-check", "bench",
        "dashboard", "clean"}
    assert [name for name, rest in targets if "## " not in rest] == []
    command = ["make", "--no-print-directory", "help"]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for name, rest in targets:
        line = next(line for line in printed.stdout.splitlines() if line.split()[:2] == ["make", name])
        assert rest.split("## ")[1] in line


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=name_of)
def test_every_config_file_is_commented(path: Path):
    """Beside Hydra's own `# @package`, a comment: a header that says what this option is, or one at each key."""
    comments = [
        line for line in path.read_text().splitlines() if re.search(r"(^|\s)# ", line) and "# @package" not in line
    ]
    assert comments, f"{name_of(path)} says nothing about itself"


def test_what_conf_says_of_stages_is_of_stages_that_are_there():
    stages = {p.stem for p in (ROOT / "pipeline" / "stages").glob("*.py")} - {"__init__"}
    assert set(yaml.safe_load((ROOT / "conf" / "stages.yaml").read_text())) <= stages


def test_conf_stays_small():
    """A file stands where it differs from a dataclass's defaults, brings companions, or explains."""
    files = [path for path in (ROOT / "conf").rglob("*.yaml") if path.parent.name not in ("published", "reproduce")]
    assert len(files) <= MOST_YAML
