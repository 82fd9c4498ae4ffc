"""bestrun train: one run, or with -m a sweep."""

import sys
from typing import NoReturn

import click

from ..terminal import say, say_json
from .completion import settings
from .options import config_dir_option, finish, json_option, screen_for


@click.command(
    short_help="Train one run, or with -m a sweep.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("overrides", nargs=-1, shell_complete=settings, type=click.UNPROCESSED)
@click.option("-m", "--multirun", is_flag=True, help="A sweep: settings may have several values, see below.")
@click.option("-h", "--help", "wants_help", is_flag=True, help="Every setting, with its default and reason.")
@click.option("--cfg", type=click.Choice(["job"]), help="Print the settings that would be used, as YAML, and stop.")
@config_dir_option
@click.option("--schema", "wants_schema", is_flag=True, help="Print the JSON schema of conf/'s files, for editors.")
@json_option
def train(
    overrides: tuple[str, ...], multirun: bool, wants_help: bool, cfg: str | None, wants_schema: bool, as_json: bool
) -> None:
    """Train: evaluate every N steps, keep the best, stop when nothing improves.

    OVERRIDES are settings as NAME=VALUE, and choices as GROUP=OPTION. With -m they may have several values:

    \b
    bestrun train -m optimizer.learning_rate=1e-4,1e-3      every combination, a trial each
    bestrun train -m sweep=study sweep.name=night1          Optuna chooses and prunes; the same line goes on
    bestrun train -m sweep=seeds                            one configuration, five seeds
    """
    from ..settings.compose import compose, settings_help
    from ..settings.config import to_yaml

    if wants_help:
        say(click.get_current_context().get_help())
        say()
        say(settings_help())
        return
    if wants_schema:
        from ..settings.schema import schema
        from ..sweep.space import SweepSettings

        say_json(schema(SweepSettings))
        return
    if multirun:
        _sweep(overrides, cfg, as_json)
    composed = compose(list(overrides))
    if cfg:
        say(to_yaml(composed.config).removesuffix("\n"))
        return
    from ..run.start import start
    from ..storage.home import find_home

    home, config = find_home(writes=True), composed.config
    result = start(composed, home=home, screen=screen_for(config, as_json))
    finish(result, as_json)


def _sweep(overrides: tuple[str, ...], cfg: str | None, as_json: bool) -> NoReturn:
    import yaml

    from ..formatting import mask_uri
    from ..storage.home import find_home
    from ..sweep.space import plan

    if cfg:
        planned = plan(overrides)
        described = planned.says() | {"overrides": list(map(mask_uri, planned.base)), "trials": planned.points}
        say(yaml.safe_dump(described, sort_keys=False).removesuffix("\n"))
        sys.exit(0)
    from ..sweep.scheduler import run_sweep

    outcome = run_sweep(overrides, home=find_home(writes=True), stderr=as_json)
    if as_json:
        say_json(outcome.summary)
    sys.exit(outcome.exit_code)
