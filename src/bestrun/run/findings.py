"""What `bestrun check` finds: a line each, OK, WARN or FAILED, with what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..errors import BestrunError
from ..formatting import mask_uri
from ..terminal import one_line

OK, WARN, FAILED = "OK", "WARN", "FAILED"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: settings, data, labels, duplicates, folder, locks, disk, server, network, training, speed, memory, room,
            device, kills, outage or one batch.
        state: OK, WARN or FAILED.
        said: what was found.
        remedy: what to do; empty where there is nothing to do.
    """

    check: str
    state: str
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<7} {self.check:<10} {one_line('; '.join(filter(None, (self.said, self.remedy))))}"


def failed(check: str, message: str, state: str = FAILED) -> Finding:
    """A message of ours as a finding: what it says to type stands behind its last semicolon."""
    said, _, remedy = message.rpartition("; ")
    return Finding(check, state, said or message, remedy if said else "")


def looked(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a look finds; whatever it raises is a finding that FAILED."""
    try:
        yield from look()
    except BestrunError as error:
        for line in str(error).splitlines():
            yield failed(check, line)
    except OSError as error:
        yield Finding(check, FAILED, f"{error.filename or 'input or output'}: {error.strerror or error}", "mend that")
    except Exception as error:  # code of one's own may raise anything
        lines = mask_uri(str(error)).splitlines() or ["no message"]
        yield Finding(check, FAILED, f"{type(error).__name__}: {lines[0][:300]}", "mend that")
