"""``python -m pellucid``, and what the command ``pellucid`` calls."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line. Its own imports take a tenth of a second, in which Ctrl-C should be as quiet as later."""
    try:
        from pellucid.cli import main as command_line
    except KeyboardInterrupt:
        return 130
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
