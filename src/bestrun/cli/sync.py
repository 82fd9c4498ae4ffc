"""bestrun sync: send to MLflow what it has not got."""

import sys

import click

from ..terminal import say, say_json, say_lines
from .completion import runs_here
from .options import RUN_HELP, config_dir_option, json_option, tracking_option


@click.command(short_help="Send to MLflow what it has not got.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here, required=False)
@click.option("--all", "everything", is_flag=True, help="Every run of this mlruns folder; the default without RUN.")
@tracking_option
@config_dir_option
@json_option
def sync(run: str | None, everything: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Send to MLflow what it has not got, and mark runs and sweeps whose process died. May be repeated."""
    from ..storage.home import find_home
    from ..storage.reference import local_folder, run_folders
    from ..sweep.closing import close_parents
    from ..tracking.sync import sync as send

    home = find_home(writes=True)
    one = local_folder(home, run) if run and not everything else None
    reports = send([one] if one else run_folders(home), home=home, setting=tracking_uri)
    reports += [] if one else close_parents(home, tracking_uri)
    if as_json:
        say_json(reports)
    told = None
    for report in () if as_json else reports:
        text = report["error"] or f"{report['sent']} events sent"
        repeated = report["error"] is not None and text == told
        told = text
        say_lines([f"{report['run_name']:<24} {report['state']:<32} {'as above' if repeated else text}"])
    if not reports and not as_json:
        say(f"no runs in {home / 'runs'}")
    sys.exit(6 if any(report["error"] for report in reports) else 0)
