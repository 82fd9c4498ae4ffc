"""bestrun report: One HTML file."""

from pathlib import Path

import click

from ..errors import SettingsError
from ..terminal import say
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_records,
    lookup_options,
    runs_and_overrides,
)


@click.command(short_help="One HTML file of runs or of a sweep.", epilog=RUN_HELP)
@click.argument("runs", shell_complete=runs_here, metavar="RUN... [data.path=FILE]", nargs=-1)
@click.option(
    "--out", metavar="FILE.html", type=click.Path(dir_okay=False), help="Else report-NAME.html in this folder."
)
@lookup_options
def report(runs: tuple[str, ...], out: str | None, **where: str | None) -> None:
    """One HTML file, to send and to print: results, curves, confusions, errors, and on what runs disagree.

    \b
    bestrun report best                        one run
    bestrun report RUN RUN data.path=FILE      several; says where their data is on this machine
    bestrun report --sweep NAME                a sweep: its trials, what mattered, its best runs
    """
    from ..storage.files import write_atomically
    from ..sweep.manifest import read_manifest
    from ..tracking.store import find_place
    from ..views.screen import Screen
    from . import sections as told

    references, overrides = runs_and_overrides(runs)
    if not references and not where["sweep"]:
        raise SettingsError("report: takes one RUN or several, or --sweep NAME; list them: bestrun runs, bestrun sweep")
    place, records = find_place(where["tracking_uri"]), find_records(references, **where)
    manifest = None if records else read_manifest(place.home, str(where["sweep"]))
    path = Path(out or told.file_name(records, where["sweep"]))
    if not path.parent.is_dir():
        raise SettingsError(f"--out {path}: there is no folder {path.parent}; make it, or name a file in another")
    with Screen(stderr=True).shown():
        document = told.of_sweep(manifest, overrides, place) if manifest else told.of_runs(records, overrides, place)
    write_atomically(path, document)
    say(f"{path}  {len(document) / 1e6:.2f} MB")
