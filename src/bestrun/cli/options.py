"""What the verbs of the command share: options, and the way from a RUN to what it means."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from ..environment import CONFIG_DIR
from ..errors import SettingsError
from ..metrics import objectives
from ..terminal import one_line, say_json
from .completion import sweeps_here

RUN_HELP = """
\b
RUN is a run ID (or 8 and more of its first characters), a run name, `latest`, `best`
(the best finished run by its objective), or NAME@ALIAS of a registered model.
"""

tracking_option = click.option(
    "--tracking-uri", metavar="URI", help="Where MLflow is; else MLFLOW_TRACKING_URI, else SQLite in mlruns/."
)
experiment_option = click.option("--experiment", metavar="NAME", help="Look only in this experiment.")
sweep_option = click.option(
    "--sweep",
    metavar="NAME",
    shell_complete=sweeps_here,
    help="Look only among the runs of this sweep: its name, or its parent run's ID.",
)
local_option = click.option(
    "--local", is_flag=True, help="Take the checkpoint from the run folder; MLflow is not asked for it."
)
other_code_option = click.option(
    "--allow-other-code", is_flag=True, help="Go on although the network's function is not what it was."
)


class Objective(click.ParamType[str]):
    """An objective: which there are is asked when one is typed, as a `--config-dir` may have more."""

    name = "objective"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        return str(click.Choice(objectives()).convert(value, param, context))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(objectives())}]"


def _use(context: click.Context, parameter: click.Parameter, directory: str | None) -> None:
    if directory is not None or os.environ.get(CONFIG_DIR):
        from ..settings.own import use_named

        use_named(directory)


config_dir_option = click.option(
    "--config-dir",
    metavar="DIR",
    is_eager=True,  # first: it decides which settings and metrics there are
    expose_value=False,
    callback=_use,
    help=f"Your own model/, data/, recipe/ ... and code.py are in DIR; else {CONFIG_DIR}.",
)
objective_option = click.option("--objective", type=Objective(), help="Which objective `best` goes by.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, for programs.")


def lookup_options(verb: Callable[..., None]) -> Callable[..., None]:
    """How a RUN is looked up; the verb gets it as keyword arguments for `find_and_fetch` or `find_records`.

    And `--config-dir`, which a run with metrics of its own takes.
    """
    for option in (objective_option, sweep_option, experiment_option, tracking_option, config_dir_option):
        verb = option(verb)
    return verb


def find_and_fetch(
    run: str, to: Path, tracking_uri: str | None, *, local: bool = False, last: bool = False, **lookup: str | None
) -> Any:
    from ..results.fetch import fetch
    from ..tracking.lookup import Lookup
    from ..tracking.store import find_place

    return fetch(Lookup(run, **lookup), find_place(tracking_uri), to=to, local=local, last=last)


def runs_and_overrides(words: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """RUN... data.path=FILE: the runs, and where their data is."""
    return tuple(word for word in words if "=" not in word), [word for word in words if "=" in word]


def find_records(references: tuple[str, ...], tracking_uri: str | None, **lookup: str | None) -> list[Any]:
    from ..results.record import find_record
    from ..tracking.lookup import Lookup
    from ..tracking.store import find_place

    place = find_place(tracking_uri)
    return [find_record(Lookup(reference, **lookup), place) for reference in references]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def refuse_unanswered(verb: str, yes: bool, question: str) -> None:
    """Ask before something is deleted; where nobody can answer, only --yes does.

    Raises:
        SettingsError: nobody is there to answer.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError(f"{verb}: asks first, and nobody is there to answer; type the same with --yes")
    click.confirm(one_line(question), abort=True, err=True)


def screen_for(config: Any, as_json: bool) -> Any:
    from ..views.screen import Screen

    training = config.training
    return Screen(total_steps=training.max_steps, batch_size=training.batch_size, stderr=as_json)


def finish(result: Any, as_json: bool) -> NoReturn:
    if as_json:
        say_json(result.as_json())
    sys.exit(result.exit_code)
