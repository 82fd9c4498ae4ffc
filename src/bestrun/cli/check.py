"""bestrun check: before the night."""

import contextlib
import sys
import time

import click

from ..terminal import say, say_json
from .completion import settings
from .options import config_dir_option, json_option


@click.command(
    short_help="Before the night: try what would stop a run, with your settings and data.",
    context_settings={"ignore_unknown_options": True},  # compose answers those of others, as train does
)
@click.argument("overrides", nargs=-1, shell_complete=settings, type=click.UNPROCESSED)
@click.option("-m", "--multirun", is_flag=True, help="The settings of a sweep, of which the first run is tried.")
@click.option("--quick", is_flag=True, help="Nothing is trained: settings, folder, server and data alone.")
@config_dir_option
@json_option
def check(overrides: tuple[str, ...], multirun: bool, quick: bool, as_json: bool) -> None:
    """Try in about two minutes what would stop a run: OVERRIDES are those of bestrun train.

    \b
    bestrun check recipe=quick tracking.uri=https://mlflow.lab
    bestrun check -m sweep=study sweep.name=night1

    Looked at are settings, folder, locks, disk, data, labels, duplicates, server and its rights; 40 steps are trained
    in one go, killed twice and resumed, and without MLflow; then speed, the end, memory, room, and one batch learned by
    heart. Each line is OK, WARN or FAILED with what to do. All is done in a home of its own, which is removed; a server
    gets a run that is deleted again. Exit 0, or 2 where something FAILED.
    """
    from ..run.findings import FAILED, WARN
    from ..run.preflight import Planned, Preflight, one_run
    from ..views.screen import reading

    def plan() -> Planned:
        if not multirun:
            return one_run(overrides)
        from ..sweep.first import first_run

        return first_run(overrides)

    began, found = time.monotonic(), []
    preflight = Preflight(plan, quick=quick, reading=reading)
    with contextlib.closing(preflight.findings()) as findings:
        for finding in findings:
            found.append(finding)
            if not as_json:
                say(str(finding))
    failed, warned = ([each for each in found if each.state == state] for state in (FAILED, WARN))
    if as_json:
        say_json([vars(finding) for finding in found])
    else:
        verdict = f"not ready: {len(failed)} FAILED" if failed else "ready"
        say(f"\nverdict    {verdict}, {len(warned)} WARN, in {time.monotonic() - began:.0f} s")
    sys.exit(2 if failed else 0)
