"""bestrun show: what one run was."""

import click

from ..terminal import say_json, say_lines
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_records,
    json_option,
    lookup_options,
)


@click.command(short_help="What a run was, how it went, where everything is.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
@lookup_options
@json_option
def show(run: str, as_json: bool, **where: str | None) -> None:
    """What a run was, how it went, why it stopped, where everything is."""
    from ..results import show as told

    (record,) = find_records((run,), **where)
    if as_json:
        say_json(told.as_json(record))
    else:
        say_lines(told.lines(record))
