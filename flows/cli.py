"""The `align` command: which function each word stands for. Nothing here imports torch or prefect.

Exit code 0 done, 1 a stage failed, 2 your input is wrong, 130 interrupted, 143 told to end (SIGTERM, SIGHUP).
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError, command, nearest

_EPILOG = """\
groups: recipe model data objective auxiliary negatives selection filters
        reward engine sampling trainer evaluation replay gate hardware
        launcher tracking notify published
every key of the configuration can be set:
        align run recipe=pco objective.alpha=0.02 trainer.sft.lr=3e-4 seed=1
exit code: 0 done, 1 a stage failed, 2 your input is wrong, 130 interrupted, 143 told to end"""


_JOB = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: list[str] | None = None) -> int:
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    try:
        return _call(name, words)
    except KeyboardInterrupt:  # while it is imported, too
        return 130


def _call(name: str, words: list[str]) -> int:
    from flows import screen

    try:
        if name not in _COMMANDS:
            raise UserError(f"{name}: no such command{nearest(name, _COMMANDS)}; align --help lists them")
        reach_this_machine_directly()
        leave_another_job()
        return _COMMANDS[name].call(name, words)
    except UserError as error:
        screen.problems(error.problems)
        return 2
    except PermissionError as error:
        screen.problems([f"{error.filename}: {error.strerror}; give a folder you may write: workspace=FOLDER"])
        return 2
    except BrokenPipeError:  # `align status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = next((word.partition("=")[2] for word in words if word.startswith("workspace=")), "workspace")
        way = f"; make room, this removes what no run needs:{command(place, 'gc', '--apply')}"
        way = way if error.errno == errno.ENOSPC else ""
        screen.problems([f"{error.filename or 'disk'}: {error.strerror or error}{way}"])
        return 1


def reach_this_machine_directly() -> None:
    """Requests to this machine's own servers pass by a proxy of the environment, here and in every child process."""
    given = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = dict.fromkeys([*(host.strip() for host in given.split(",") if host.strip()), "127.0.0.1", "localhost"])
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*" if "*" in hosts else ",".join(hosts)


def leave_another_job() -> None:
    """What a job around this process says of ranks is not of the processes that a run starts."""
    for name in [*_JOB, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)


@dataclass(frozen=True)
class Command:
    """One word after `align`. `arguments` turns the words behind it into what the function takes before its options."""

    function: str  # "module:name", imported when the command is given
    arguments: Callable[[list[str]], tuple[Any, ...]]
    usage: str
    help: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # of argparse's add_argument

    def call(self, name: str, words: list[str]) -> int:
        parser = argparse.ArgumentParser(prog=f"align {name}", usage=f"align {name} {self.usage}",
                                         description=self.help)
        parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        for option, facts in self.options.items():
            parser.add_argument(option, **facts)
        given = vars(parser.parse_intermixed_args(words))  # words may also follow an option: stage X --force run=Y
        arguments = self.arguments(given.pop("words"))
        module, _, function = self.function.partition(":")
        return int(getattr(importlib.import_module(module), function)(*arguments, **given))


def _help() -> str:
    lines = ["usage: align COMMAND ...", ""]
    for name, known in _COMMANDS.items():
        start = f"  {name:<10}{known.usage}"
        lines += [f"{start:<38}{known.help}"] if len(start) < 38 else [start, f"{'':<38}{known.help}"]
    return "\n".join([*lines, "", _EPILOG])


def _overrides(words: list[str]) -> tuple[list[str]]:
    return (words,)


def _step(words: list[str]) -> tuple[str, list[str]]:
    if not words or "=" in words[0]:
        raise UserError("STEP: missing, say which one, such as train[2]; align status NAME lists them")
    return words[0], words[1:]


def _place(words: list[str]) -> tuple[str]:
    return (_place_and_name(words)[0],)


def _place_and_name(words: list[str]) -> tuple[str, str | None]:
    """A run's name (bare or run=NAME) and workspace=FOLDER."""
    workspace, name, problems = "workspace", None, []
    for word in words:
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


