"""The verbs that look at past runs; main.py has those that make them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import SettingsError
from ..terminal import say, say_lines
from .options import (
    RUN_HELP,
    experiment_option,
    find_and_fetch,
    find_records,
    finish,
    json_option,
    local_option,
    lookup_options,
    other_code_option,
    screen_for,
    sweep_option,
    tracking_option,
)


@click.command(short_help="Fetch the best checkpoint, prove it, evaluate the test split.", epilog=RUN_HELP)
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
    from ..results.restore import dumps, keep, report_lines
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
            say(dumps(report))
            return
        import numpy as np

        say_lines(report_lines(report, curves.confusion_matrix_text(np.array(report["confusion_matrix"]))))
        if out:
            say(f"\nkept in {out}")
        elif report["recorded"]:
            say("\npictures are in the run's MLflow artifacts; --out DIR keeps them here")
        else:
            say("\n--out DIR keeps the pictures")


@click.command("fetch", short_help="Put checkpoint, settings and a model.keras into a folder.", epilog=RUN_HELP)
@click.argument("run")
@click.option("--out", metavar="DIR", required=True, type=click.Path(file_okay=False), help="A new or empty folder.")
@local_option
@other_code_option
@lookup_options
@json_option
def fetch_files(run: str, out: str, allow_other_code: bool, as_json: bool, **lookup: Any) -> None:
    """Get a run's best checkpoint, its settings, and a model.keras that needs none of our code."""
    from ..results.export import FETCHED, is_same_file, keras_lines, write_keras
    from ..results.restore import dumps, identity, keep
    from ..storage.workplace import delivered
    from ..training.proof import words_of

    with delivered(Path(out), FETCHED, is_same_file) as place:
        fetched = find_and_fetch(run, place, **lookup)
        files = [*keep(fetched, place), "model.keras"]
        function = write_keras(fetched, place / files[-1], allow_other_code=allow_other_code)
    if as_json:
        say(dumps(identity(fetched) | {"function": vars(function), "out": out, "files": files}))
        return
    step = fetched.checkpoint.state.step
    say(f"{fetched.run_name}, step {step:,}, {words_of(function)}; in {out}: {', '.join(files)}\n")
    say_lines(keras_lines(fetched, Path(out) / "model.keras"))


@click.command("predict", short_help="Classes and probabilities of images.", epilog=RUN_HELP)
@click.argument("run")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--invert", is_flag=True, help="White becomes black: for dark digits on white paper.")
@local_option
@other_code_option
@lookup_options
@json_option
def predict_images(
    run: str, images: tuple[str, ...], invert: bool, allow_other_code: bool, as_json: bool, **lookup: Any
) -> None:
    """Classes and probabilities of images, with a run's best checkpoint.

    An IMAGE is a PNG, a JPEG, or an npz file of many; each is scaled to what the network takes.
    """
    from ..results.predict import predict, report_lines
    from ..results.restore import dumps
    from ..storage.workplace import Workplace
    from ..views.screen import Screen

    with Screen(stderr=as_json).shown(), Workplace() as place:
        fetched = find_and_fetch(run, place, **lookup)
        report = predict(fetched, images, invert=invert, allow_other_code=allow_other_code)
    if as_json:
        say(dumps(report))
    else:
        say_lines(report_lines(report))


@click.command(short_help="Put the proved best into MLflow's model registry.", epilog=RUN_HELP)
@click.argument("run")
@click.option("--name", required=True, metavar="NAME", help="Of the registered model; made if it is new.")
@click.option("--alias", metavar="ALIAS", help="What others load it by: models:/NAME@ALIAS; else models:/NAME/VERSION.")
@other_code_option
@lookup_options
@json_option
def register(run: str, name: str, alias: str | None, allow_other_code: bool, as_json: bool, **lookup: Any) -> None:
    """Put a run's best checkpoint, once it is proved, into MLflow's registry as a model that others can load.

    \b
    bestrun register best --name digits --alias champion
    mlflow models serve -m models:/digits@champion --env-manager local
    """
    from ..formatting import mask_uri
    from ..results import registry
    from ..results.restore import dumps
    from ..storage.home import find_home, settle
    from ..storage.workplace import Workplace
    from ..tracking.store import check_reference, connect, reaching, resolve_uri
    from ..training.proof import Function, words_of

    registry.check_names(name, alias)
    check_reference(run)
    settle(home := find_home(writes=True))
    uri = resolve_uri(lookup["tracking_uri"], home)
    with Workplace() as place, reaching(uri):
        fetched = find_and_fetch(run, place, **lookup)
        store = connect(uri, create=False)
        report = registry.register(fetched, store, name=name, alias=alias, allow_other_code=allow_other_code)
    if as_json:
        say(dumps(report))
        return
    step, verified = report["checkpoint"]["step"], words_of(Function(**report["function"]))
    say(f"{report['uri']} is version {report['version']}: run {report['run_name']}, step {step:,}, {verified}")
    say(f"serve it  MLFLOW_TRACKING_URI={mask_uri(uri)} mlflow models serve -m {report['uri']} --env-manager local")


