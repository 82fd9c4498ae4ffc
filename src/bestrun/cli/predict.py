"""bestrun predict: classes of pictures."""

from typing import Any

import click

from ..terminal import say_json, say_lines
from .completion import runs_here
from .options import (
    RUN_HELP,
    find_and_fetch,
    json_option,
    local_option,
    lookup_options,
    other_code_option,
)


@click.command("predict", short_help="Classes and probabilities of images.", epilog=RUN_HELP)
@click.argument("run", shell_complete=runs_here)
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

    An IMAGE is a picture (PNG, JPEG, WebP, BMP, GIF, TIFF), or an npz file of many; each is brought to the
    network's size as those that trained it were.
    """
    from ..results.predict import predict, report_lines
    from ..storage.workplace import Workplace
    from ..views.screen import Screen

    with Screen(stderr=as_json).shown(), Workplace() as place:
        fetched = find_and_fetch(run, place, **lookup)
        report = predict(fetched, images, invert=invert, allow_other_code=allow_other_code)
    if as_json:
        say_json(report)
    else:
        say_lines(report_lines(report))
