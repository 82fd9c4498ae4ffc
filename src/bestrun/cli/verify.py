"""bestrun verify: did this training happen?"""

import sys

import click

from ..terminal import say, say_json
from .completion import runs_here
from .options import RUN_HELP, find_records, json_option, lookup_options, other_code_option


@click.command(short_help="Check a run and train parts of it once more: did this training happen?", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
@click.argument("overrides", metavar="[data.path=FILE]", nargs=-1)
@click.option(
    "--intervals", default=3, show_default=True, type=click.IntRange(0, 10_000), help="So many chosen at random, too."
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="That chooses them; else any, which is printed.")
@other_code_option
@lookup_options
@json_option
def verify(
    run: str,
    overrides: tuple[str, ...],
    intervals: int,
    seed: int | None,
    allow_other_code: bool,
    as_json: bool,
    **where: str | None,
) -> None:
    """Check what a run says of itself, and train parts of it once more: always those of its best.

    On the same kind of machine with the same versions every figure and every weight must come out the same, to the bit.
    Elsewhere figures are compared within a tolerance, and the verdict is `close`. Exit 5 where something is not as
    recorded.

    \b
    bestrun verify RUN                   the best's interval and three others
    bestrun verify RUN --intervals 999   all of it
    """
    from ..run.verify import verify as verified
    from ..tracking.store import find_place
    from ..views.screen import Screen

    (record,) = find_records((run,), **where)
    screen = Screen(stderr=True)
    with screen.shown():
        report = verified(
            record,
            find_place(where["tracking_uri"]),
            intervals=intervals,
            seed=seed,
            allow_other_code=allow_other_code,
            overrides=overrides,
            say=lambda line: None if as_json else say(line),
            tell=screen.computed,
        )
        screen.end_progress()
    if as_json:
        say_json(report.as_json())
    else:
        say(f"\nverdict     {report.words()}")
    sys.exit(report.exit_code)
