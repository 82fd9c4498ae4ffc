"""bestrun sweep: what a sweep came to."""

import click

from ..terminal import say, say_json, say_lines
from .completion import sweeps_here
from .options import config_dir_option, json_option


@click.command(short_help="What a sweep came to: trials, cost, importances.")
@click.argument("name", shell_complete=sweeps_here, required=False)
@config_dir_option
@json_option
def sweep(name: str | None, as_json: bool) -> None:
    """What a sweep came to so far: its trials best first, cost, importances. Without NAME: all sweeps."""
    from ..storage.home import find_home
    from ..sweep.board import report_lines
    from ..sweep.manifest import read_manifest, sweep_names
    from ..sweep.summary import summary

    home = find_home()
    found = [read_manifest(home, each) for each in ([name] if name else sweep_names(home))]
    if as_json:
        reports = [summary(manifest) for manifest in found]
        say_json(reports[0] if name else reports)
    elif name:
        say_lines(report_lines(summary(found[0]))[1:])
    for manifest in () if as_json or name else found:  # a line each, for which no importances are computed
        count = ", ".join(f"{number} {state}" for state, number in sorted(manifest.count().items()) if number)
        say(f"{manifest.name:<24} {manifest.line['kind']:<6} {count}")
    if not found and not as_json:
        say("no sweeps yet; the first is made by: bestrun train -m optimizer.learning_rate=1e-4,1e-3")
