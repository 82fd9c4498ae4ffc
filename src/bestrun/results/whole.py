"""Whether a run's folder is whole: its journal a chain, its best checkpoint the one that the journal names."""

from ..errors import UnreadableError, VerificationError
from ..storage.checkpoint import load
from ..storage.folder import RunFolder
from ..storage.history import History
from ..storage.journal import first_unlinked, read_lines
from ..terminal import one_line


def refuse_damaged(folder: RunFolder) -> None:
    """Prove what a folder says of its run.

    Raises:
        VerificationError: it is not so; says what.
    """
    try:
        lines, history = read_lines(folder.journal), History.read(folder.journal)
        if history.started.get("name") != folder.name:
            named = one_line(str(history.started.get("name")))[:80]
            raise VerificationError(f"{folder.journal}: is of run {named!r}; give its folder that name, if it is that")
        if broken := first_unlinked(lines):
            raise VerificationError(f"{folder.journal}: line {broken} does not follow the line before it")
        if best := history.best:
            checkpoint = load(folder.inside(best["checkpoint"]), sha256=best["sha256"])
            if checkpoint.run_name != folder.name:
                raise VerificationError(f"{checkpoint.path}: is of run {checkpoint.run_name[:80]!r}")
    except (UnreadableError, VerificationError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError(f"{folder.journal}: is no journal of a run: {error!r}") from error
