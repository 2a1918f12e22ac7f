"""The errors a user can cause, each with the exit code the command line ends with.

0 done; 1 a mismatch was found; 2 usage or configuration; 3 a file; 4 a missing extra; 70 an internal error, or no memory left;
130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
"""

INTERNAL = 70
"""What nobody caught: never 1, which says that integers differ (the number is EX_SOFTWARE of sysexits.h)."""


class UserError(Exception):
    """Usage or configuration: the message says where, what was expected, what came, and what to do; several faults are a line each."""

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class BadFile(UserError):
    """A file that is missing, damaged or not what it claims to be."""

    exit_code = 3


class MissingExtra(UserError):
    """A feature whose optional dependencies are not installed."""

    exit_code = 4

    def __init__(self, extra: str, feature: str):
        super().__init__(f"{feature} needs the extra '{extra}': {install(extra)}")


def install(extra: str) -> str:
    """The command that adds the optional dependencies to whatever eamsim is installed: a wheel, a checkout or an editable one."""
    return f"pip install 'eamsim[{extra}]'"
