"""Files of requests in OpenAI's batch format: an input line is a request, an output line is its answer.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ..., "messages": [...]}}
    {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": "1", "body": {...}},
     "error": null}

Requests run concurrently. Answers are written in the order of the requests, and each answer is on disk as soon as its
request has ended (``serve/batch_output.py``). So a killed batch resumes: finished requests do not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.engine.request import run_together
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.errors.messages import brief, reason
from pellucid.serve.api import status_of
from pellucid.serve.apis.openai import OPENAI
from pellucid.serve.batch_output import BatchOutput, lines_of
from pellucid.serve.body import Body
from pellucid.serve.generate import Generating
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.answer import error_body
from pellucid.serve.openai.chat import ChatRequest
from pellucid.serve.openai.completions import CompletionRequest
from pellucid.serve.openai.embeddings import EmbeddingRequest
from pellucid.serve.openai.fields import OPENAI_BODY
from pellucid.serve.problem import problem_of
from pellucid.serve.schema import check_names

LONGEST_ID = 512


ROUTES: Mapping[str, Callable[[Body, ServedModel], Generating]] = {
    "/v1/chat/completions": ChatRequest.of,
    "/v1/completions": CompletionRequest.of,
    "/v1/embeddings": EmbeddingRequest.of,
}


@dataclass(frozen=True)
class RequestLine:
    """A request of a batch. ``number`` is its line number, from 1."""

    number: int
    custom_id: str
    url: str
    body: Any


def read_lines(path: Path) -> Iterator[RequestLine]:
    """Yield the requests of a file. Empty lines are skipped.

    Raises:
        InvalidRequest: a line is not a request, or its custom_id is a duplicate; the message names the line.
    """
    seen = set[str]()
    for number, _, raw in lines_of(path):
        made = _line(path, number, raw)
        if made.custom_id in seen:
            raise InvalidRequest(
                f"{path.name}, line {number:,}: custom_id {brief(made.custom_id)} came before: each must be another"
            )
        seen.add(made.custom_id)
        yield made


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


def _run(asked: Generating, name: str, number: str) -> dict[str, Any] | list[Any]:
    """Run a request and return the response body."""
    run_together(asked.groups)
    return asked.answer(name, number)


class Batch:
    """Runs the requests of ``source`` on a model and writes the answers to ``target`` in the same order.

    ``name`` replaces the model names in the requests; None: a request may have any name, and its answer repeats it.
    ``together`` is the number of requests that run at a time.

    Raises:
        InvalidRequest: a file cannot be read or written, or is not a batch file.
    """

    def __init__(self, source: Path, target: Path, name: str | None = None, together: int = 64) -> None:
        self._name, self._together = name, together
        lines = list(read_lines(source))
        self._output = BatchOutput(target, [line.custom_id for line in lines])
        missing = self._output.missing
        self.lines = [line for line in lines if line.custom_id in missing]
        self.total, self.answered = len(lines), len(lines) - len(self.lines)
        self.failed = 0

    @property
    def model(self) -> str:
        """Model of the first request that names a model.

        Raises:
            InvalidRequest: no request names a model.
        """
        for line in self.lines:
            if isinstance(line.body, dict) and isinstance(line.body.get("model"), str):
                return str(line.body["model"])
        raise InvalidRequest("no request of the batch names a model: name one with --model")

    def run(self, llm: ServedModel, told: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Run the requests without an answer. Calls ``told(answered, total)`` after each write."""
        with self._output.opened(), ThreadPoolExecutor(self._together, "pellucid-batch") as pool:
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
                    self._write([future.result() for future in ended])
                    told(self.answered, self.total)
            except BaseException:
                for future in running:
                    future.cancel()
                llm.close()  # cancels running requests; the next run repeats them
                raise

    def _answer(self, llm: ServedModel, line: RequestLine) -> dict[str, Any]:
        number, schema = str(line.number), OPENAI.routes[f"POST {line.url}"].body or {}
        try:
            check_names(schema, line.body)
            body = Body(line.body, OPENAI_BODY)
            name = body.model() if self._name is None else self._name
            if self._name is not None:
                body.take("model")
            if body.flag("stream"):
                raise InvalidRequest("stream=true: the answers of a batch are whole; leave it out")
            status, content = 200, _run(ROUTES[line.url](body, llm), name, number)
        except PellucidError as error:
            status = status_of(error)
            content = error_body(status, str(error), problem_of(error, schema))
        return {
            "id": f"batch_req_{number}",
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": number, "body": content},
            "error": None,
        }

    def _write(self, answers: Sequence[Mapping[str, Any]]) -> None:
        # ASCII only: some line readers also split at U+2028.
        self._output.write({one["custom_id"]: json.dumps(one).encode() + b"\n" for one in answers})
        self.answered += len(answers)
        self.failed += sum(one["response"]["status_code"] != 200 for one in answers)