def _model(words: list[str]) -> tuple[str, str, str | None]:
    """workspace=FOLDER, a run's name (or a model's folder), and the step that is meant."""
    bare = [word for word in words if "=" not in word]
    workspace, named = _place_and_name([word for word in words if "=" in word])
    bare = bare if named is None else [named, *bare]
    if not bare:
        raise UserError("RUN: missing, say which run, or for its model a model's folder; align status lists the runs")
    if len(bare) > 2:
        raise UserError(f"{bare[2]}: unknown here, expected RUN [STEP]")
    return workspace, bare[0], bare[1] if len(bare) == 2 else None


def _all_models(words: list[str]) -> tuple[str, str]:
    workspace, name, step = _model(words)
    if step is not None:
        raise UserError(f"{step}: unknown here, every model of the run answers; align chat {name} {step} talks to one")
    return workspace, name


def _look(words: list[str]) -> tuple[str, list[str]]:
    """show or check, and whose data: a file, a folder or a data set of the hub by itself, else the words of a run; or
    build, and what (flows/data_build.py).
    """
    if not words or words[0] not in ("show", "check", "build"):
        raise UserError("data: say what to do, show, check or build: align data show PATH")
    if words[0] == "build":
        return "build", words[1:]
    place = [f"data.root={word}" for word in words[1:] if "=" not in word]
    return words[0], [*(["data=files"] if place else []), *place, *(word for word in words[1:] if "=" in word)]


def _action(words: list[str]) -> tuple[str, str]:
    known = ("up", "down", "status")
    if not words or words[0] not in known:
        raise UserError(f"server: say what to do, one of {', '.join(known)}")
    return words[0], *_place(words[1:])


