"""Files of requests, in OpenAI's batch format: each line a request, each line of the output its answer.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ..., "messages": [...]}}
    {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": "1", "body": {...}},
     "error": null}

Requests run together and their answers are written as they come, each in one piece that reaches the disk before it
counts. So a batch that was killed goes on where it was: answers that are there are not made again, and an unfinished
last line is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pellucid.engine.text_group import run_together
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.errors.messages import brief, reason
from pellucid.serve.api import status_of
from pellucid.serve.body import Body
from pellucid.serve.generate import Generating
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.chat import ChatRequest
from pellucid.serve.openai.completions import CompletionRequest
from pellucid.serve.openai.embeddings import EmbeddingRequest
from pellucid.serve.openai.fields import OPENAI_BODY

LONGEST_LINE = 64 << 20  # bytes
LONGEST_ID = 512


ROUTES: Mapping[str, Callable[[Body, ServedModel], Generating]] = {
    "/v1/chat/completions": ChatRequest.of,
    "/v1/completions": CompletionRequest.of,
    "/v1/embeddings": EmbeddingRequest.of,
}


@dataclass(frozen=True)
class RequestLine:
    """A request of a batch: ``number`` is its line's, from 1."""

    number: int
    custom_id: str
    url: str
    body: Any


def read_lines(path: Path) -> Iterator[RequestLine]:
    """The requests of a file. Empty lines are passed over.

    Raises:
        InvalidRequest: a line is no request, or its custom_id came before; the message names the line.
    """
    seen = set[str]()
    for number, raw in _raw_lines(path):
        made = _line(path, number, raw)
        if made.custom_id in seen:
            raise InvalidRequest(
                f"{path.name}, line {number:,}: custom_id {brief(made.custom_id)} came before: each must be another"
            )
        seen.add(made.custom_id)
        yield made


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise InvalidRequest(
                        f"{path.name}, line {number:,}: is longer than {LONGEST_LINE >> 20} MiB: split the request"
                    )
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {reason(error)}") from error


def _line(path: Path, number: int, raw: bytes) -> RequestLine:
    where = f"{path.name}, line {number:,}"
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}: is no JSON: {reason(error)}") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where}: is {brief(found)}; it must be an object")
    custom, url = found.get("custom_id"), found.get("url")
    if not isinstance(custom, str) or not 0 < len(custom) <= LONGEST_ID:
        raise InvalidRequest(
            f"{where}: custom_id is {brief(custom)}; it must be a text of 1 to {LONGEST_ID} characters"
        )
    if found.get("method", "POST") != "POST" or not isinstance(url, str) or url not in ROUTES:
        raise InvalidRequest(
            f"{where}: is {brief(found.get('method'))} {brief(url)}; known is POST to {', '.join(ROUTES)}"
        )
    return RequestLine(number, custom, url, found.get("body"))


def answered(path: Path) -> set[str]:
    """The custom_ids of the answers in an output file, whose unfinished last line is cut off.

    Raises:
        InvalidRequest: the file holds something else.
    """
    if not path.exists():
        return set()
    found = set[str]()
    for number, raw in _raw_lines(path):
        if not raw.endswith(b"\n"):  # only the last one can be so
            _cut_off(path, len(raw))
            break
        try:
            custom = json.loads(raw)["custom_id"]
        except (ValueError, TypeError, KeyError, RecursionError):
            custom = None
        if not isinstance(custom, str):
            raise InvalidRequest(
                f"{path.name}, line {number:,}: is no answer of a batch: name a new file, or that of the same batch"
            )
        found.add(custom)
    return found


def _cut_off(path: Path, length: int) -> None:
    """Shorten a file by ``length`` bytes."""
    try:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - length)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written: {reason(error)}") from error


def _run(asked: Generating, name: str, number: str) -> dict[str, Any]:
    """Run a request, and return the body of its answer."""
    run_together(asked.groups)
    return asked.answer(name, number)


class Batch:
    """Runs the requests of ``source`` on a model, and appends their answers to ``target``.

    ``name`` is what requests may call the model (any name, if it is None). ``together`` is how many requests run at a
    time.

    Raises:
        InvalidRequest: a file cannot be read or written, or holds something else.
    """

    def __init__(self, source: Path, target: Path, name: str | None = None, together: int = 64) -> None:
        self._target, self._name, self._together = target, name, together
        lines = list(read_lines(source))
        done = answered(target)
        self.lines = [line for line in lines if line.custom_id not in done]
        self.total, self.answered = len(lines), len(lines) - len(self.lines)
        self.failed = 0
        self._open().close()  # before a model is loaded

    @property
    def model(self) -> str:
        """The model that the first request names.

        Raises:
            InvalidRequest: it names none.
        """
        for line in self.lines:
            if isinstance(line.body, dict) and isinstance(line.body.get("model"), str):
                return str(line.body["model"])
        raise InvalidRequest("no request of the batch names a model: name one with --model")

    def _open(self) -> BinaryIO:
        try:
            return open(self._target, "ab", buffering=0)
        except OSError as error:
            raise InvalidRequest(f"{self._target}: cannot be written: {reason(error)}") from error

    def run(self, llm: ServedModel, told: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Run what is left. ``told`` hears how many of all requests are answered."""
        with self._open() as file, ThreadPoolExecutor(self._together, "pellucid-batch") as pool:
            running, left = set[Future[dict[str, Any]]](), iter(self.lines)
            try:
                while True:
                    for line in left:
                        running.add(pool.submit(self._answer, llm, line))
                        if len(running) >= 2 * self._together:
                            break
                    if not running:
                        return
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._write(file, future.result())
                        self.answered += 1
                        told(self.answered, self.total)
            except BaseException:
                for future in running:
                    future.cancel()
                llm.close()  # ends what runs; its answers are made again next time
                raise

    def _answer(self, llm: ServedModel, line: RequestLine) -> dict[str, Any]:
        number = str(line.number)
        try:
            body = Body(line.body, OPENAI_BODY)
            name = body.model() if self._name is None else self._name
            if self._name is not None:
                body.take("model")
            if body.flag("stream"):
                raise InvalidRequest("stream=true: the answers of a batch are whole; leave it out")
            status, content = 200, _run(ROUTES[line.url](body, llm), name, number)
        except PellucidError as error:
            status = status_of(error)
            content = error_body(status, str(error))
        return {
            "id": f"batch_req_{number}",
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": number, "body": content},
            "error": None,
        }

    def _write(self, file: BinaryIO, answer: dict[str, Any]) -> None:
        """Append an answer, which counts when it is on the disk."""
        self.failed += answer["response"]["status_code"] != 200
        # ASCII alone: some readers of lines also split at U+2028.
        file.write(json.dumps(answer).encode() + b"\n")
        os.fsync(file.fileno())
