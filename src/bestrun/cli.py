"""The command `bestrun`. Nothing heavy is imported until a verb needs it: help and a settings error come at once."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from . import __version__
from .errors import BestrunError, SettingsError

EXIT_CODES = """
\b
Exit codes: 0 done; 1 unexpected; 2 bad settings or usage; 3 bad or missing data; 4 diverged;
5 a checkpoint failed verification; 6 finished, but MLflow does not have everything yet;
130 and 143 interrupted, with everything saved.
"""

RUN_HELP = """
\b
RUN is a run ID (or 8 and more of its first characters), a run name, `latest`, `best`
(the best finished run by its objective), or NAME@ALIAS of a registered model.
"""

tracking_option = click.option(
    "--tracking-uri", metavar="URI", help="Where MLflow is; else MLFLOW_TRACKING_URI, else SQLite in mlruns/."
)
experiment_option = click.option("--experiment", metavar="NAME", help="Look only in this experiment.")
objective_option = click.option(
    "--objective", type=click.Choice(["val/accuracy", "val/loss"]), help="Which objective `best` goes by."
)
sweep_option = click.option("--sweep", metavar="NAME", help="Look only among the runs of this sweep.")
local_option = click.option(
    "--local", is_flag=True, help="Take the checkpoint from the run folder; MLflow is not asked for it."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, for programs.")


def lookup_options(verb: Callable[..., None]) -> Callable[..., None]:
    """How a RUN is looked up; the verb gets it as keyword arguments for `_fetch` or `_records`."""
    for option in (objective_option, sweep_option, experiment_option, tracking_option):
        verb = option(verb)
    return verb


def _fetch(run: str, to: Any, tracking_uri: str | None, **lookup: Any) -> Any:
    from .folder import find_home
    from .restore import fetch
    from .tracking import resolve_uri

    home = find_home()
    return fetch(run, home=home, uri=resolve_uri(tracking_uri, home), to=to, **lookup)


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


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
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
    from .compose import compose, settings_help
    from .config import to_yaml

    if wants_help:
        click.echo(click.get_current_context().get_help())
        click.echo()
        click.echo(settings_help())
        return
    if multirun:
        _sweep(overrides, cfg, as_json)
    composed = compose(list(overrides))
    if cfg:
        click.echo(to_yaml(composed.config), nl=False)
        return
    from .folder import find_home
    from .run import start

    home, config = find_home(), composed.config
    result = start(composed, home=home, screen=_screen(config, as_json))
    _finish(result, as_json)


def _sweep(overrides: tuple[str, ...], cfg: str | None, as_json: bool) -> NoReturn:
    import yaml

    from .config import mask_uri
    from .folder import find_home
    from .space import plan

    if cfg:
        planned = plan(overrides)
        described = planned.says() | {"overrides": list(map(mask_uri, planned.base)), "trials": planned.points}
        click.echo(yaml.safe_dump(described, sort_keys=False), nl=False)
        sys.exit(0)
    from .sweep import run_sweep

    outcome = run_sweep(overrides, home=find_home(), stderr=as_json)
    if as_json:
        click.echo(json.dumps(outcome.summary, indent=2))
    sys.exit(outcome.exit_code)


def _screen(config: Any, as_json: bool) -> Any:
    from .screen import Screen

    training = config.training
    return Screen(total_steps=training.max_steps, batch_size=training.batch_size, stderr=as_json)


def _finish(result: Any, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps({key: value for key, value in vars(result).items() if key != "exit_code"}, indent=2))
    sys.exit(result.exit_code)


@cli.command(epilog=RUN_HELP)
@click.argument("run", required=False)
@click.argument("overrides", nargs=-1)
@tracking_option
@json_option
def resume(run: str | None, overrides: tuple[str, ...], tracking_uri: str | None, as_json: bool) -> None:
    """Go on with a run: the same run ID, the same curve, the very same result.

    Without RUN: the latest interrupted one. A finished run is trained further with a later end:

    \b
    bestrun resume RUN training.max_steps=20000
    """
    from .compose import read_config
    from .folder import find_home
    from .resume import choose
    from .resume import resume as go_on
    from .tracking import resolve_uri

    words = [run, *overrides] if run else []
    if run and "=" in run:  # no RUN, settings only
        run = None
    overrides = tuple(words[1:] if run else words)
    home = find_home()
    folder = choose(home, resolve_uri(tracking_uri, home), run)
    if tracking_uri:
        overrides = (*overrides, f"tracking.uri={tracking_uri}")
    screen = _screen(read_config(folder.config), as_json)
    _finish(go_on(folder, overrides, home=home, screen=screen), as_json)


@cli.command(epilog=RUN_HELP)
@click.argument("run")
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
@lookup_options
@json_option
def restore(
    run: str,
    overrides: tuple[str, ...],
    checkpoint: str,
    out: str | None,
    allow_other_data: bool,
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
    from . import plots
    from .folder import find_home
    from .restore import Workplace, dumps, keep, report_lines
    from .restore import restore as prove
    from .screen import Screen

    with Screen(stderr=as_json).shown(), Workplace(out) as place:
        fetched = _fetch(run, place, last=checkpoint == "last", **lookup)
        if out:
            fetched = replace(fetched, path=str(place / keep(fetched, place)[0]))
        report = prove(
            fetched,
            home=find_home(),
            tracking_uri=lookup["tracking_uri"],
            out=place,
            data_overrides=overrides,
            allow_other_data=allow_other_data,
        )
        if as_json:
            click.echo(dumps(report))
            return
        import numpy as np

        for line in report_lines(report, plots.confusion_matrix_text(np.array(report["confusion_matrix"]))):
            click.echo(line)
        click.echo(
            f"\nkept in {out}" if out else "\npictures are in the run's MLflow artifacts; --out DIR keeps them here"
        )


@cli.command("fetch", epilog=RUN_HELP)
@click.argument("run")
@click.option("--out", metavar="DIR", required=True, type=click.Path(file_okay=False), help="A new or empty folder.")
@local_option
@lookup_options
@json_option
def fetch_files(run: str, out: str, as_json: bool, **lookup: Any) -> None:
    """Get a run's best checkpoint, its settings, and a model.keras that needs none of our code."""
    from .export import delivered, keras_lines, write_keras
    from .restore import dumps, identity, keep

    with delivered(Path(out)) as place:
        fetched = _fetch(run, place, **lookup)
        files = [*keep(fetched, place), "model.keras"]
        write_keras(fetched, place / files[-1])
    if as_json:
        click.echo(dumps(identity(fetched) | {"out": out, "files": files}))
        return
    click.echo(f"{fetched.run_name}, step {fetched.checkpoint.state.step:,}, verified; in {out}: {', '.join(files)}\n")
    click.echo("\n".join(keras_lines(fetched, Path(out) / "model.keras")))


