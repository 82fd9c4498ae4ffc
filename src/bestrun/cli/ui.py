"""bestrun ui: MLflow's page."""

import sys

import click

from .options import tracking_option


@click.command(short_help="The MLflow page of this store.")
@click.option(
    "--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Another is taken if it is in use."
)
@tracking_option
def ui(port: int, tracking_uri: str | None) -> None:
    """The MLflow page of this store, on 127.0.0.1; Ctrl-C ends it."""
    from ..tracking.server import serve
    from ..tracking.store import find_place

    sys.exit(serve(find_place(tracking_uri, writes=True), port))