_SAMPLING: dict[str, dict[str, Any]] = {
    "--max-tokens": {"type": int, "default": 256, "help": "of an answer (256)"},
    "--temperature": {"type": float, "default": 0.0, "help": "0, the default: always the most probable token"},
    "--seed": {"type": int, "default": 0, "help": "of the samples, where the temperature is above 0"},
}
_COMMANDS = {
    "run": Command("flows.command:run", _overrides, "recipe=NAME [run=NAME] [group=option] [key=value]",
                   "run, or go on: the same command resumes"),
    "plan": Command("flows.command:show_plan", _overrides, "recipe=NAME ...", "steps, what is cached, an estimate"),
    "data": Command("flows.data:data", _look, "show|check PATH [--rows N] | build NAME PATH",
                    "a look at the data; every row's tokens; pairs made of others",
                    {"--rows": {"type": int, "default": 1, "help": "examples of each split (1)"}}),
    "stage": Command("flows.command:run_stage", _step, "STEP run=NAME [key=value] [--force]",
                     "rerun one step, with changed settings",
                     {"--force": {"action": "store_true", "help": "compute it again even if nothing changed"}}),
    "sweep": Command("flows.sweep:sweep", _overrides, "recipe=NAME KEY=A,B seed=0,1,2 ...",
                     "a run for each combination of values, over one store",
                     {"--plan": {"action": "store_true", "dest": "only_plan", "help": "what they share and cost"}}),
    "reproduce": Command("flows.reproduce:reproduce", _overrides, "NAME [--quick] [--plan] [--to FILE]",
                         "a paper's table in miniature, with its claims decided",
                         {"--quick": {"action": "store_true", "help": "one seed"},
                          "--plan": {"action": "store_true", "dest": "only_plan", "help": "what it takes; then stop"},
                          "--to": {"metavar": "FILE", "help": "a Markdown file whose section NAME is written anew"}}),
    "deploy": Command("flows.deploy:deploy", _overrides, "recipe=NAME ... [--cron WHEN] [--pool P] [--name N]",
                      "a run as a deployment of Prefect's: on a schedule, on a worker elsewhere",
                      {"--name": {"help": "of the deployment (the run's)"},
                       "--pool": {"default": "alignloop", "help": "the work pool, made if there is none (alignloop)"},
                       "--cron": {"metavar": "WHEN", "help": "'0 6 * * 1': Mondays at six"},
                       "--timezone": {"metavar": "ZONE", "help": "of --cron, such as Europe/Berlin (UTC)"}}),
    "status": Command("flows.inspection:status", _place_and_name, "[NAME]", "the runs, or one run's steps"),
    "logs": Command("flows.watching:logs", _model, "RUN [STEP] [-f]", "what a step has printed; -f: go on as it does",
                    {"-f": {"action": "store_true", "dest": "follow", "help": "go on until the run ends"}}),
    "stop": Command("flows.watching:stop", _place_and_name, "RUN | --engine", "end a run; it can be resumed",
                    {"--engine": {"action": "store_true", "help": "end the engine that waits for the next run"}}),
    "explain": Command("flows.inspection:explain", _step, "STEP run=NAME", "why a step is stale or was rebuilt"),
    "compare": Command("flows.comparison:compare", _overrides, "RUN RUN ... | sweep=NAME [--to FILE]",
                       "runs side by side: rates over seeds, paired tests",
                       {"--to": {"metavar": "FILE", "help": "write it as well: .csv, .md or .tex"}}),
    "verify": Command("flows.inspection:verify", _place_and_name, "[NAME]", "check every hash of every artifact"),
    "gc": Command("flows.inspection:collect", _place, "[--apply]", "what no run needs any more; or remove it",
                  {"--apply": {"action": "store_true", "help": "remove it"}}),
    "options": Command("flows.options:show", _overrides, "[GROUP[=OPTION] | stage.NAME]",
                       "groups, options, settings with ranges"),
    "doctor": Command("flows.doctor:doctor", _overrides, "[--cluster launcher=NAME ...]",
                      "versions, devices, room, what is missing; of a launcher's nodes",
                      {"--cluster": {"action": "store_true", "help": "what the nodes see, through the launcher"},
                       "--nodes": {"type": int, "default": 1, "help": "that are asked at once: slurm, ray (1)"}}),
    "dashboard": Command("flows.dashboard.serve:dashboard", _place, "[--host H] [--port P]",
                         "the runs in the browser, live",
                         {"--host": {"default": "127.0.0.1",
                                     "help": "anything but loopback makes the page ask for a token"},
                          "--port": {"type": int}}),
    "label": Command("flows.dashboard.serve:label", _model, "RUN [STEP]",
                     "judge two policies' answers by hand, in the browser",
                     {"--host": {"default": "127.0.0.1", "help": "as of dashboard"}, "--port": {"type": int}}),
    "report": Command("flows.dashboard.report:report", _place_and_name, "NAME [--html] [--timeline]",
                      "a run's report, also as one page, or where its time went",
                      {"--html": {"action": "store_true", "help": "write one page with everything in it"},
                       "--timeline": {"action": "store_true", "help": "seconds of each step, by what they went to"}}),
    "chat": Command("flows.chat:chat", _model, "RUN|DIR [STEP] [--iteration K]", "talk to a run's model, or a folder's",
                    {"--iteration": {"type": int, "help": "the last model of that iteration; default: the last of all"},
                     **_SAMPLING}),
    "sample": Command("flows.sample:sample", _all_models, "RUN|DIR --prompts FILE",
                      "what the start, the SFT model and every iteration answer",
                      {"--prompts": {"metavar": "FILE", "help": "a prompt a line, or .jsonl; - for standard input"},
                       "--json": {"action": "store_true", "dest": "as_json", "help": "as one JSON list"},
                       **_SAMPLING}),
    "export": Command("flows.publish:export", _model, "RUN [STEP] --to DIR",
                      "a step's model as a plain folder with a model card",
                      {"--to": {"metavar": "DIR", "help": "the folder to write"},
                       "--adapter": {"action": "store_true", "help": "the adapter alone, where the step trained one"},
                       "--dtype": {"choices": ("float32", "bfloat16"), "help": "of the weights; default: as they are"},
                       "--hub": {"metavar": "NAME", "help": "send it to the Hugging Face hub, as a private model"}}),
    "server": Command("flows.prefect_side:server", _action, "up|down|status [--port P]",
                      "Prefect's own web page over the runs", {"--port": {"type": int, "default": 4271}}),
}


if __name__ == "__main__":
    sys.exit(main())