@cli.command("predict", epilog=RUN_HELP)
@click.argument("run")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--invert", is_flag=True, help="White becomes black: for dark digits on white paper.")
@local_option
@lookup_options
@json_option
def predict_images(run: str, images: tuple[str, ...], invert: bool, as_json: bool, **lookup: Any) -> None:
    """Classes and probabilities of images, with a run's best checkpoint.

    An IMAGE is a PNG, a JPEG, or an npz file of many; each is scaled to what the network takes.
    """
    from .predict import predict, report_lines
    from .restore import Workplace, dumps
    from .screen import Screen

    with Screen(stderr=as_json).shown(), Workplace(None) as place:
        report = predict(_fetch(run, place, **lookup), images, invert=invert)
    click.echo(dumps(report) if as_json else "\n".join(report_lines(report)))


@cli.command(epilog=RUN_HELP)
@click.argument("run")
@click.option("--name", required=True, metavar="NAME", help="Of the registered model; made if it is new.")
@click.option("--alias", required=True, metavar="ALIAS", help="What others load it by: models:/NAME@ALIAS.")
@lookup_options
@json_option
def register(run: str, name: str, alias: str, as_json: bool, **lookup: Any) -> None:
    """Put a run's best checkpoint, once it is proved, into MLflow's registry as a model that others can load.

    \b
    bestrun register best --name digits --alias champion
    mlflow models serve -m models:/digits@champion --env-manager local
    """
    from . import registry
    from .config import mask_uri
    from .folder import find_home
    from .restore import Workplace, dumps
    from .tracking import connect, reaching, resolve_uri

    registry.check_names(name, alias)
    uri = resolve_uri(lookup["tracking_uri"], find_home())
    with Workplace(None) as place, reaching(uri):
        fetched = _fetch(run, place, **lookup)
        report = registry.register(fetched, connect(uri, create=False), name=name, alias=alias)
    if as_json:
        click.echo(dumps(report))
        return
    step = report["checkpoint"]["step"]
    click.echo(f"{report['uri']} is version {report['version']}: run {report['run_name']}, step {step:,}, verified")
    click.echo(
        f"serve it  MLFLOW_TRACKING_URI={mask_uri(uri)} mlflow models serve -m {report['uri']} --env-manager local"
    )


