"""bestrun register: MLflow's model registry."""

from typing import Any

import click

from ..terminal import say, say_json
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_and_fetch,
    json_option,
    lookup_options,
    other_code_option,
)


@click.command(short_help="Put the proved best into MLflow's model registry.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
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
    from ..storage.home import settle
    from ..storage.reference import check_reference
    from ..storage.workplace import Workplace
    from ..tracking.store import connect, find_place, reaching
    from ..training.proof import Function, words_of

    registry.check_names(name, alias)
    check_reference(run)
    where = find_place(lookup["tracking_uri"], writes=True)
    settle(where.home)
    with Workplace() as place, reaching(where.uri):
        fetched = find_and_fetch(run, place, **lookup)
        store = connect(where.uri, create=False)
        report = registry.register(fetched, store, name=name, alias=alias, allow_other_code=allow_other_code)
    if as_json:
        say_json(report)
        return
    step, verified = report["checkpoint"]["step"], words_of(Function(**report["function"]))
    say(f"{report['uri']} is version {report['version']}: run {report['run_name']}, step {step:,}, {verified}")
    uri = mask_uri(where.uri)
    say(f"serve it  MLFLOW_TRACKING_URI={uri} mlflow models serve -m {report['uri']} --env-manager local")
