"""`eamsim trace`: the integers at every tap, recorded, compared and exported."""

import typer

from eamsim.cli.trace.diff import diff
from eamsim.cli.trace.export import export
from eamsim.cli.trace.record import inspect, record

app = typer.Typer(
    help="The integers at every tap: for simulators, for comparison.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
COMMANDS = {"record": record, "inspect": inspect, "diff": diff, "export": export}
for name, command in COMMANDS.items():
    app.command(name)(command)
