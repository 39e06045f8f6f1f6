"""The benchmark's agents in a worker that others may watch: named by DRANGUE_AGENTS in place of `agents`."""

from drangue_worker.bench.agents import bench, waiting
from drangue_worker.bench.profiling import let_be_watched

__all__ = ["bench", "waiting"]

let_be_watched()
