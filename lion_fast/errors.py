"""The one exception that means: the user can fix this."""


class UserError(ValueError):
    """Bad input. The message is one line that names the offending value and the remedy.

    The command line prints it without a traceback and exits with code 2. Every other exception is a
    bug and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        # File names and other libraries' messages may hold line breaks.
        super().__init__(" ".join(message.split()))


class OtherData(UserError):
    """A run cannot go on with data that it was not trained on."""


class SaidElsewhere(UserError):
    """Bad input that another process of the same run reports: this one ends without a word."""
