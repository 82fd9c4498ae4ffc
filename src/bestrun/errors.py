"""What can go wrong, each with the exit code of the command that meets it.

A message is for the person who typed the command: what was given, what is allowed, what to type next.
"""


class BestrunError(Exception):
    """Something the user can mend; shown as its message alone, never as a traceback."""

    exit_code = 1


class SettingsError(BestrunError):
    """A setting or an argument is wrong. Each argument of the exception is one line of the message."""

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(str(line) for line in self.args)


class DataError(BestrunError):
    """A data file is missing, damaged, or not what its name promises."""

    exit_code = 3


class DivergedError(BestrunError):
    """The loss became NaN or infinite."""

    exit_code = 4


class VerificationError(BestrunError):
    """A checkpoint or artifact is not what was written."""

    exit_code = 5


class UnreadableError(VerificationError):
    """A file that is there could not be read: what stands in it is not known, and nothing may be taken for granted."""