@cli.command()
@click.option(
    "--most", default=20, show_default=True, type=click.IntRange(1, 10_000), help="So many runs of each objective."
)
@click.option("--filter", metavar="FILTER", help="Only these runs, in MLflow's language, as above.")
@click.option("--sort", metavar="NAME[:asc|:desc]", help="By a metric or `started`; all objectives in one list.")
@click.option("--columns", metavar="A,B,...", help="These instead; also metrics, settings, and tags.NAME.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets and scripts.")
@experiment_option
@sweep_option
@tracking_option
@json_option
def runs(columns: str | None, as_csv: bool, as_json: bool, tracking_uri: str | None, **wanted: Any) -> None:
    """A table of runs, best first; runs with different objectives are mixed only where --sort says by what.

    \b
    bestrun runs --filter 'metrics."best/accuracy" > 0.98 and params.seed = "1"'
    bestrun runs --sort images_per_second --columns run,images_per_second,training.batch_size,tags.author
    bestrun runs --csv | head
    """
    from . import table
    from .folder import find_home
    from .listing import FIELDS, check_columns, list_runs
    from .listing import as_json as rows_as_json
    from .tracking import connect, reaching, resolve_uri

    if as_json and as_csv:
        raise SettingsError("--json --csv: only one of them can stand on stdout")
    named = list(dict.fromkeys(name.strip() for name in (columns or "").split(",") if name.strip()))
    uri = resolve_uri(tracking_uri, find_home())
    with reaching(uri):
        store = connect(uri, create=False)
        rows = list_runs(store, **wanted)
        check_columns(store, rows, named)
    if as_json:
        table.write(json.dumps(rows_as_json(rows, named or FIELDS), indent=2))
    elif as_csv:
        table.write(table.as_csv(rows, named or FIELDS))
    elif rows:
        columns_shown = named or table.usual_columns(wanted["sort"])
        table.write("\n".join(table.lines(rows, columns_shown, table.terminal_width())))
    elif wanted["filter"] or wanted["sweep"] or wanted["experiment"]:
        click.echo("no such runs; all of them: bestrun runs")
    else:
        click.echo("no runs yet; the first is made by: bestrun train")


@cli.command(epilog=RUN_HELP)
@click.argument("run")
@lookup_options
@json_option
def show(run: str, as_json: bool, **where: str | None) -> None:
    """What a run was, how it went, why it stopped, where everything is."""
    from . import show as told

    (record,) = _records((run,), **where)
    click.echo(json.dumps(told.as_json(record), indent=2) if as_json else "\n".join(told.lines(record)))


@cli.command(epilog=RUN_HELP)
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@lookup_options
@json_option
def compare(runs: tuple[str, ...], as_json: bool, **where: str | None) -> None:
    """Runs side by side: their best, the settings that differ, code, data, versions, and who confuses what."""
    from . import compare as compared

    records = _records(runs, **where)
    found = compared.comparison(records)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(compared.lines(records, found)))


@cli.command(epilog=RUN_HELP)
@click.argument("runs", metavar="RUN... [data.path=FILE]", nargs=-1)
@click.option(
    "--out", metavar="FILE.html", type=click.Path(dir_okay=False), help="Else report-NAME.html in this folder."
)
@lookup_options
def report(runs: tuple[str, ...], out: str | None, **where: str | None) -> None:
    """One HTML file, to send and to print: results, curves, confusions, errors, and on what runs disagree.

    \b
    bestrun report best                        one run
    bestrun report RUN RUN data.path=FILE      several; says where their data is on this machine
    bestrun report --sweep NAME                a sweep: its trials, what mattered, its best runs
    """
    from . import report as told
    from .folder import find_home, write_atomically
    from .manifest import read_manifest
    from .screen import Screen
    from .tracking import resolve_uri

    references = tuple(word for word in runs if "=" not in word)
    overrides = [word for word in runs if "=" in word]
    if not references and not where["sweep"]:
        raise SettingsError("report: takes one RUN or several, or --sweep NAME; list them: bestrun runs, bestrun sweep")
    home = find_home()
    uri, records = resolve_uri(where["tracking_uri"], home), _records(references, **where)
    manifest = None if records else read_manifest(home, str(where["sweep"]))
    path = Path(out or told.file_name(records, where["sweep"]))
    if not path.parent.is_dir():
        raise SettingsError(f"--out {path}: there is no folder {path.parent}; make it, or name a file in another")
    with Screen(stderr=True).shown():
        if manifest:
            document = told.of_sweep(manifest, overrides, home=home, uri=uri)
        else:
            document = told.of_runs(records, overrides, home=home, uri=uri)
    write_atomically(path, document)
    click.echo(f"{path}  {len(document) / 1e6:.2f} MB")


