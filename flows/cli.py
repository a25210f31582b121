"""The `align` command. Planning and printing import neither torch nor prefect.

Exit code 0 done, 1 a stage failed, 2 your input is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from pipeline.errors import UserError

_HELP = """\
align run      recipe=pco [run=NAME] [group=option] [key=value]   run, or go on: the same command resumes
align plan     recipe=pco ...           the steps, what is cached, what must run, and an estimate
align stage    STEP run=NAME [key=value] [--force]   rerun one step, with changed settings if given
align status   [NAME]                   table of the runs, or of one run's steps
align explain  STEP run=NAME            why a step is stale or was rebuilt, field by field
align compare  NAME NAME ...            iterations of several runs; seeds of one setting as mean and deviation
align verify   [NAME]                   check every hash of every artifact
align gc       [--apply]                what no run needs any more; --apply removes it
align options  [GROUP[=OPTION]]         groups, a group's options, an option's settings with range, default and source
align doctor                            versions, devices, disk and memory, what is missing
align dashboard [--host H] [--port P]   the runs in the browser: one page over this workspace, live
align report   NAME [--html]            a run's report; --html writes it as one self-contained page
align server   up|down|status           Prefect's own web page over the runs of this workspace

groups: recipe model data objective negatives selection filters reward engine sampling trainer evaluation gate
        hardware tracking
every key of the configuration can be set: align run recipe=pco objective.alpha=0.02 trainer.sft.lr=3e-4 seed=1
exit code: 0 done, 1 a stage failed, 2 your input is wrong, 130 interrupted"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="align", description=_HELP, formatter_class=argparse.RawTextHelpFormatter,
                                     usage="align COMMAND [options]")
    commands = parser.add_subparsers(dest="command", metavar="")
    for name, add in _COMMANDS.items():
        add(commands.add_parser(name, help=argparse.SUPPRESS))
    options, later = parser.parse_known_args(arguments)  # words may also follow an option: stage X --force run=Y
    if any(word.startswith("-") for word in later):
        parser.error(f"unknown option {' '.join(w for w in later if w.startswith('-'))}")
    if options.command is None:
        print(_HELP)
        return 0
    for name in ("overrides", "words"):
        if hasattr(options, name):
            getattr(options, name).extend(later)
    from flows import screen

    try:
        return int(options.act(options))
    except UserError as error:
        screen.problems(error.problems)
        return 2
    except KeyboardInterrupt:
        return 130
    except PermissionError as error:
        screen.problems([f"{error.filename}: {error.strerror}; give a folder you may write: workspace=FOLDER"])
        return 2
    except BrokenPipeError:  # `align status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        screen.problems([f"{error.filename or 'disk'}: {error.strerror or error}"])
        return 1


def _run(parser: argparse.ArgumentParser) -> None:
    _overrides(parser)

    def act(options: argparse.Namespace) -> int:
        from flows.command import run

        return run(options.overrides)

    parser.set_defaults(act=act)


def _plan(parser: argparse.ArgumentParser) -> None:
    _overrides(parser)

    def act(options: argparse.Namespace) -> int:
        from flows.command import show_plan

        return show_plan(options.overrides)

    parser.set_defaults(act=act)


def _stage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", help="such as train[2]")
    _overrides(parser)
    parser.add_argument("--force", action="store_true", help="compute it again even if nothing changed")

    def act(options: argparse.Namespace) -> int:
        from flows.command import run_stage

        return run_stage(options.step, options.overrides, options.force)

    parser.set_defaults(act=act)


def _status(parser: argparse.ArgumentParser) -> None:
    _name(parser)

    def act(options: argparse.Namespace) -> int:
        from flows import inspecting

        return inspecting.status(*_workspace_and_name(options))

    parser.set_defaults(act=act)


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", help="such as train[2]")
    _overrides(parser)

    def act(options: argparse.Namespace) -> int:
        from flows.explaining import explain

        return explain(options.step, options.overrides)

    parser.set_defaults(act=act)


def _verify(parser: argparse.ArgumentParser) -> None:
    _name(parser)

    def act(options: argparse.Namespace) -> int:
        from flows import inspecting

        return inspecting.verify(*_workspace_and_name(options))

    parser.set_defaults(act=act)


def _gc(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument("--apply", action="store_true", help="remove it")

    def act(options: argparse.Namespace) -> int:
        from flows import inspecting

        return inspecting.collect(_workspace_and_name(options)[0], options.apply)

    parser.set_defaults(act=act)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="GROUP[=OPTION]")

    def act(options: argparse.Namespace) -> int:
        from flows.options import show

        return show(options.words)

    parser.set_defaults(act=act)


def _doctor(parser: argparse.ArgumentParser) -> None:
    _name(parser)

    def act(options: argparse.Namespace) -> int:
        from flows.doctor import doctor

        return doctor(_workspace_and_name(options)[0])

    parser.set_defaults(act=act)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="RUN", help="those that differ in the seed alone become one line")

    def act(options: argparse.Namespace) -> int:
        from flows.comparing import compare

        return compare(options.words)

    parser.set_defaults(act=act)


def _server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--port", type=int, default=4271)
    _name(parser)

    def act(options: argparse.Namespace) -> int:
        from flows.server import server

        return server(options.action, options.port, _workspace_and_name(options)[0])

    parser.set_defaults(act=act)


def _dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="anything but loopback makes the page ask for a token")
    parser.add_argument("--port", type=int)
    _name(parser)

    def act(options: argparse.Namespace) -> int:
        from flows.dashboard.serve import dashboard

        return dashboard(_workspace_and_name(options)[0], options.host, options.port)

    parser.set_defaults(act=act)


def _report(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument("--html", action="store_true", help="write one page with everything in it")

    def act(options: argparse.Namespace) -> int:
        from flows.dashboard.report import report

        return report(*_workspace_and_name(options), options.html)

    parser.set_defaults(act=act)


_COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "run": _run, "plan": _plan, "stage": _stage, "status": _status, "explain": _explain, "verify": _verify, "gc": _gc,
    "doctor": _doctor, "options": _options, "compare": _compare, "dashboard": _dashboard, "report": _report,
    "server": _server,
}


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[NAME] [workspace=FOLDER]")


def _workspace_and_name(options: argparse.Namespace) -> tuple[str, str | None]:
    """The words after a command: a run's name (bare or run=NAME) and workspace=FOLDER."""
    workspace, name, problems = "workspace", None, []
    for word in options.words:
        key, equals, value = word.partition("=")
        if equals and key == "workspace":
            workspace = value
        elif not equals or key == "run":
            name = value if equals else word
        else:
            problems.append(f"{word}: unknown here, expected a run's name or workspace=FOLDER")
    if problems:
        raise UserError(*problems)
    return workspace, name


if __name__ == "__main__":
    sys.exit(main())
