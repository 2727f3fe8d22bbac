"""Bad input, and sidecars that do not answer."""


class InputError(ValueError):
    """A model, file, address or argument cannot be used.

    The message is one line that says what was expected, what was found, where, and how to fix it. Commands print
    it to stderr without a traceback and exit with code 2.
    """


class DetectorError(Exception):
    """No answer could be had: the sidecars cannot be reached, or do not let this client in."""
