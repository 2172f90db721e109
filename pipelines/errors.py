"""The three ways in which a stage refuses to go on; each carries the exit code that `prefloop` ends with."""


class PrefloopError(Exception):
    """An error that a person can mend: one line that says what, where and how. Never retried."""

    code = 1


class DataError(PrefloopError):
    """The data is not what the stage needs (exit code 2)."""

    code = 2


class ConfigurationError(PrefloopError):
    """A parameter is unknown, mistyped or contradicts another (exit code 3)."""

    code = 3


class EnvironmentFault(PrefloopError):
    """The machine lacks something: a package, a port, disk space, memory (exit code 4)."""

    code = 4
