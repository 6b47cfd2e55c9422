"""A job of the scaling contest as a Dagster run: `python -m cs336_assets.contest_run FOLDER`.

The worker is the service's own (`cs336.service.worker`), so queue, charges, losses and life cycle are the same. Here it
works inside a run of Dagster's, which stands in the UI under Runs, with its configuration, its losses and how it ended.
"""

# No `from __future__ import annotations` here: Dagster reads the types of `context` and `config`.
import os
import sys
from pathlib import Path

import dagster as dg

from cs336.files import UserError, read_json
from cs336.service import worker
from cs336.service.pool import LocalPool
from cs336.service.worker import FINISH_FILE, JOB_FILE
from cs336_assets.commands import PROCESS_TAG, close_dead_runs, process_mark, use_project_home
from cs336_assets.crawl import page_table

JOB = "scaling_contest"
EXPERIMENT_TAG, RUN_TAG = "cs336/experiment", "cs336/run"


class DagsterPool(LocalPool):
    """Workers of this machine, each a run of Dagster's."""

    worker_module = "cs336_assets.contest_run"


class JobFolder(dg.Config):
    """Where the service has put a run's job."""

    folder: str


@dg.op(out=dg.Out(dg.Nothing))
def train(context: dg.OpExecutionContext, config: JobFolder) -> None:
    """Train the job in a run's folder; the service hears of each loss, and the run's log of all at the end."""
    folder = Path(config.folder)
    job = read_json(folder / JOB_FILE)
    context.log.info(f"experiment {job['experiment_id']} on {job['device']}: {job['config']}")
    worker.run(folder)
    try:
        finish = read_json(folder / FINISH_FILE)
    except UserError:
        raise dg.Failure("preempted, or trained by another process: this run has no end of its own") from None
    losses = [[number, loss] for number, loss in enumerate(finish["val_losses"], 1)]
    metadata = {
        "used_seconds": finish["used_seconds"],
        "val_losses": dg.MetadataValue.md(page_table(["chunk", "validation loss, nats per token"], losses)),
    }
    if finish["failure"]:
        raise dg.Failure(f"{finish['failure']}: {finish['error']}", metadata=metadata, allow_retries=False)
    context.add_output_metadata(metadata)


@dg.job(name=JOB, description="One job of a scaling contest, started by `cs336 serve scaling --pool dagster`.")
def scaling_contest() -> None:
    """The whole run is one step: the service's scheduler decides what runs when."""
    train()


def main(folder: Path) -> int:
    """Train the job of a run's folder in a run of Dagster's; returns the exit status."""
    use_project_home()
    job = read_json(folder / JOB_FILE)
    tags = {EXPERIMENT_TAG: str(job["experiment_id"]), RUN_TAG: job["run_id"]}
    with dg.DagsterInstance.get() as instance:
        close_dead_runs(instance)  # of workers that were killed
        result = scaling_contest.execute_in_process(
            run_config={"ops": {"train": {"config": {"folder": str(folder)}}}},
            instance=instance,
            tags=tags | {PROCESS_TAG: process_mark(os.getpid()) or ""},
            raise_on_error=False,
        )
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
