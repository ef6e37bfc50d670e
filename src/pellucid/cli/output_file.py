"""Output files of commands: checked before the work, and written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import one_line, reason
from pellucid.util.paths import move, refuse_same, staged


class OutputFile:
    """The file ``path`` that the option ``name`` asks for; "-" is standard output.

    ``write`` replaces the file in one step, so a run that fails leaves the earlier file, or no file. A device or a pipe
    is written directly.

    Raises:
        InvalidRequest: the file cannot be written, or is one of ``inputs``.
    """

    def __init__(self, name: str, path: Path, inputs: Iterable[str | Path] = ()) -> None:
        self._name, self._path = name, path
        refuse_same(name, path, inputs)
        if self.is_stdout:
            return
        try:
            if self._is_replaced():
                with staged(self.target.parent, b""):  # the folder accepts new files
                    pass
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError("the file is not writable")
        except (OSError, ValueError) as error:
            raise self._cannot_be_written(error) from error

    @property
    def is_stdout(self) -> bool:
        """True if the path is "-"."""
        return str(self._path) == "-"

    def write(self, text: str) -> None:
        """Write the content of the file, which replaces earlier content."""
        if self.is_stdout:
            sys.stdout.write(text)
            return
        content = text.encode()
        try:
            if self._is_replaced():
                with staged(self.target.parent, content) as staging:
                    self.replace_by(Path(staging))
            else:
                self._path.write_bytes(content)
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def replace_by(self, complete: Path) -> None:
        """Move a complete file, in the folder of ``target``, to the output."""
        try:
            if not self._is_replaced():
                raise OSError("is no regular file")
            os.chmod(complete, self._mode())
            move(complete, self.target)
        except OSError as error:
            raise self._cannot_be_written(error) from error

    @property
    def target(self) -> Path:
        """The path with its links resolved: a link keeps pointing to the file."""
        return Path(os.path.realpath(self._path))

    def _is_replaced(self) -> bool:
        """True for a regular or a new file; False for a device or a pipe. Raises OSError for a folder."""
        try:
            mode = os.stat(self._path).st_mode
        except FileNotFoundError:
            return True
        if stat.S_ISDIR(mode):
            raise IsADirectoryError("is a folder")
        return stat.S_ISREG(mode)

    def _mode(self) -> int:
        """Permissions of the earlier file, or the usual permissions of a new file."""
        try:
            return stat.S_IMODE(os.stat(self._path).st_mode)
        except FileNotFoundError:
            mask = os.umask(0)
            os.umask(mask)
            return 0o666 & ~mask

    def _cannot_be_written(self, error: Exception) -> InvalidRequest:
        return InvalidRequest(
            f"{self._name}={one_line(str(self._path))!r}: cannot be written: {reason(error)}; name a file in a folder "
            "where you may write"
        )
