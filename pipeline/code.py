"""Python in an answer: the last ```python block of it, and the tests that it ends with."""

import ast
import re

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(text: str) -> str:
    """The last block of an answer, else the whole of it."""
    found: list[str] = _FENCED.findall(text)
    return found[-1] if found else text


def code_and_tests(text: str) -> tuple[str, str]:
    """(code, tests) of an answer: its tests are the `assert` statements that stand outside of functions, everything
    else is code. Tests are "" where there is none, and where the code cannot be parsed.
    """
    source = code_of(text)
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source, ""
    lines = source.split("\n")
    tests = [s for s in statements if isinstance(s, ast.Assert)]
    taken = {number for s in tests for number in range(s.lineno, (s.end_lineno or s.lineno) + 1)}
    code = "\n".join(line for number, line in enumerate(lines, 1) if number not in taken)
    return code.strip("\n"), "\n".join(map(ast.unparse, tests))
