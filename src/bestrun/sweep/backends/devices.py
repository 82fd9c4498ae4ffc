"""The graphics cards of this machine, and which run of a sweep has which."""

import os
import subprocess
from collections.abc import Sequence

from ...errors import SettingsError
from ...formatting import shown

VARIABLE = "CUDA_VISIBLE_DEVICES"
ASK = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
ASK_SECONDS = 60.0  # a driver that no process uses is loaded first


class Devices:
    """Cards that are given out: each run has its own until it is over.

    Attributes:
        names: all of them, as CUDA_VISIBLE_DEVICES calls them.
        each: how many a run gets; 0: none is given out, and a run sees what its scheduler sees.
    """

    def __init__(self, names: Sequence[str] = (), each: int = 0) -> None:
        self.names, self.each = list(names), each
        self._held: dict[str, list[str]] = {}

    def take(self, run_name: str) -> dict[str, str]:
        """The environment variables that a process for this run is to be born with. The first free cards are taken."""
        if not self.each:
            return {}
        held = {name for names in self._held.values() for name in names}
        self._held[run_name] = [name for name in self.names if name not in held][: self.each]
        return {VARIABLE: ",".join(self._held[run_name])}

    def give_back(self, run_name: str) -> None:
        """The process is gone, and with it what it had on its cards."""
        self._held.pop(run_name, None)


def devices_for(each: int, workers: int) -> Devices:
    """The cards of this machine, for so many runs at once with so many cards each.

    Raises:
        SettingsError: there are fewer.
    """
    names = visible()
    if each * workers <= len(names):
        return Devices(names, each)
    given = os.environ.get(VARIABLE)
    seen = f"{VARIABLE}={shown(given)}" if given is not None else f"as {ASK[0]} says"
    fits = f"sweep.workers={len(names) // each}" if each <= len(names) else f"sweep.gpus={len(names)} sweep.workers=1"
    fits = fits if names else "sweep.gpus=0"
    raise SettingsError(
        f"sweep.gpus={each} sweep.workers={workers}: {each * workers} graphics cards at once, and there are "
        f"{len(names)} here ({seen}); type {fits}"
    )


def visible() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the cards that this process may use: as it says itself, else by their numbers.

    CUDA is not asked: a process in which it was started cannot hand its cards to others any more.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return [str(number) for number in range(_count())]
    names: list[str] = []
    for name in map(str.strip, given.split(",")):
        if not name or name.startswith("-"):  # CUDA takes no notice of what stands behind
            break
        names.append(name)
    return list(dict.fromkeys(names))


def _count() -> int:
    """How many the driver has; 0 where there is none, or it does not answer."""
    try:
        found = subprocess.run(ASK, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return 0 if found.returncode else len(found.stdout.split())
