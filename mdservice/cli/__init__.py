"""The command line: ``mdservice``, also ``python -m mdservice``.

Importing it must stay cheap, since every ``mdservice health`` of a container pays for it:
each command imports what it needs when it runs.
"""

from __future__ import annotations

from mdservice.cli.asking import health, status, subscribe, unsubscribe
from mdservice.cli.check import check
from mdservice.cli.gateway import gateway
from mdservice.cli.group import cli
from mdservice.cli.run import run
from mdservice.cli.simulate import simulate
from mdservice.cli.watch import watch

__all__ = ["cli", "main"]

for _command in (run, health, status, subscribe, unsubscribe, watch, check, simulate, gateway):
    cli.add_command(_command)


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its code."""
    cli(prog_name="mdservice")
