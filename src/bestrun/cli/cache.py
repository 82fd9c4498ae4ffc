"""bestrun cache: what was decoded for data larger than memory."""

import sys

import click

from ..errors import DataError, SettingsError
from ..formatting import ago, text_table
from ..terminal import one_line, say, say_json, say_lines
from .options import json_option, megabytes


@click.command(short_help="What was decoded of data larger than memory: list, verify, clear.")
@click.option("--verify", is_flag=True, help="Read every image and compare its checksum; exit 3 if one is damaged.")
@click.option("--clear", is_flag=True, help="Remove it all; what is needed again is decoded again.")
@click.option("--yes", is_flag=True, help="With --clear: without being asked.")
@json_option
def cache(verify: bool, clear: bool, yes: bool, as_json: bool) -> None:
    """List what is in mlruns/cache: the images that do not stay in memory, decoded once. Runs need none of it to be
    resumed or restored: what is missing, damaged or of another state of its source is decoded again.
    """
    from ..data.cache import FOLDER, listed
    from ..data.cache import clear as clear_all
    from ..storage.home import find_home

    if clear and verify:
        raise SettingsError("--verify --clear: what is cleared need not be verified; type one of them")
    if yes and not clear:
        raise SettingsError("--yes: answers --clear, which was not typed; type bestrun cache --clear --yes")
    home = find_home(writes=clear)
    if clear:
        size = sum(each.bytes for each in listed(home))
        if size and not yes:
            if not sys.stdin.isatty():
                raise SettingsError("--clear: asks first, and nobody is there to answer; type --clear --yes")
            click.confirm(f"Remove {megabytes(size)} from {one_line(str(home / FOLDER))}?", abort=True, err=True)
        freed = clear_all(home)
        say_json({"folder": str(home / FOLDER), "freed": freed}) if as_json else say(f"removed   {megabytes(freed)}")
        return
    told = (lambda path: say(f"reading {path}", err=True)) if verify else (lambda path: None)
    files = listed(home, verify=verify, told=told)
    if as_json:
        say_json({"folder": str(home / FOLDER), "files": [vars(each) | {"path": str(each.path)} for each in files]})
    elif files:
        rows = [["size", "images", "used", "source", ""]]
        for each in files:
            state = each.problem or ("verified" if verify else "")
            rows.append([megabytes(each.bytes), f"{each.images:,}", ago(each.used_ms), each.source or "?", state])
        say_lines([*text_table(rows, right={0, 1}), "", f"folder    {home / FOLDER}"])
    else:
        say(f"nothing in {home / FOLDER}: no data was larger than an eighth of the memory, see data.in_memory")
    damaged = [each for each in files if each.problem]
    if verify and damaged:
        raise DataError(f"{damaged[0].path}: not as it was written; type bestrun cache --clear, it is decoded again")
