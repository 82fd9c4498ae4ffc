"""bestrun pack: pictures in folders into a file."""

import os
from pathlib import Path

import click

from ..terminal import say_lines


@click.command(short_help="Pack pictures in folders into a file for data=npz.")
@click.argument("folder")
@click.argument("file")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Bring every picture to this size, in pixels.")
@click.option(
    "--fit",
    type=click.Choice(["stretch", "crop", "pad"]),
    default="stretch",
    help="How: stretched (the default), cropped to it from the middle, or padded with black.",
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="Grey or colour; else grey if all pictures are.")
@click.option(
    "--damaged",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    help="What becomes of a picture that cannot be read: nothing is written (the default), or it is left out.",
)
@click.option("--test-size", type=float, default=0.2, metavar="SHARE", help="Of each class, to test; 0.2 if not given.")
@click.option("--validation-size", type=float, metavar="SHARE", help="Of the rest of each class, to validate.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, metavar="N", help="Draws them; 0 if not given.")
def pack(
    folder: str,
    file: str,
    size: str | None,
    fit: str,
    channels: str | None,
    damaged: str,
    test_size: float,
    validation_size: float | None,
    seed: int,
) -> None:
    """Pack pictures in folders into FILE.npz, which data=npz reads: PNG, JPEG, WebP, BMP, GIF (the first), TIFF.

    \b
    FOLDER/train/CLASS/*, FOLDER/test/CLASS/*    splits as they are; FOLDER/val/CLASS/* if there is one
    FOLDER/CLASS/*                               a fifth of each class becomes the test split

    The names of the classes, sorted (2 before 10), become the labels 0, 1, ...; training images are shuffled; folders
    inside a class count as that class. What is left out is listed by kind. data=folder trains on the same folders
    without a file; with --validation-size 0.1 this one holds the very images that data=folder has.
    """

    from ..data.pack import LOOK, report_lines
    from ..data.pack import pack as make
    from ..data.pictures import Look
    from ..views.screen import reading

    look = Look(size, fit, int(channels) if channels else None, damaged, LOOK.typed)
    places = Path(os.path.expanduser(folder)), Path(os.path.expanduser(file))
    packed = make(*places, look, test_size=test_size, validation_size=validation_size, seed=seed, progress=reading)
    say_lines(report_lines(packed))
