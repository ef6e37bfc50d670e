"""Output files of commands: checked before the work, and written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pellucid.errors import InvalidRequest, brief, one_line, reason, shown
from pellucid.util.paths import move, output_lock, refuse_same, staged
from pellucid.util.text_file import TextFile, parquet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Output files of commands: checked before the work, and written whole or not at all.


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


# The vectors of a file of texts, for ``pellucid embed``: .npy, .jsonl or .parquet.
#
# The vectors of a run are in ``OUT.part``, an array (texts, D) float32 in NumPy's format, and ``OUT.part.json`` says
# what they are vectors of, and how many are on disk. Both lie beside the output ``OUT``, so an interrupted run
# continues. At the end, the complete output replaces an earlier file in one step, and both files are deleted.
#
# A kill at any time leaves files that can be continued: a vector counts when ``OUT.part.json`` says so, which is
# written after the vectors are on disk.

ROWS = 1024
"""Vectors in memory while the output is written."""
ENDINGS = (".npy", ".jsonl", ".parquet")


class VectorFile:
    """The output ``path`` with a vector for each text of ``source``.

    Raises:
        InvalidRequest: the kind of file is unknown, pyarrow is missing, or the file cannot be written.
    """

    def __init__(self, path: Path, source: TextFile) -> None:
        self._source, self._kind = source, path.suffix.lower()
        if self._kind not in ENDINGS:
            raise InvalidRequest(f"out={brief(str(path))}: its name must end with {', '.join(ENDINGS)}")
        if self._kind == ".parquet":
            parquet(path)
        self._output = OutputFile("out", path, [source.path])
        target = self._output.target
        self._part = target.with_name(f"{target.name}.part")
        self._manifest = target.with_name(f"{target.name}.part.json")
        self.done = 0

    def locked(self) -> AbstractContextManager[None]:
        """Keep other runs from writing this output until the end."""
        return output_lock("out", self._output.target)

    @contextmanager
    def opened(self, run: Mapping[str, Any], texts: int, width: int) -> Iterator[None]:
        """Open the file for ``append``, after the vectors of an interrupted run.

        ``run`` says what the vectors depend on, by names for messages. A value that was False may change, because a
        run without truncation, for example, has cut no text so far. ``done`` is the number of vectors on disk.
        """
        self._run, self._texts, self._width = dict(run), texts, width
        with self._writing():
            self.done = self._vectors_on_disk()
            try:
                if not self.done:  # an output that was complete has no part, but may have left its manifest
                    self._manifest.unlink(missing_ok=True)
                with open(self._part, "r+b" if self.done else "w+b") as self._file:
                    begin = self._file.write(_header(texts, width))
                    self._file.truncate(begin + self.done * 4 * width)
                    self._file.seek(0, os.SEEK_END)
                    yield
            finally:
                if not self.done:
                    self._part.unlink(missing_ok=True)

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Write the next vectors (B, D). They are on disk when this returns."""
        with self._writing():
            _write(self._file, vectors)
            self.done += len(vectors)
            manifest = json.dumps({"run": self._run, "done": self.done})
            with staged(self._manifest.parent, manifest.encode()) as staging:
                move(staging, self._manifest)

    def finish(self) -> None:
        """Write the output from the vectors, and delete the files of the run."""
        if self.done != self._texts:
            raise InvalidRequest(
                f"{shown(self._source.path.name)}: had {self._texts:,} texts, and now has {self.done:,}: the file "
                f"changed during the run: delete {shown(self._manifest.name)} and begin again"
            )
        with self._writing():
            if self._kind == ".npy":
                self._output.replace_by(self._part)
            else:
                import numpy as np

                vectors = np.load(self._part, mmap_mode="r", allow_pickle=False)
                write = _write_jsonl if self._kind == ".jsonl" else _write_parquet
                with staged(self._part.parent, b"") as staging:
                    write(Path(staging), self._source, vectors)
                    self._output.replace_by(Path(staging))
                del vectors  # Windows deletes no file that is mapped
                self._part.unlink()
            self._manifest.unlink()

    def _vectors_on_disk(self) -> int:
        """The number of vectors of the interrupted run; 0 if there is none."""
        if not (self._manifest.exists() and self._part.exists()):
            return 0
        try:
            stored = json.loads(self._manifest.read_text("utf-8"))
            run, done = dict(stored["run"]), int(stored["done"])
            if not run:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._unusable("is damaged") from None
        changed = [name for name, value in self._run.items() if run.get(name, "") not in (value, False)]
        if changed:
            raise self._unusable(f"is of an interrupted run with another {' and another '.join(changed)}")
        needed = len(_header(self._texts, self._width)) + done * 4 * self._width
        if not 0 <= done <= self._texts or self._part.stat().st_size < needed:
            raise self._unusable(
                f"says that {done:,} of {self._texts:,} vectors are done, and {shown(self._part.name)} has fewer"
            )
        return done

    def _unusable(self, problem: str) -> InvalidRequest:
        return InvalidRequest(
            f"{shown(self._manifest.name)}: {problem}: delete it to begin again, or name another --out"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidRequest(f"{one_line(str(self._part))}: cannot be written: {reason(error)}") from error


def _header(texts: int, width: int) -> bytes:
    """The header of an array (texts, width) float32 in NumPy's format."""
    from io import BytesIO

    import numpy as np

    header = BytesIO()
    described: Any = {"descr": "<f4", "fortran_order": False, "shape": (texts, width)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _write(file: BinaryIO, vectors: NDArray[np.float32]) -> None:
    import numpy as np

    file.write(np.ascontiguousarray(vectors, "<f4").tobytes())
    file.flush()
    os.fsync(file.fileno())


def _rows(source: TextFile, vectors: NDArray[np.float32]) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The texts and their vectors, ``ROWS`` at a time."""
    texts = source.texts()
    for start in range(0, len(vectors), ROWS):
        rows = vectors[start : start + ROWS].copy()
        yield [text for (_, text), _ in zip(texts, rows)], rows


def _write_jsonl(path: Path, source: TextFile, vectors: NDArray[np.float32]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for texts, rows in _rows(source, vectors):
            for text, row in zip(texts, rows):
                # The shortest decimal numbers that are read as the same float32.
                numbers = [float(str(value)) for value in row]
                file.write(json.dumps({"text": text, "vector": numbers}, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, source: TextFile, vectors: NDArray[np.float32]) -> None:
    import importlib

    arrow: Any = importlib.import_module("pyarrow")
    kind = arrow.list_(arrow.float32(), vectors.shape[1])
    schema = arrow.schema([("text", arrow.string()), ("vector", kind)])
    with parquet(path).ParquetWriter(path, schema) as writer:
        for texts, rows in _rows(source, vectors):
            flat = arrow.array(rows.reshape(-1), arrow.float32())
            columns = [arrow.array(texts, arrow.string()), arrow.FixedSizeListArray.from_arrays(flat, type=kind)]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
