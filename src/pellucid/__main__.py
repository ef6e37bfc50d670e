"""The entry point of ``python -m pellucid`` and of the command ``pellucid``.

Before and after the command line runs, Ctrl-C ends the process immediately and without a traceback, because there is
nothing to clean up. This file cannot handle Ctrl-C during Python's own startup, the few hundredths of a second
before the first line of this file.
"""

import _signal  # type: ignore[import-not-found]  # importing ``signal`` takes longer than running this file
import gc
import os
import sys

import pellucid

GARBAGE = 200_000  # new objects before the garbage collector scans the youngest generation
"""Python's default is a few hundred objects. With it, 230 collections run before the first answer and free nothing."""

# Otherwise importing NumPy starts one OpenBLAS thread for each core, and these threads first busy-wait. One thread is
# enough, because steps have their own threads and NumPy does little work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _exit_on_interrupt(*_: object) -> None:
    os._exit(130)


# Leave the signal alone if it is ignored, as in background processes.
_HANDLED = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
if _HANDLED:
    _signal.signal(_signal.SIGINT, _exit_on_interrupt)


def main() -> int:
    """Run the command line. Returns the exit code."""
    if pellucid._ZIPPED:
        print(pellucid._ZIPPED, file=sys.stderr)
        return 2
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
        # Otherwise the interpreter scans all objects for garbage at its exit, which takes 70 ms for a loaded model.
        gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
