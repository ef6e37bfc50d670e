"""``python -m pellucid``, and what the command ``pellucid`` calls.

Until the command line runs, and after it, Ctrl-C ends the process at once, without a traceback: there is nothing to
undo. Python's own start, some hundredths of a second before the first line of this file, is out of our hands.
"""

import _signal  # type: ignore[import-not-found]  # ``signal`` takes longer to import than all this
import os
import sys


def _leave(*_: object) -> None:
    os._exit(130)


# Not where the system was told to ignore it, as for what runs in the background.
_HANDLED = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _HANDLED:
    _signal.signal(_signal.SIGINT, _leave)


def main() -> int:
    """The command line. Returns the exit code."""
    try:
        from pellucid.cli.main import main as command_line

        if _HANDLED:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        return command_line()
    except KeyboardInterrupt:
        return 130
    finally:
        if _HANDLED:
            _signal.signal(_signal.SIGINT, _leave)


if __name__ == "__main__":
    sys.exit(main())
