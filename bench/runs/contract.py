"""Errors that end a command with one line, apart from all that is heavy to import."""


class ConfigError(Exception):
    """A mistake in a configuration or a command; the message is one line that says what would be right."""


class WorkerError(Exception):
    """A worker process died or raised; one line. Its traceback, where there was one, is on stderr."""
