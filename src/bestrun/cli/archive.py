"""bestrun archive: runs in one file, for another machine, and out of it again."""

import shlex
import sys
from pathlib import Path

import click

from ..errors import SettingsError
from ..terminal import say_json, say_lines
from .completion import runs_here
from .move import RUN_HELP
from .options import config_dir_option, json_option, megabytes, tracking_option


@click.command(short_help="Runs in one file, for another machine; proved when opened.", epilog=RUN_HELP)
@click.argument("run", nargs=-1, shell_complete=runs_here)
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False), help="The new file, as runs.tar.")
@click.option(
    "--open", "archive_file", metavar="FILE", type=click.Path(dir_okay=False), help="Bring its runs into this home."
)
@tracking_option
@config_dir_option
@json_option
def archive(
    run: tuple[str, ...], out: str | None, archive_file: str | None, tracking_uri: str | None, as_json: bool
) -> None:
    """Put the folders of runs into one file. Opened elsewhere, every file, each journal's chain and best checkpoint are
    proved before any of it is in the home; then the runs are sent to MLflow there.

    The runs stay here. What MLflow alone has of them (tags and notes of yours, registered versions) is not in the file.

    \b
    bestrun archive night-1 night-2 --out runs.tar
    bestrun archive --open runs.tar
    """
    if archive_file is not None:
        if run or out:
            raise SettingsError("--open FILE takes all runs of the file; leave RUN and --out out")
        _open(Path(archive_file), tracking_uri, as_json)
    elif not run or out is None:
        raise SettingsError(
            "say which runs and where to: bestrun archive RUN --out FILE; or bestrun archive --open FILE"
        )
    elif tracking_uri:
        raise SettingsError("--tracking-uri: MLflow is not asked for what goes into the file; leave it out")
    else:
        _pack(list(run), Path(out), as_json)


def _pack(references: list[str], out: Path, as_json: bool) -> None:
    from ..results.archive import pack_runs, plan_packing
    from ..storage.home import find_home

    plan = plan_packing(references, find_home(writes=True), out)
    if not as_json:
        say_lines(
            [f"run       {name:<24} {megabytes(size)}, {count} files" for name, (count, size) in plan.sizes.items()]
        )
    size = pack_runs(plan)
    if as_json:
        runs = [{"run_name": name, "files": count, "bytes": bytes} for name, (count, bytes) in plan.sizes.items()]
        say_json({"archive": str(plan.out), "bytes": size, "runs": runs})
        return
    say_lines([f"archive   {plan.out}  {megabytes(size)}"])
    say_lines([f"open it   bestrun archive --open {shlex.quote(plan.out.name)}"])


def _open(path: Path, tracking_uri: str | None, as_json: bool) -> None:
    from ..results.archive import open_archive, plan_opening, send_opened
    from ..storage.home import find_home

    plan = plan_opening(path, find_home(writes=True))
    if not as_json:
        say_lines([f"archive   {plan.path}, made by bestrun {plan.made_by}", f"to        {plan.home}"])
        for name in plan.names:
            what = "is there already" if name in plan.there else "arrives"
            say_lines([f"run       {name:<24} {what}"])
        say_lines([f"bytes     {megabytes(plan.bytes)}"])
    open_archive(plan)
    reports = send_opened(plan, tracking_uri)
    if as_json:
        say_json({"home": str(plan.home), "bytes": plan.bytes, "there": plan.there, "runs": reports})
    for report in () if as_json else reports:
        state = "there" if report["run_name"] in plan.there else "proved"
        text = report["error"] or report.get("told") or f"MLflow: {report['state']}, {report['sent']} events sent"
        say_lines([f"run       {report['run_name']:<24} {state}; {text}"])
    sys.exit(6 if any(report["error"] for report in reports) else 0)
