"""Lines on standard output, for as long as somebody reads them."""

import errno
import os
import sys


def say(text: str) -> None:
    """Print a line at once; where that fails, go on: quietly where the reader has ended.

    That is a closed pipe (`head`) or terminal; of any other cause, such as a full disk, standard
    error has one line.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # What is still buffered must go somewhere when the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if error.errno not in (errno.EPIPE, errno.EIO):
            print(f"lion-fast: standard output was lost: {error.strerror}", file=sys.stderr)
