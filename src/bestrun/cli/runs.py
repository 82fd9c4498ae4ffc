"""bestrun runs: the table of runs."""

import sys
from typing import Any

import click

from ..errors import SettingsError
from ..terminal import say, say_json, say_lines
from .options import (
    config_dir_option,
    experiment_option,
    json_option,
    sweep_option,
    tracking_option,
)


@click.command(short_help="A table of runs, best first.")
@click.option(
    "--most", default=20, show_default=True, type=click.IntRange(1, 10_000), help="So many runs of each objective."
)
@click.option("--filter", metavar="FILTER", help="Only these runs, in MLflow's language, as above.")
@click.option("--sort", metavar="NAME[:asc|:desc]", help="By a metric or `started`; all objectives in one list.")
@click.option("--by", type=click.Choice(["settings"]), help="A row a configuration: its seeds' mean, worst and best.")
@click.option("--columns", metavar="A,B,...", help="These instead; also metrics, settings, and tags.NAME.")
@click.option("--mine", is_flag=True, help="Only those that I have made, on a server of several people.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets and scripts.")
@experiment_option
@sweep_option
@tracking_option
@config_dir_option
@json_option
def runs(
    by: str | None, columns: str | None, as_csv: bool, as_json: bool, tracking_uri: str | None, **wanted: Any
) -> None:
    """A table of runs, best first; runs with different objectives are mixed only where --sort says by what.

    \b
    bestrun runs --filter 'metrics."best/accuracy" > 0.98 and params.seed = "1"'
    bestrun runs --sort images_per_second --columns run,images_per_second,training.batch_size,tags.author
    bestrun runs --by settings       seeds, mean, where it lies (95 %), worst, best
    bestrun runs --csv > runs.csv
    """
    from ..tracking.listing import FIELDS, check_columns, list_runs
    from ..tracking.listing import as_json as rows_as_json
    from ..tracking.store import find_place, reaching, reading
    from . import run_table as table

    if as_json and as_csv:
        raise SettingsError("--json --csv: only one of them can stand on stdout")
    if by:
        _by_settings(columns, as_csv, as_json, tracking_uri, **wanted)
        return
    named = list(dict.fromkeys(name.strip() for name in (columns or "").split(",") if name.strip()))
    uri = find_place(tracking_uri).uri
    with reaching(uri):
        store = reading(uri)
        rows = list_runs(store, **wanted)
        check_columns(store, rows, named)
    if as_json:
        say_json(rows_as_json(rows, named or FIELDS))
    elif as_csv:
        say(table.as_csv(rows, named or FIELDS), raw=not sys.stdout.isatty())
    elif rows:
        columns_shown = named or table.usual_columns(wanted["sort"], rows)
        say_lines(table.lines(rows, columns_shown, table.terminal_width()))
    elif wanted["filter"] or wanted["sweep"] or wanted["experiment"] or wanted["mine"]:
        say("no such runs; all of them: bestrun runs")
    else:
        say("no runs yet; the first is made by: bestrun train")


def _by_settings(
    columns: str | None, as_csv: bool, as_json: bool, tracking_uri: str | None, sort: str | None, **wanted: Any
) -> None:
    from ..tracking.by_settings import list_configurations, refuse_with
    from ..tracking.store import find_place, reaching, reading
    from . import settings_table as table

    refuse_with(sort, columns)
    uri = find_place(tracking_uri).uri
    with reaching(uri):
        found = list_configurations(reading(uri), **wanted)
    if as_json:
        say_json([vars(each) | {"seeds": each.seeds} for each in found])
    elif as_csv:
        say(table.as_csv(found), raw=not sys.stdout.isatty())
    elif found:
        say_lines(table.lines(found))
    else:
        say("no such runs; all of them: bestrun runs")
