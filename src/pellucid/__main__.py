"""The entry point of ``python -m pellucid`` and of the command ``pellucid``.

Before and after the command line runs, Ctrl-C ends the process immediately and without a traceback, because there is
nothing to clean up. Python's own startup, some hundredths of a second before the first line of this file, is out of our
control.
"""

import _signal  # type: ignore[import-not-found]  # importing ``signal`` takes longer than this whole file
import gc
import os
import sys

GARBAGE = 200_000  # new objects before the garbage collector scans the youngest generation
"""Python's default is some hundred: 230 collections before a model's first answer, which free nothing."""

# Importing NumPy starts OpenBLAS's threads, one for each core, and they first spin. Steps have their own threads, and
# NumPy does only little work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _exit_on_interrupt(*_: object) -> None:
    os._exit(130)


# Leave the signal alone if it is ignored, as in background processes.
_HANDLED = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _HANDLED:
    _signal.signal(_signal.SIGINT, _exit_on_interrupt)


def main() -> int:
    """Run the command line. Returns the exit code."""
    gc.set_threshold(GARBAGE)
    try:
        from pellucid.cli.main import main as command_line

        if _HANDLED:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        return command_line()
    except KeyboardInterrupt:
        return 130
    finally:
        if _HANDLED:
            _signal.signal(_signal.SIGINT, _exit_on_interrupt)
        gc.freeze()  # else the interpreter's exit scans all objects for garbage: 70 ms for a loaded model


if __name__ == "__main__":
    sys.exit(main())
