"""The errors a user can cause, each with the exit code the command line ends with."""


class UserError(Exception):
    """Usage or configuration: the message says where, what was expected, what came, and what to do."""

    exit_code = 2


class BadFile(UserError):
    """A file that is missing, damaged or not what it claims to be."""

    exit_code = 3


class MissingExtra(UserError):
    """A feature whose optional dependencies are not installed."""

    exit_code = 4

    def __init__(self, extra: str, feature: str):
        super().__init__(f"{feature} needs the extra '{extra}': pip install '.[{extra}]' in the checkout")
