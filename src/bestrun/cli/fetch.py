"""bestrun fetch: the checkpoint and a model.keras into a folder."""

from pathlib import Path
from typing import Any

import click

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


@click.command("fetch", short_help="Put checkpoint, settings and a model.keras into a folder.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
@click.option("--out", metavar="DIR", required=True, type=click.Path(file_okay=False), help="A new or empty folder.")
@local_option
@other_code_option
@lookup_options
@json_option
def fetch_files(run: str, out: str, allow_other_code: bool, as_json: bool, **lookup: Any) -> None:
    """Get a run's best checkpoint, its settings, and a model.keras that needs none of our code."""
    from ..results.export import FETCHED, is_same_file, keras_lines, write_keras
    from ..results.fetch import identity, keep
    from ..storage.workplace import delivered
    from ..training.proof import words_of

    with delivered(Path(out), FETCHED, is_same_file) as place:
        fetched = find_and_fetch(run, place, **lookup)
        files = [*keep(fetched, place), "model.keras"]
        function = write_keras(fetched, place / files[-1], allow_other_code=allow_other_code)
    if as_json:
        say_json(identity(fetched) | {"function": vars(function), "out": out, "files": files})
        return
    step = fetched.checkpoint.state.step
    say(f"{fetched.run_name}, step {step:,}, {words_of(function)}; in {out}: {', '.join(files)}\n")
    say_lines(keras_lines(fetched, Path(out) / "model.keras"))
