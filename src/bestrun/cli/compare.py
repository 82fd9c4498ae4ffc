"""bestrun compare: runs side by side."""

import click

from ..terminal import say_json, say_lines
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_records,
    json_option,
    lookup_options,
)


@click.command(short_help="Runs side by side: what differs, and which is better.", epilog=RUN_HELP)
@click.argument("runs", shell_complete=runs_here, metavar="RUN RUN...", nargs=-1, required=True)
@lookup_options
@json_option
def compare(runs: tuple[str, ...], as_json: bool, **where: str | None) -> None:
    """Runs side by side: their best, the settings that differ, code, data, versions, and who confuses what."""
    from ..results import compare as compared

    records = find_records(runs, **where)
    found = compared.comparison(records)
    if as_json:
        say_json(found)
    else:
        say_lines(compared.lines(records, found))
