"""The command `bestrun`. Nothing heavy is imported until a verb needs it: help and a settings error come at once."""

import contextlib
import gc
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from .. import __version__, signals
from ..environment import refuse_windows
from ..errors import BestrunError
from ..terminal import say, say_lines
from .options import RUN_HELP, finish, json_option, screen_for, tracking_option
from .past import VERBS

EXIT_CODES = """
\b
Exit codes: 0 done; 1 unexpected; 2 bad settings or usage; 3 bad or missing data; 4 diverged;
5 a checkpoint failed verification; 6 finished, but MLflow does not have everything yet;
129, 130 and 143 interrupted (SIGHUP, Ctrl-C, SIGTERM), with everything saved.
"""


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bestrun")
def cli() -> None:
    """Train an image classifier, keep the best checkpoint, track it in MLflow, survive anything.

    \b
    bestrun train                                 the default experiment: MNIST, two convolutions
    bestrun train optimizer.learning_rate=1e-3    the same with another setting
    bestrun restore latest                        fetch its best, prove it, test it
    bestrun runs                                  a table of runs, best first
    bestrun ui                                    the MLflow page
    """


@cli.command(
    short_help="Train one run, or with -m a sweep.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("-m", "--multirun", is_flag=True, help="A sweep: settings may have several values, see below.")
@click.option("-h", "--help", "wants_help", is_flag=True, help="Every setting, with its default and reason.")
@click.option("--cfg", type=click.Choice(["job"]), help="Print the settings that would be used, as YAML, and stop.")
@json_option
def train(overrides: tuple[str, ...], multirun: bool, wants_help: bool, cfg: str | None, as_json: bool) -> None:
    """Train: evaluate every N steps, keep the best, stop when nothing improves.

    OVERRIDES are settings as NAME=VALUE, and choices as GROUP=OPTION. With -m they may have several values:

    \b
    bestrun train -m optimizer.learning_rate=1e-4,1e-3      every combination, a trial each
    bestrun train -m sweep=study sweep.name=night1          Optuna chooses and prunes; the same line goes on
    bestrun train -m sweep=seeds                            one configuration, five seeds
    """
    from ..settings.compose import compose, settings_help
    from ..settings.config import to_yaml

    if wants_help:
        say(click.get_current_context().get_help())
        say()
        say(settings_help())
        return
    if multirun:
        _sweep(overrides, cfg, as_json)
    composed = compose(list(overrides))
    if cfg:
        say(to_yaml(composed.config).removesuffix("\n"))
        return
    from ..run.start import start
    from ..storage.home import find_home

    home, config = find_home(writes=True), composed.config
    result = start(composed, home=home, screen=screen_for(config, as_json))
    finish(result, as_json)


def _sweep(overrides: tuple[str, ...], cfg: str | None, as_json: bool) -> NoReturn:
    import yaml

    from ..formatting import mask_uri
    from ..storage.home import find_home
    from ..sweep.space import plan

    if cfg:
        planned = plan(overrides)
        described = planned.says() | {"overrides": list(map(mask_uri, planned.base)), "trials": planned.points}
        say(yaml.safe_dump(described, sort_keys=False).removesuffix("\n"))
        sys.exit(0)
    from ..sweep.scheduler import run_sweep

    outcome = run_sweep(overrides, home=find_home(writes=True), stderr=as_json)
    if as_json:
        say(json.dumps(outcome.summary, indent=2))
    sys.exit(outcome.exit_code)


@cli.command(short_help="Go on with a run: same ID, same curve, same result.", epilog=RUN_HELP)
@click.argument("run", required=False)
@click.argument("overrides", nargs=-1)
@click.option(
    "--from-mlflow", is_flag=True, help="Go on from what MLflow has; the folder on this machine is set aside."
)
@tracking_option
@json_option
def resume(
    run: str | None, overrides: tuple[str, ...], from_mlflow: bool, tracking_uri: str | None, as_json: bool
) -> None:
    """Go on with a run: the same run ID, the same curve, the very same result.

    Without RUN: the latest interrupted one. A finished run is trained further with a later end:

    \b
    bestrun resume RUN training.max_steps=20000
    """
    from ..run.resume import choose
    from ..run.resume import resume as go_on
    from ..settings.compose import read_config
    from ..storage.home import find_home
    from ..tracking.store import resolve_uri

    words = [run, *overrides] if run else []
    if run and "=" in run:  # no RUN, settings only
        run = None
    overrides = tuple(words[1:] if run else words)
    home = find_home(writes=True)
    folder = choose(home, resolve_uri(tracking_uri, home), run, from_mlflow=from_mlflow)
    if tracking_uri:
        overrides = (*overrides, f"tracking.uri={tracking_uri}")
    screen = screen_for(read_config(folder.config), as_json)
    finish(go_on(folder, overrides, home=home, screen=screen), as_json)


@cli.command(short_help="Send to MLflow what it has not got.", epilog=RUN_HELP)
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Every run of this mlruns folder; the default without RUN.")
@tracking_option
@json_option
def sync(run: str | None, everything: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Send to MLflow what it has not got, and mark runs whose process died. May be repeated."""
    from ..storage.home import find_home
    from ..tracking.store import local_folder, run_folders
    from ..tracking.sync import sync as send

    home = find_home(writes=True)
    folders = [local_folder(home, run)] if run and not everything else run_folders(home)
    reports = send(folders, home=home, setting=tracking_uri)
    if as_json:
        say(json.dumps(reports, indent=2))
    told = None
    for report in () if as_json else reports:
        text = report["error"] or f"{report['sent']} events sent"
        text, told = "as above" if report["error"] and text == told else text, text
        say_lines([f"{report['run_name']:<24} {report['state']:<32} {text}"])
    if not reports and not as_json:
        say(f"no runs in {home / 'runs'}")
    sys.exit(6 if any(report["error"] for report in reports) else 0)


@cli.command(short_help="Pack pictures in folders into a file for data=npz.")
@click.argument("folder")
@click.argument("file")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Stretch every picture to this size, in pixels.")
def pack(folder: str, file: str, size: str | None) -> None:
    """Pack pictures in folders, PNG or JPEG, into FILE.npz, which data=npz reads.

    \b
    FOLDER/train/CLASS/*.png, FOLDER/test/CLASS/*.png    splits as they are; FOLDER/val/CLASS/*.png if there is one
    FOLDER/CLASS/*.png                                   a fifth of each class becomes the test split

    The names of the classes, sorted (2 before 10), become the labels 0, 1, ...; training images are shuffled. What is
    left out is listed by kind: other files, and pictures in folders inside a class.
    """

    from ..data.pack import pack as make
    from ..data.pack import report_lines
    from ..views.screen import reading

    say_lines(report_lines(make(Path(folder), Path(file), size, progress=reading)))


@cli.command(short_help="The MLflow page of this store.")
@click.option(
    "--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Another is taken if it is in use."
)
@tracking_option
def ui(port: int, tracking_uri: str | None) -> None:
    """The MLflow page of this store, on 127.0.0.1; Ctrl-C ends it."""
    from ..storage.home import find_home
    from ..tracking.server import serve
    from ..tracking.store import resolve_uri

    home = find_home(writes=True)
    sys.exit(serve(resolve_uri(tracking_uri, home), port, home))


for verb in VERBS:
    cli.add_command(verb)


class Terminated(BaseException):
    """SIGTERM or SIGHUP where nothing needs saving; a run in progress has its own way."""


def _terminate(number: int, _: object) -> NoReturn:
    raise Terminated(number)


def main() -> NoReturn:
    """Run the command; a user's mistake is one line, never a traceback."""
    open_streams()
    begin_again_in_utf8()
    os.environ["PYTHONSAFEPATH"] = "1"  # what we start (MLflow's server, workers) takes no mlflow.py of this folder
    signals.second_leaves_at_once = True
    for number in signals.heard():
        if number != signal.SIGINT:  # Python's own is KeyboardInterrupt
            signal.signal(number, _terminate)
    try:
        refuse_windows()
        cli.main(standalone_mode=False)
        code = 0
    except BestrunError as error:
        code = _complain(str(error), error.exit_code)
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        code = _complain(error.format_message() + hint, 2)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted", 130)
    except Terminated as terminated:
        code = _complain("terminated", 128 + terminated.args[0])
    except BrokenPipeError:  # `bestrun runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a full disk, a missing right; that of a run names what to do, and is a BestrunError
        code = _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    close_streams()
    gc.freeze()  # spares the interpreter, on its way out, two thirds of a second of looking through MLflow's objects
    sys.exit(code)


def open_streams() -> None:
    """See that stdin, stdout and stderr are open, and take any text.

    Else the first file that is opened would be one of them, and what is printed would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="backslashreplace")  # a path with an ü where the terminal has no ü


def close_streams() -> None:
    """Let go of what a stream could not take: Python would try again at its exit, and end with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def begin_again_in_utf8() -> None:
    """Under LC_ALL=C with PYTHONUTF8=0, file names are ASCII to Python, and MLflow fails at the first ü in a path."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _complain(message: str, code: int) -> int:
    for line in message.splitlines():
        say(f"error: {line}", err=True)
    return code