@click.command(short_help="A table of runs, best first.")
@click.option(
    "--most", default=20, show_default=True, type=click.IntRange(1, 10_000), help="So many runs of each objective."
)
@click.option("--filter", metavar="FILTER", help="Only these runs, in MLflow's language, as above.")
@click.option("--sort", metavar="NAME[:asc|:desc]", help="By a metric or `started`; all objectives in one list.")
@click.option("--columns", metavar="A,B,...", help="These instead; also metrics, settings, and tags.NAME.")
@click.option("--mine", is_flag=True, help="Only those that I have made, on a server of several people.")
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
    bestrun runs --csv > runs.csv
    """
    from ..storage.home import find_home
    from ..tracking.listing import FIELDS, check_columns, list_runs
    from ..tracking.listing import as_json as rows_as_json
    from ..tracking.store import connect, reaching, resolve_uri
    from . import run_table as table

    if as_json and as_csv:
        raise SettingsError("--json --csv: only one of them can stand on stdout")
    named = list(dict.fromkeys(name.strip() for name in (columns or "").split(",") if name.strip()))
    uri = resolve_uri(tracking_uri, find_home())
    with reaching(uri):
        store = connect(uri, create=False)
        rows = list_runs(store, **wanted)
        check_columns(store, rows, named)
    if as_json:
        say(json.dumps(rows_as_json(rows, named or FIELDS), indent=2))
    elif as_csv:
        say(table.as_csv(rows, named or FIELDS), raw=not sys.stdout.isatty())
    elif rows:
        columns_shown = named or table.usual_columns(wanted["sort"], rows)
        say_lines(table.lines(rows, columns_shown, table.terminal_width()))
    elif wanted["filter"] or wanted["sweep"] or wanted["experiment"] or wanted["mine"]:
        say("no such runs; all of them: bestrun runs")
    else:
        say("no runs yet; the first is made by: bestrun train")


@click.command(short_help="What a run was, how it went, where everything is.", epilog=RUN_HELP)
@click.argument("run")
@lookup_options
@json_option
def show(run: str, as_json: bool, **where: str | None) -> None:
    """What a run was, how it went, why it stopped, where everything is."""
    from ..results import show as told

    (record,) = find_records((run,), **where)
    if as_json:
        say(json.dumps(told.as_json(record), indent=2))
    else:
        say_lines(told.lines(record))


@click.command(short_help="Runs side by side: what differs, and which is better.", epilog=RUN_HELP)
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True)
@lookup_options
@json_option
def compare(runs: tuple[str, ...], as_json: bool, **where: str | None) -> None:
    """Runs side by side: their best, the settings that differ, code, data, versions, and who confuses what."""
    from ..results import compare as compared

    records = find_records(runs, **where)
    found = compared.comparison(records)
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        say_lines(compared.lines(records, found))


@click.command(short_help="Train with a past run's settings anew.", epilog=RUN_HELP)
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
    from ..run.rerun import rerun as again
    from ..storage.home import find_home

    home = find_home(writes=True)
    (record,) = find_records((run,), **where)
    screen = screen_for(record.config, as_json)
    finish(again(record, overrides, home=home, screen=screen, allow_other_data=allow_other_data), as_json)


@click.command(short_help="What a sweep came to: trials, cost, importances.")
@click.argument("name", required=False)
@json_option
def sweep(name: str | None, as_json: bool) -> None:
    """What a sweep came to so far: its trials best first, cost, importances. Without NAME: all sweeps."""
    from ..storage.home import find_home
    from ..sweep.board import report_lines
    from ..sweep.manifest import read_manifest, sweep_names
    from ..sweep.summary import summary

    home = find_home()
    found = [read_manifest(home, each) for each in ([name] if name else sweep_names(home))]
    if as_json:
        reports = [summary(manifest) for manifest in found]
        say(json.dumps(reports[0] if name else reports, indent=2))
    elif name:
        say_lines(report_lines(summary(found[0]))[1:])
    for manifest in () if as_json or name else found:  # a line each, for which no importances are computed
        count = ", ".join(f"{number} {state}" for state, number in sorted(manifest.count().items()) if number)
        say(f"{manifest.name:<24} {manifest.line['kind']:<6} {count}")
    if not found and not as_json:
        say("no sweeps yet; the first is made by: bestrun train -m optimizer.learning_rate=1e-4,1e-3")


@click.command(short_help="One HTML file of runs or of a sweep.", epilog=RUN_HELP)
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
    from ..storage.folder import write_atomically
    from ..storage.home import find_home
    from ..sweep.manifest import read_manifest
    from ..tracking.store import resolve_uri
    from ..views.screen import Screen
    from . import sections as told

    references = tuple(word for word in runs if "=" not in word)
    overrides = [word for word in runs if "=" in word]
    if not references and not where["sweep"]:
        raise SettingsError("report: takes one RUN or several, or --sweep NAME; list them: bestrun runs, bestrun sweep")
    home = find_home()
    uri, records = resolve_uri(where["tracking_uri"], home), find_records(references, **where)
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
    say(f"{path}  {len(document) / 1e6:.2f} MB")


VERBS = [restore, show, compare, runs, sweep, rerun, fetch_files, predict_images, register, report]
