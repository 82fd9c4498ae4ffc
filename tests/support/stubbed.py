"""The command around a network of three arrays: all of a run but what it computes, in a quarter of the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from support.failing_calls import replace_what_computes
from support.processes import Command, Process, bestrun_command


def stubbed(target: Callable[..., object], *args: object) -> None:
    """`target(*args)` around the three arrays, in a process that `start_process` has started."""
    replace_what_computes()
    target(*args)


class Stubbed(Command):
    """The command `bestrun` around the three arrays; its data are 64 images, so it wants small batches."""

    def start(self, *argv: object, cwd: Path | None = None, env: Mapping[str, str | None] | None = None) -> Process:
        return self.starter(stubbed, bestrun_command, tuple(map(str, argv)), cwd=cwd or self.home, env=env)
