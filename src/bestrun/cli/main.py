"""The command `bestrun`. Nothing heavy is imported until a verb needs it: help and a settings error come at once."""

import contextlib
import gc
import io
import os
import signal
import sys
import threading
from typing import NoReturn

import click

from .. import __version__, environment, signals
from ..environment import refuse_windows
from ..errors import BestrunError, SettingsError
from ..terminal import say
from .archive import archive
from .cache import cache
from .check import check
from .compare import compare
from .completion import VARIABLE, completion
from .fetch import fetch_files
from .gc import collect
from .move import move
from .pack import pack
from .predict import predict_images
from .register import register
from .report import report
from .rerun import rerun
from .restore import restore
from .resume import resume
from .runs import runs
from .show import show
from .sweep import sweep
from .sync import sync
from .train import train
from .ui import ui
from .verify import verify

EXIT_CODES = """
\b
Exit codes: 0 done; 1 unexpected; 2 bad settings or usage; 3 bad or missing data; 4 diverged;
5 a checkpoint failed verification; 6 finished, but MLflow does not have everything yet;
129, 130 and 143 interrupted (SIGHUP, Ctrl-C, SIGTERM), with everything saved.

\b
Environment: BESTRUN_MLRUNS the mlruns folder; BESTRUN_CONFIG_DIR a folder of your own, as --config-dir;
BESTRUN_NOTIFY an http(s) address that is sent the --json result, by one POST, when a run or a sweep ends.
MLflow's: MLFLOW_TRACKING_URI and its kin; MLFLOW_EXPERIMENT_NAME, MLFLOW_TAGS of new runs; see docs/mlflow.md.
"""


class Verbs(click.Group):
    """What others call a verb, and a setting in a verb's place, are answered with what to type."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from ..settings.synonyms import verb

            if answer := verb(args[0]):
                raise SettingsError(answer) from None
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = {name for parameter in train.params for name in parameter.opts}
            if error.option_name in known:
                raise SettingsError(f"{error.option_name}: a verb comes first; type bestrun train ...") from None
            raise


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Verbs, epilog=EXIT_CODES, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="bestrun")
def cli() -> None:
    """Train an image classifier, keep the best checkpoint, track it in MLflow, survive anything.

    \b
    bestrun train                                 the default experiment: MNIST, two convolutions
    bestrun train optimizer.learning_rate=1e-3    the same with another setting
    bestrun check                                 before the night: whatever would stop it, tried first
    bestrun restore latest                        fetch its best, prove it, test it
    bestrun runs                                  a table of runs, best first
    bestrun ui                                    the MLflow page
    """


VERBS = [archive, cache, check, collect, compare, completion, fetch_files, move, pack, predict_images, register]
VERBS += [report, rerun, restore, resume, runs, show, sweep, sync, train, ui, verify]
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
    environment.is_command = True
    for number in signals.heard():
        if number != signal.SIGINT:  # Python's own is KeyboardInterrupt
            signal.signal(number, _terminate)
    try:
        refuse_windows()
        cli.main(standalone_mode=False, complete_var=VARIABLE)
        code = 0
    except BestrunError as error:
        code = _complain(str(error), error.exit_code)
    except click.ClickException as error:
        code = _complain(_usage(error), 2)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except SystemExit as end:  # of a verb that has said all itself
        code = int(end.code or 0)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted", 130)
    except Terminated as terminated:
        code = _complain("terminated", 128 + terminated.args[0])
    except BrokenPipeError:  # `bestrun runs | head`
        code = 0
    except OSError as error:  # a full disk, a missing right; that of a run names what to do, and is a BestrunError
        code = _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    close_streams()
    if "bestrun.tracking.background" in sys.modules:
        _end_within(10, code)
    gc.freeze()  # spares the interpreter, on its way out, two thirds of a second of looking through MLflow's objects
    sys.exit(code)


def _end_within(seconds: float, code: int) -> None:
    """End this process by then: all is on disk and all is said. On its way out Python waits for threads of libraries
    that are in the middle of an upload which nobody answers, Amazon's for minutes.
    """
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    timer.start()


def _usage(error: click.ClickException) -> str:
    """What click refuses, on one line; a setting of others that was typed as an option, with what to type."""
    if not isinstance(error, click.UsageError) or not error.ctx:
        return error.format_message()
    if isinstance(error, click.NoSuchOption) and error.ctx.command in (resume, rerun):
        from ..settings.synonyms import ELSEWHERE, flag

        if answer := flag(error.option_name, ELSEWHERE):
            return answer
    return f"{error.format_message()} (see {error.ctx.command_path} --help)"


def open_streams() -> None:
    """See that stdin, stdout and stderr are open, and take any text.

    Else the first file that is opened would be one of them, and what is printed would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(opened, True)  # what we start, such as MLflow's server, prints as well
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
