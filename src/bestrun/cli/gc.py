"""bestrun gc: what nobody needs any more goes, and what one selects."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ..formatting import shown_bytes, text_table
from ..terminal import say, say_json, say_lines
from .completion import runs_here
from .options import RUN_HELP, json_option, tracking_option

if TYPE_CHECKING:
    from ..results.gc import Plan

MOST = 10  # runs that are named


@click.command("gc", short_help="Free room: leftovers, and old runs that nothing needs.", epilog=RUN_HELP)
@click.argument("runs", shell_complete=runs_here, metavar="[RUN]...", nargs=-1)
@click.option("--older-than", metavar="30d", help="Runs that ended longer ago: hours (12h), days (30d), weeks (2w).")
@click.option("--keep-best", type=click.IntRange(1), metavar="N", help="All but the N best of each experiment.")
@click.option("--experiment", metavar="NAME", help="Only runs of this experiment.")
@click.option("--yes", is_flag=True, help="Without being asked.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@tracking_option
@json_option
def collect(
    runs: tuple[str, ...],
    older_than: str | None,
    keep_best: int | None,
    experiment: str | None,
    yes: bool,
    dry_run: bool,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Say what can go from this home and its MLflow store, with its size; then ask, then remove it.

    \b
    bestrun gc                                   leftovers alone: what killed processes left, what was replaced,
                                                 set aside, or deleted in MLflow, which keeps the files
    bestrun gc --older-than 30d --keep-best 10   and whole runs: old ones that are not among the best
    bestrun gc RUN...                            and these

    Runs stay that run, could go on, are not all in MLflow yet, are somebody else's, registered, the best of their
    experiment, best or finalists of a sweep or of one that is not complete, that others were started from, or that have
    the tag bestrun.keep in MLflow.
    """
    from ..errors import SettingsError
    from ..results.gc import Selection, carry_out, plan, refuse_contradictions
    from ..storage.home import settle
    from ..sweep.kept import kept
    from ..tracking.store import find_place

    if yes and dry_run:
        raise SettingsError("--yes --dry-run: removes, and does not; type one of them")
    selection = Selection(runs, older_than, keep_best, experiment)
    refuse_contradictions(selection)
    place = find_place(tracking_uri, writes=not dry_run)
    if not dry_run:
        settle(place.home)
    found = plan(place, selection, kept(place.home))
    if not as_json:
        say_lines(_lines(found, bool(selection)))
    something = bool(found.runs or found.leftovers)
    removes = something and not dry_run and (yes or (not as_json and _is_agreed(found.bytes)))
    outcome = carry_out(found) if removes else None
    if as_json:
        report = {"removed": bool(outcome), "freed": outcome.freed if outcome else 0}
        say_json(found.as_json() | report | {"problems": outcome.problems if outcome else []})
    elif outcome:
        say(f"freed     {shown_bytes(outcome.freed)}")
    elif something:
        again = "the same with --yes in place of --dry-run" if dry_run else "the same with --yes"
        say(f"nothing was removed; to remove it, type {again}")
    for problem in outcome.problems if outcome else ():
        say(f"error: {problem}", err=True)
    sys.exit(1 if outcome and outcome.problems else 0)


def _is_agreed(size: int) -> bool:
    return sys.stdin.isatty() and click.confirm(f"Remove {shown_bytes(size)}?", default=False, err=True)


def _lines(found: Plan, with_runs: bool) -> list[str]:
    """What can go by kind, which runs, and what stays."""
    lines = []
    if found.kinds:
        rows = [["what", "number", "size"], *([kind, f"{n:,}", shown_bytes(size)] for kind, n, size in found.kinds)]
        lines += [*text_table([*rows, ["in all", "", shown_bytes(found.bytes)]], right={1, 2}), ""]
    if found.runs:
        names, more = [piece.name for piece in found.runs], len(found.runs) - MOST
        lines.append("runs      " + ", ".join(names[:MOST]) + (f" and {more:,} more" if more > 0 else ""))
    for number, (reason, count) in enumerate(found.reasons):
        lines.append(f"{'stays' if number == 0 else '':<10}{count:,} {reason}")
    if not found.kinds:
        what = "no run that may go, and no leftovers" if with_runs else "no leftovers"
        lines.append(f"nothing to remove in {found.place.home}: {what}")
    return lines
