"""Flower's configuration: `celery --app=drangue_worker flower --conf=ops/flower/flowerconfig.py`.

Flower shows a fleet to people; it changes nothing and keeps nothing. Prompts, arguments and results never reach it,
since messages carry ids alone and tasks return nothing; what could still be shown of them one day is left out here.
FLOWER_USER and FLOWER_PASSWORD must be set. /metrics and /healthcheck are open: they name tasks and workers.
"""

import os


def _required(name):
    value = os.environ.get(name, "")
    if not value:
        raise SystemExit(f"Flower: {name} is not set. Set it: nobody should see the fleet without a password.")
    return value


# The only door. Flower listens beyond loopback in a container; put TLS in front of it where it leaves the machine.
basic_auth = [f"{_required('FLOWER_USER')}:{_required('FLOWER_PASSWORD')}"]

# No revoke, no shutdown, no new task: what ends a run is `drangue cancel`, which is recorded with a name.
read_only = True

# Each deploy brings new names; the old ones would stay in the list and in the metrics for ever.
purge_offline_workers = 60

# The history is in Postgres. A file of Flower's is a pickle, and whoever can write it runs code here.
persistent = False
max_tasks = 10_000

# A run is found by its id, with which a task's uuid begins.
tasks_columns = "name,uuid,state,received,started,runtime,retries,worker"
natural_time = True

# Model calls take seconds to minutes; Flower's own buckets end at ten seconds.
task_runtime_metric_buckets = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]


def format_task(task):
    """What is shown of a task: who did what when, and the kind of an error. Neither arguments nor results."""
    for name in ("args", "kwargs", "result", "traceback"):
        setattr(task, name, None)
    return task


# Of an error in a page the text alone, without the state of the program.
debug = False
