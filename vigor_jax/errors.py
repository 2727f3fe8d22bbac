"""The one exception that means "what you gave is wrong"."""


class InputError(ValueError):
    """A config, file, folder or argument that the user gave cannot be used.

    The message is one line that says what was expected, what was found, where, and how to mend it. Commands print
    it to stderr without a traceback and exit with code 2; every other exception is a defect and keeps its traceback.
    """
