"""bestrun restore: fetch, prove, test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import SettingsError
from ..terminal import say, say_json, say_lines
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_and_fetch,
    json_option,
    local_option,
    lookup_options,
    other_code_option,
)


@click.command(short_help="Fetch the best checkpoint, prove it, evaluate the test split.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
@click.argument("overrides", nargs=-1)
@local_option
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", help="last: the newest state (needs --local)."
)
@click.option(
    "--out", metavar="DIR", type=click.Path(file_okay=False), help="Keep checkpoint, settings and pictures here."
)
@click.option(
    "--allow-other-data", is_flag=True, help="Evaluate although the data is not what the run was trained with."
)
@other_code_option
@lookup_options
@json_option
def restore(
    run: str,
    overrides: tuple[str, ...],
    checkpoint: str,
    out: str | None,
    allow_other_data: bool,
    allow_other_code: bool,
    as_json: bool,
    **lookup: Any,
) -> None:
    """Fetch a run's best checkpoint, prove it, evaluate the test split.

    \b
    bestrun restore RUN data.dir=FOLDER      says where the data is on this machine
    bestrun restore best --sweep NAME        the best finished run of a sweep
    """
    if checkpoint == "last" and not lookup["local"]:
        raise SettingsError("--checkpoint last is only in the run folder, not in MLflow; add --local")
    from ..results.fetch import keep
    from ..results.restore import report_lines
    from ..results.restore import restore as prove
    from ..storage.home import find_home
    from ..storage.workplace import Workplace
    from ..views import curves
    from ..views.screen import Screen

    with Screen(stderr=as_json).shown(), Workplace(Path(out) if out else None) as place:
        fetched = find_and_fetch(run, place, last=checkpoint == "last", **lookup)
        kept = Path(out or place)
        if out:
            fetched = replace(fetched, path=str(kept / keep(fetched, kept)[0]))
        report = prove(
            fetched,
            home=find_home(),
            tracking_uri=lookup["tracking_uri"],
            out=kept,
            data_overrides=overrides,
            allow_other_data=allow_other_data,
            allow_other_code=allow_other_code,
        )
        if as_json:
            say_json(report)
            return
        import numpy as np

        matrix = curves.confusion_matrix_text(np.array(report["confusion_matrix"]), report["class_names"])
        say_lines(report_lines(report, matrix))
        if out:
            say(f"\nkept in {out}")
        elif report["recorded"]:
            say("\npictures are in the run's MLflow artifacts; --out DIR keeps them here")
        else:
            say("\n--out DIR keeps the pictures")
