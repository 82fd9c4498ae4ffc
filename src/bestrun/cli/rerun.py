"""bestrun rerun: the same settings anew."""

import click

from .completion import runs_here, settings
from .options import (
    RUN_HELP,
    find_records,
    finish,
    json_option,
    lookup_options,
    screen_for,
)


@click.command(short_help="Train with a past run's settings anew.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
@click.argument("overrides", nargs=-1, shell_complete=settings)
@click.option("--allow-other-data", is_flag=True, help="Train although the data is not what that run was trained with.")
@lookup_options
@json_option
def rerun(run: str, overrides: tuple[str, ...], allow_other_data: bool, as_json: bool, **where: str | None) -> None:
    """The same settings as a new run; says first what differs: code, data, versions.

    \b
    bestrun rerun RUN                  on the same machine and code: the same result, bit by bit
    bestrun rerun RUN seed=1           with other settings
    """
    from ..run.rerun import rerun as again
    from ..storage.home import find_home

    home = find_home(writes=True)
    (record,) = find_records((run,), **where)
    screen = screen_for(record.config, as_json)
    finish(again(record, overrides, home=home, screen=screen, allow_other_data=allow_other_data), as_json)
