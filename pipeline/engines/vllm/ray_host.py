"""The process that holds a run's Ray actors: `python -m pipeline.engines.vllm.ray_host JOB`, JOB being JSON text.

It writes the servers' addresses to the job's `urls` file once all serve, and stays: Ray ends the actors when it goes,
and their servers' keepers end the servers when the actors go. The run's key comes through the environment.
"""

import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import build
from pipeline.engines.vllm import service as vllm_service
from pipeline.engines.vllm.ray import Settings, actor_log

_WATCH_SECONDS = 5.0


class Replica:
    """A Ray actor: one engine on the node it landed on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Any = None

    def node(self) -> str:
        return str(_ray().get_runtime_context().get_node_id())

    def serve(self, job: dict[str, Any], key: str, place: int, neighbours: int) -> str:
        """Start the server and return its address once it serves; `place` of `neighbours` on the same node."""
        settings = build(Settings, job["settings"])
        if settings.gpus_per_replica:  # Ray has set CUDA_VISIBLE_DEVICES for this actor alone
            place, neighbours = 0, 1
        log = actor_log(Path(job["log"]), self.number)
        url, self.process = vllm_service.start_one(Path(job["model"]), log, replace(settings, replicas=neighbours), key,
                                                   place, host=_ray().util.get_node_ip_address())
        service = vllm_service.Service((url,), key, (self.process,), log)
        service.wait_ready(settings.start_timeout)
        return url

    def alive(self) -> bool:
        return self.process.poll() is None


def main(job: dict[str, Any]) -> int:
    """Hold the actors until one is lost (exit code 1) or this process is told to end."""
    ray = _ray()
    settings: Settings = build(Settings, job["settings"])
    key = os.environ[vllm_service.KEY]
    local = {} if settings.address else {"num_cpus": max(settings.replicas * settings.cpus_per_replica, 1)}
    ray.init(address=settings.address, include_dashboard=False, log_to_driver=True, **local)
    kind = ray.remote(Replica).options(num_cpus=settings.cpus_per_replica, num_gpus=settings.gpus_per_replica,
                                       runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}})
    actors = [kind.remote(number) for number in range(settings.replicas)]
    nodes = ray.get([actor.node.remote() for actor in actors])
    urls = ray.get([
        actor.serve.remote(job, key, nodes[:number].count(nodes[number]), nodes.count(nodes[number]))
        for number, actor in enumerate(actors)])
    files.write_atomic(Path(job["urls"]), json.dumps(urls))
    while all(ray.get([actor.alive.remote() for actor in actors])):
        time.sleep(_WATCH_SECONDS)
    print("an engine ended and will not come back; its log says why", flush=True)
    return 1


def _ray() -> Any:
    """Ray, untyped: its decorators add methods that a type checker cannot see."""
    return importlib.import_module("ray")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
