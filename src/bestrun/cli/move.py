"""bestrun move: runs into another home, or a whole home to another place."""

import sys
from pathlib import Path
from typing import Any

import click

from ..errors import SettingsError
from ..terminal import one_line, say_json, say_lines
from .completion import runs_here, sweeps_here
from .options import config_dir_option, json_option, megabytes, refuse_unanswered

RUN_HELP = """
\b
RUN is a run name, its ID (or 8 and more of its first characters), or `latest`.
"""


@click.command(short_help="Runs into another home, or a home to another place.", epilog=RUN_HELP)
@click.argument("run", nargs=-1, shell_complete=runs_here)
@click.option("--to", metavar="HOME", type=click.Path(file_okay=False), help="The mlruns folder that they go to.")
@click.option("--sweep", metavar="NAME", shell_complete=sweeps_here, help="All runs of this sweep, and the sweep.")
@click.option("--home", metavar="NEW", type=click.Path(file_okay=False), help="Where the whole mlruns folder is to be.")
@click.option("--yes", is_flag=True, help="Without being asked.")
@config_dir_option
@json_option
def move(run: tuple[str, ...], to: str | None, sweep: str | None, home: str | None, yes: bool, as_json: bool) -> None:
    """Take runs into another home: folders, artifacts and MLflow's record, under the same names and IDs. Each is
    copied, proved there, and only then removed here. Killed at any point, the same line goes on.

    With --home all of this mlruns folder goes to another place; where it lies there already, as after `mv`, its
    addresses in MLflow's store are put right.

    \b
    bestrun move night-1 night-2 --to /archive/mlruns
    bestrun move --sweep rates --to /archive/mlruns
    bestrun move --home /big/mlruns
    """
    if home is not None:
        if run or to or sweep:
            raise SettingsError("--home NEW moves all of this home; leave RUN, --to and --sweep out")
        _move_home(Path(home), yes, as_json)
    elif to is None or not (run or sweep):
        raise SettingsError("say what goes where: bestrun move RUN --to HOME, or --sweep NAME --to HOME, or --home NEW")
    elif run and sweep:
        raise SettingsError(f"--sweep {sweep}: all its runs go; leave {run[0]} out, or move it by a line of its own")
    else:
        _move_runs(list(run), Path(to), sweep, yes, as_json)


def _move_runs(references: list[str], to: Path, sweep: str | None, yes: bool, as_json: bool) -> None:
    from ..results.move import carry_out, plan_move
    from ..storage.home import find_home
    from ..sweep.manifest import sweep_path
    from ..sweep.together import refuse_alone, runs_of

    source, parent = find_home(writes=True), None
    if sweep:
        at = source if sweep_path(source, sweep).is_file() or not sweep_path(to, sweep).is_file() else to
        references, parent = runs_of(at, sweep)
    plan = plan_move(references, source, to, sweep=sweep, parent_run_id=parent)
    if not sweep:
        refuse_alone(source, [each.folder for each in plan.runs])
    if not as_json:
        say_lines(_lines(plan))
    if plan.runs or plan.sweep:
        refuse_unanswered("move", yes, f"Move {len(plan.runs)} runs, {megabytes(plan.bytes)}, and remove them here?")
    document: dict[str, Any] = {"from": str(plan.source), "to": str(plan.target), "bytes": plan.bytes, "runs": []}
    failed = False
    for each, error in carry_out(plan):
        document["runs"].append(each.as_json() | {"error": error})
        failed = failed or bool(error)
        if not as_json:
            say_lines([f"moved     {each.folder.name}" + (f": {error}" if error else "")])
    document["arrived_before"] = plan.arrived
    if as_json:
        say_json(document)
    sys.exit(6 if failed else 0)


def _lines(plan: Any) -> list[str]:
    lines = [f"from      {plan.source}", f"to        {plan.target}"]
    for each in plan.runs:
        what = "has arrived before; what is left of it here is removed" if each.is_there else megabytes(each.bytes)
        record = "" if each.store == "home" else f", MLflow's record stays at {each.store}"
        lines.append(f"run       {each.folder.name:<24} {what}{record}")
        lines += [f"          stays: {text}" for text in each.stays]
    lines += [f"run       {name:<24} is there, and nothing of it is left here" for name in plan.arrived]
    return lines + ([f"sweep     {plan.sweep.name}"] if plan.sweep else [])


def _move_home(target: Path, yes: bool, as_json: bool) -> None:
    from ..results.move import stay_behind, tell_servers
    from ..storage.home import find_home
    from ..storage.relocate import plan_relocation, relocate

    source = find_home(writes=True)
    plan = plan_relocation(source, target)
    stays = stay_behind(plan.source) if plan.how in ("rename", "copy") else []
    if not as_json:
        words = {
            "rename": f"{megabytes(plan.bytes)}, on one disk: renamed, nothing is copied",
            "copy": f"{megabytes(plan.bytes)}, to another disk: copied, proved there, then removed here",
            "finish": "was copied before; what is left in the old place is removed",
            "repair": f"is there; it lay at {plan.lay_at}",
            "nothing": "is there, and at home: nothing to do",
        }
        say_lines([f"from      {plan.source}", f"to        {plan.target}", f"home      {words[plan.how]}"])
        for text in stays:
            say_lines([f"stays     {text}; a link keeps that: ln -s NEW OLD"])
    if plan.deletes:
        refuse_unanswered("move", yes, f"Remove {one_line(str(plan.source))} once all of it is in {target}?")
    if plan.how != "nothing":
        relocate(plan)
    behind = tell_servers(plan.target)
    document = {"from": str(plan.source), "to": str(plan.target), "how": plan.how, "bytes": plan.bytes}
    if as_json:
        say_json(document | {"lay_at": str(plan.lay_at), "stays": stays, "behind": [name for name, _ in behind]})
    else:
        for name, error in behind:
            say_lines([f"behind    {name}: {error}"])
        if plan.how != "nothing":
            say_lines([f"home      {plan.target}", f"use it    {_use(plan.target)}"])
    sys.exit(6 if behind else 0)


def _use(home: Path) -> str:
    import shlex

    if home.name == "mlruns":
        return f"from {home.parent} and below it; from elsewhere: export BESTRUN_MLRUNS={shlex.quote(str(home))}"
    return f"export BESTRUN_MLRUNS={shlex.quote(str(home))}"
