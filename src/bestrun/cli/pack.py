"""bestrun pack: pictures in folders into a file."""

from pathlib import Path

import click

from ..terminal import say_lines


@click.command(short_help="Pack pictures in folders into a file for data=npz.")
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
