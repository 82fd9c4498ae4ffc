"""bestrun fetch: the checkpoint and a model.keras into a folder."""

from pathlib import Path
from typing import Any

import click

from ..errors import SettingsError
from ..terminal import say, say_json, say_lines
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_and_fetch,
    find_records,
    json_option,
    local_option,
    lookup_options,
    other_code_option,
)


@click.command("fetch", short_help="Put checkpoint, settings and a model.keras into a folder.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
@click.argument("overrides", metavar="[data.path=FILE]", nargs=-1)
@click.option("--out", metavar="DIR", required=True, type=click.Path(file_okay=False), help="A new or empty folder.")
@click.option(
    "--at",
    type=click.IntRange(0),
    metavar="STEP",
    help="Not the best: the state at this evaluation, computed again.",
)
@local_option
@other_code_option
@lookup_options
@json_option
def fetch_files(
    run: str, overrides: tuple[str, ...], out: str, at: int | None, allow_other_code: bool, as_json: bool, **lookup: Any
) -> None:
    """Get a run's best checkpoint, its settings, and a model.keras that needs none of our code.

    With --at STEP it is the state at an evaluation of which no file was kept: trained once more from the nearest state
    that was, with every evaluation on the way compared with the journal.

    \b
    bestrun fetch best --out digits
    bestrun fetch RUN --at 2300 --out then [data.path=FILE]
    """
    from ..results.export import FETCHED, is_same_file, keras_lines, write_keras
    from ..results.fetch import identity, keep
    from ..storage.workplace import delivered
    from ..training.proof import words_of

    if overrides and at is None:
        raise SettingsError(f"{overrides[0]}: without --at STEP nothing is computed, and no data is read; leave it out")
    with delivered(Path(out), FETCHED, is_same_file) as place:
        if at is None:
            fetched, how = find_and_fetch(run, place, **lookup), ""
        else:
            found = _state_at(run, at, place, overrides, **lookup)
            fetched, how = found.fetched, found.words
        files = [*keep(fetched, place), "model.keras"]
        function = write_keras(fetched, place / files[-1], allow_other_code=allow_other_code)
    if as_json:
        told = {"how": how, "proved": found.proved} if at is not None else {}
        say_json(identity(fetched) | {"function": vars(function), "out": out, "files": files} | told)
        return
    step = fetched.checkpoint.state.step
    say(f"{fetched.run_name}, step {step:,}, {how or words_of(function)}; in {out}: {', '.join(files)}\n")
    say_lines(keras_lines(fetched, Path(out) / "model.keras"))


def _state_at(run: str, step: int, place: Path, overrides: tuple[str, ...], **lookup: Any) -> Any:
    from ..run.state_at import state_at
    from ..settings.config import to_yaml
    from ..storage.files import write_atomically
    from ..tracking.store import find_place
    from ..views.screen import Screen

    lookup.pop("local")
    (record,) = find_records((run,), **lookup)
    screen = Screen(stderr=True)
    with screen.shown():
        home = find_place(lookup["tracking_uri"])
        found = state_at(record, home, step, place, overrides=overrides, tell=screen.computed)
        screen.end_progress()
    write_atomically(place / "config.yaml", to_yaml(found.fetched.config).encode())
    return found
