"""bestrun resume: go on with a run."""

import click

from .completion import runs_here, settings
from .options import RUN_HELP, config_dir_option, finish, json_option, screen_for, tracking_option


@click.command(short_help="Go on with a run: same ID, same curve, same result.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here, required=False)
@click.argument("overrides", nargs=-1, shell_complete=settings)
@click.option(
    "--from-mlflow", is_flag=True, help="Go on from what MLflow has; the folder on this machine is set aside."
)
@tracking_option
@config_dir_option
@json_option
def resume(
    run: str | None, overrides: tuple[str, ...], from_mlflow: bool, tracking_uri: str | None, as_json: bool
) -> None:
    """Go on with a run: the same run ID, the same curve, the very same result.

    Without RUN: the latest interrupted one. A finished run is trained further with a later end:

    \b
    bestrun resume RUN training.max_steps=20000
    """
    from ..run.resume import choose
    from ..run.resume import resume as go_on
    from ..settings.compose import as_typed, read_config
    from ..tracking.store import find_place

    words = [run, *overrides] if run else []
    if run and "=" in run:  # no RUN, settings only
        run = None
    overrides = tuple(words[1:] if run else words)
    place = find_place(tracking_uri, writes=True)
    folder = choose(place, run, from_mlflow=from_mlflow)
    if tracking_uri:
        overrides = (*overrides, as_typed("tracking.uri", tracking_uri))
    screen = screen_for(read_config(folder.config), as_json)
    finish(go_on(folder, overrides, home=place.home, screen=screen), as_json)
