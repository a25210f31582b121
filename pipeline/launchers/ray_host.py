"""The process that holds a step's tasks on Ray: `python -m pipeline.launchers.ray_host JOB`, JOB being JSON text.

The environment of the step comes through standard input. Ray ends the tasks when this process goes.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
from typing import Any

from pipeline import supervisor
from pipeline.launchers.ray import NODE
from pipeline.worker import RENDEZVOUS


def run(words: list[str], environment: dict[str, str], log: str) -> int:
    """On a node: the step's command, until it ends."""
    with open(log, "ab") as file:
        return subprocess.run(words, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file,
                              stderr=file).returncode


def meeting() -> str:
    """On the first node: where the processes of a training over several nodes meet."""
    host = importlib.import_module("ray").util.get_node_ip_address()
    with socket.create_server((host, 0)) as free:
        return f"{host}:{free.getsockname()[1]}"


def main(job: dict[str, Any]) -> int:
    ray: Any = importlib.import_module("ray")  # untyped: its decorators add methods that a type checker cannot see
    groups: Any = importlib.import_module("ray.util.scheduling_strategies")
    environment, wanted, nodes = json.loads(sys.stdin.readline()), job["bundle"], job["nodes"]
    ray.init(address=job["address"], log_to_driver=False, logging_level="warning")
    there = ray.cluster_resources()
    if lacking := [f"{there.get(name, 0):g} {name}, the step asks for {nodes} x {number:g}"
                   for name, number in wanted.items() if nodes * number > there.get(name, 0)]:
        print(f"the cluster has {'; '.join(lacking)} (launcher.train, sample, model, data)", file=sys.stderr)
        return 3
    group = ray.util.placement_group([wanted] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "PACK")
    ray.get(group.ready())

    def on(number: int, function: Any) -> Any:
        own = {name: value for name, value in wanted.items() if name not in ("CPU", "GPU", "memory")}
        place = groups.PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        return ray.remote(function).options(
            num_cpus=wanted.get("CPU", 0), num_gpus=wanted.get("GPU", 0), memory=wanted.get("memory"), resources=own,
            max_retries=0, scheduling_strategy=place, runtime_env={"env_vars": supervisor.imports()})

    environment = {**environment, RENDEZVOUS: ray.get(on(0, meeting).remote())} if nodes > 1 else environment
    tasks = [on(number, run).remote(job["words"], {**environment, NODE: str(number)}, job["log"])
             for number in range(nodes)]
    try:
        return max(ray.get(tasks))
    except ray.exceptions.RayError as error:
        print(f"Ray lost the step: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