def _records(references: tuple[str, ...], tracking_uri: str | None, **lookup: str | None) -> list[Any]:
    from .folder import find_home
    from .record import find_record
    from .tracking import resolve_uri

    home = find_home()
    uri = resolve_uri(tracking_uri, home)
    return [find_record(reference, home=home, uri=uri, **lookup) for reference in references]


@cli.command(epilog=RUN_HELP)
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option("--allow-other-data", is_flag=True, help="Train although the data is not what that run was trained with.")
@lookup_options
@json_option
def rerun(run: str, overrides: tuple[str, ...], allow_other_data: bool, as_json: bool, **where: str | None) -> None:
    """The same settings as a new run; says first what differs: code, data, versions.

    \b
    bestrun rerun RUN                  on the same machine and code: the same result, bit by bit
    bestrun rerun RUN seed=1           with other settings
    """
    from .folder import find_home
    from .rerun import rerun as again

    (record,) = _records((run,), **where)
    screen = _screen(record.config, as_json)
    _finish(again(record, overrides, home=find_home(), screen=screen, allow_other_data=allow_other_data), as_json)


@cli.command()
@click.argument("name", required=False)
@json_option
def sweep(name: str | None, as_json: bool) -> None:
    """What a sweep came to so far: its trials best first, cost, importances. Without NAME: all sweeps."""
    from .board import report_lines
    from .folder import find_home
    from .manifest import read_manifest, sweep_names
    from .summary import summary

    home = find_home()
    found = [read_manifest(home, each) for each in ([name] if name else sweep_names(home))]
    if as_json:
        reports = [summary(manifest) for manifest in found]
        click.echo(json.dumps(reports[0] if name else reports, indent=2))
    elif name:
        click.echo("\n".join(report_lines(summary(found[0]))).lstrip("\n"))
    for manifest in () if as_json or name else found:  # a line each, for which no importances are computed
        count = ", ".join(f"{number} {state}" for state, number in sorted(manifest.count().items()) if number)
        click.echo(f"{manifest.name:<24} {manifest.line['kind']:<6} {count}")
    if not found and not as_json:
        click.echo("no sweeps yet; the first is made by: bestrun train -m optimizer.learning_rate=1e-4,1e-3")


@cli.command(epilog=RUN_HELP)
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Every run of this mlruns folder; the default without RUN.")
@tracking_option
@json_option
def sync(run: str | None, everything: bool, tracking_uri: str | None, as_json: bool) -> None:
    """Send to MLflow what it has not got, and mark runs whose process died. May be repeated."""
    from .folder import find_home
    from .sync import sync as send
    from .tracking import local_folder, run_folders

    home = find_home()
    folders = [local_folder(home, run)] if run and not everything else run_folders(home)
    reports = send(folders, home=home, setting=tracking_uri)
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    for report in () if as_json else reports:
        text = report["error"] or f"{report['sent']} events sent"
        click.echo(f"{report['run_name']:<24} {report['state']:<32} {text}")
    if not reports and not as_json:
        click.echo(f"no runs in {home / 'runs'}")
    sys.exit(6 if any(report["error"] for report in reports) else 0)


@cli.command()
@click.argument("folder")
@click.argument("file")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Stretch every picture to this size, in pixels.")
def pack(folder: str, file: str, size: str | None) -> None:
    """Pack pictures in folders, PNG or JPEG, into FILE.npz, which data=npz reads.

    \b
    FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png    both splits as they are
    FOLDER/CLASS/*.png                                      a fifth of each class becomes the test split

    The names of the classes, sorted, become the labels 0, 1, ...; training images are shuffled.
    """
    from pathlib import Path

    from .pack import pack as make
    from .pack import report_lines

    click.echo("\n".join(report_lines(make(Path(folder), Path(file), size))))


@cli.command()
@click.option(
    "--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Another is taken if it is in use."
)
@tracking_option
def ui(port: int, tracking_uri: str | None) -> None:
    """The MLflow page of this store, on 127.0.0.1; Ctrl-C ends it."""
    from .folder import find_home
    from .tracking import resolve_uri
    from .ui import serve

    home = find_home()
    sys.exit(serve(resolve_uri(tracking_uri, home), port))


class Terminated(BaseException):
    """SIGTERM where nothing needs saving; a run in progress has its own way."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def main() -> NoReturn:
    """Run the command; a user's mistake is one line, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
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
    except Terminated:
        code = _complain("terminated", 143)
    except BrokenPipeError:  # `bestrun runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a full disk, a missing right; that of a run names what to do, and is a BestrunError
        code = _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    return code
