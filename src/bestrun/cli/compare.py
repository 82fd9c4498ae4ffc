"""bestrun compare: runs side by side, and whether the difference is one."""

import sys
from typing import Any

import click

from ..errors import SettingsError
from ..terminal import say, say_json, say_lines
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_records,
    json_option,
    lookup_options,
    runs_and_overrides,
)


@click.command(short_help="Runs side by side: what differs, and which is better.", epilog=RUN_HELP)
@click.argument("runs", shell_complete=runs_here, metavar="RUN RUN... [data.path=FILE]", nargs=-1, required=True)
@click.option("--metric", metavar="NAME", help="Judge by this one; val/accuracy is kept image by image.")
@click.option(
    "--compute",
    is_flag=True,
    help="See by checkpoints and data which images each has right; else the journals say.",
)
@click.option(
    "--seeds", type=click.IntRange(3, 100), metavar="N", help="Train both settings with N seeds each, and judge those."
)
@lookup_options
@json_option
def compare(
    runs: tuple[str, ...], metric: str | None, compute: bool, seeds: int | None, as_json: bool, **where: str | None
) -> None:
    """Runs side by side: their best, the settings that differ, code, data, versions, who confuses what; and a verdict.

    The verdict is McNemar's: image by image, each run against the first. See docs/judging.md.

    \b
    bestrun compare RUN RUN                            of the validation images, as the journals have them
    bestrun compare RUN RUN --compute data.path=FILE   of runs of older versions, or of very many images
    bestrun compare RUN RUN --seeds 5                  not these two networks: their settings, five seeds each
    """
    from ..results import compare as compared
    from ..results import verdicts
    from ..tracking.store import find_place
    from ..views.screen import Screen

    references, overrides = runs_and_overrides(runs)
    if overrides and not (compute or seeds):
        raise SettingsError(f"{overrides[0]}: says where the data is, which --compute reads; add that, or leave it out")
    if not seeds:
        verdicts.refuse_metric(metric or verdicts.METRIC)
    records = find_records(references, **where)
    computed = None
    if compute:
        with Screen(stderr=True).shown():
            computed = verdicts.compute(records, find_place(where["tracking_uri"]), overrides)
    found = compared.comparison(records, computed)
    if not as_json:
        say_lines(compared.lines(records, found))
    if seeds:
        code = _by_seeds(records, seeds, metric, overrides, found, as_json)
    if as_json:
        say_json(found)
    sys.exit(code if seeds else 0)


def _by_seeds(
    records: list[Any], count: int, metric: str | None, overrides: list[str], found: dict[str, Any], as_json: bool
) -> int:
    """Train, judge and say so; returns the exit code."""
    from ..storage.home import find_home
    from ..sweep import pairs

    say(f"\n{count} seeds of each: {pairs.forecast(records, count)}", err=as_json)
    home = find_home(writes=True)
    verdict, code = pairs.compare_seeds(records, count, metric, home=home, overrides=overrides, stderr=as_json)
    found["seeds"] = verdict.as_json()
    if not as_json:
        say(f"\nverdict  {verdict.words()}")
    return code
