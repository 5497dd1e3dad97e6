"""The command `lion-fast`, also as `python -m lion_fast`: can be stopped from its first import."""

import signal
import sys


def main() -> int:
    """Run the command line; return its exit code. Ctrl-C while it loads ends it without a word."""
    try:
        from lion_fast.output import guard_streams

        # Before any import opens a file, which a closed standard stream would lend its number.
        guard_streams()
        from lion_fast import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
