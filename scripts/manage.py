#!/usr/bin/env python3
"""The operator's commands from a checkout, with any Python: goes on under `.venv`, finds a stack that runs here.

scripts/manage.py runs
scripts/manage.py approvals
scripts/manage.py approve RUN
"""

import bootstrap

bootstrap.go_on_inside("")

import click  # noqa: E402 - only installed inside

from drangue_client.console.commands import COMMANDS  # noqa: E402
from drangue_client.console.shell import run_main  # noqa: E402

run_main(click.Group("manage", commands=COMMANDS, help=__doc__.splitlines()[0]), places=[bootstrap.ROOT])
