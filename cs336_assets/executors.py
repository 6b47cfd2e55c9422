"""What runs the steps of a run: processes of this machine, or jobs of a Ray cluster."""

from __future__ import annotations

import dagster as dg

from cs336.files import UserError
from cs336_assets.resources import Runtime

MAX_STEPS = 2  # of one run at a time: a laptop's memory, not its cores, is what runs out
# What steps elsewhere must know; the rest is each node's own, such as where its artifacts lie.
FORWARDED = ("CS336_PRESET", "CS336_STORAGE", "CS336_WORKERS")


def executor_of(runtime: Runtime) -> dg.ExecutorDefinition:
    """The executor that the environment chose.

    On Ray each step is a job, and takes as many of its node's processors as it has workers. Where the cluster is, Ray
    finds out: `RAY_ADDRESS`, else this machine's.

    Raises:
        UserError: there is no such executor, its packages are missing, or nothing says how many workers a step has.
    """
    if runtime.executor == "multiprocess":
        return dg.multiprocess_executor.configured({"max_concurrent": MAX_STEPS})
    if runtime.executor != "ray":
        raise UserError(f"CS336_EXECUTOR is {runtime.executor!r}; choose multiprocess or ray")
    try:
        from dagster_ray import ray_executor
    except ImportError as error:
        raise UserError(f"CS336_EXECUTOR=ray: {error}; `pip install -e '.[ray]'`") from None
    if not runtime.num_workers:
        raise UserError("CS336_EXECUTOR=ray needs CS336_WORKERS: the cores that each step holds, and its processes")
    return ray_executor.configured({"ray": {"num_cpus": runtime.num_workers, "env_vars": list(FORWARDED)}})
