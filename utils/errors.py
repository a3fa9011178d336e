"""The errors a user can cause, and the exit status each one ends a program with.

Every message says what is wrong (with the value found), where (file, key or
image) and what to do about it. Entry points print the message alone; a
traceback appears only with --debug.
"""


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    what:  the problem, with the value that was found.
    where: file, config key or image it was found in (optional).
    fix:   what to do about it (optional).
    """

    exit_status = 1

    def __init__(self, what: str, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = str(what), where, fix
        super().__init__(str(self))

    def __str__(self):
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    @property
    def in_one_line(self) -> str:
        """What is wrong and where, for a list of many such errors."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def __reduce__(self):
        # The default would call the class with the joined message only and
        # lose the parts on the way back from a data worker.
        return type(self), (self.what, self.where, self.fix)


class ConfigError(UserError):
    """The command line or the config file is wrong."""

    exit_status = 2


class DataError(UserError):
    """An image, a label or a dataset folder is wrong."""

    exit_status = 3


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, foreign or does not fit."""

    exit_status = 4


class NumericalError(UserError):
    """A loss or weight is not finite, or a numerical check failed."""

    exit_status = 5


def first_line(error: BaseException) -> str:
    """What an error of another library begins with; the name of its type where it is silent."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
