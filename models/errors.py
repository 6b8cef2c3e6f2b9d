"""The root of Driftline's error tree, and the branches that serving and training share.

    DriftlineError              1   anything that a user can put right
    ├── BundleError             4   a model bundle is missing, broken, tampered with or incompatible
    ├── DataError               5   the data to learn from is bad; the message names file and line
    └── MissingExtra            6   an optional dependency is not installed

The number is the exit code of the command that failed. `streams.errors` adds the engine's branches.
"""


class DriftlineError(Exception):
    """An error that a user can put right: its message says what is wrong, where, and what to do next."""

    exit_code: int = 1
    """The exit code of a command that ends with this error."""


class BundleError(DriftlineError):
    """A model bundle is missing, broken, tampered with, or not for this version of Driftline."""

    exit_code = 4


class DataError(DriftlineError):
    """The data to learn from is bad. The message names the file and the line where there are any."""

    exit_code = 5


class MissingExtra(DriftlineError):
    """An optional dependency is not installed.

    Args:
        extra: The extra of the `driftline` distribution that brings it, such as "train".
        module: The module that could not be imported.
    """

    exit_code = 6

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"{module} is not installed, and this command needs it. Run: pip install 'driftline[{extra}]'")
        self.extra = extra
        self.module = module
