"""Files of requests in OpenAI's batch format: an input line is a request, an output line is its answer.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ..., "messages": [...]}}
    {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": "1", "body": {...}},
     "error": null}

Requests run concurrently. Answers are written in the order of the requests, and each answer is on disk as soon as its
request has ended (``serve/batch_output.py``). A killed batch therefore resumes with the requests that have no answer.
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
from pellucid.serve.batch_output import BatchOutput, lines_of
from pellucid.serve.error_details import error_details
from pellucid.serve.generation_response import Generating
from pellucid.serve.openai.chat_completions import CHAT, ChatRequest
from pellucid.serve.openai.completions import COMPLETION, CompletionRequest
from pellucid.serve.openai.embeddings import EMBEDDING, EmbeddingRequest
from pellucid.serve.openai.response_parts import error_body
from pellucid.serve.request_body import BodyType, RequestBody
from pellucid.serve.served_model import ServedModel

LONGEST_ID = 512


ROUTES: Mapping[str, tuple[BodyType[Any], Callable[[RequestBody[Any], ServedModel], Generating]]] = {
    "/v1/chat/completions": (CHAT, ChatRequest.of),
    "/v1/completions": (COMPLETION, CompletionRequest.of),
    "/v1/embeddings": (EMBEDDING, EmbeddingRequest.of),
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
        line = _line(path, number, raw)
        if line.custom_id in seen:
            raise InvalidRequest(
                f"{path.name}, line {number:,}: custom_id {brief(line.custom_id)} is a duplicate: "
                "give each request another custom_id"
            )
        seen.add(line.custom_id)
        yield line


def _line(path: Path, number: int, raw: bytes) -> RequestLine:
    where = f"{path.name}, line {number:,}"
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}: is not JSON: {reason(error)}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{where}: is {brief(parsed)}; it must be an object")
    custom, url = parsed.get("custom_id"), parsed.get("url")
    if not isinstance(custom, str) or not 0 < len(custom) <= LONGEST_ID:
        raise InvalidRequest(
            f"{where}: custom_id is {brief(custom)}; it must be a text of 1 to {LONGEST_ID} characters"
        )
    if parsed.get("method", "POST") != "POST" or not isinstance(url, str) or url not in ROUTES:
        raise InvalidRequest(
            f"{where}: is {brief(parsed.get('method'))} {brief(url)}; it must be POST to {', '.join(ROUTES)}"
        )
    return RequestLine(number, custom, url, parsed.get("body"))


def _run(request: Generating, name: str, number: str) -> dict[str, Any] | list[Any]:
    """Run a request and return the response body."""
    run_together(request.groups)
    return request.answer(name, number)


class Batch:
    """Runs the requests of ``source`` on a model and writes the answers to ``target`` in the same order.

    ``name`` replaces the model names in the requests. If ``name`` is None, each answer repeats the name in its request.
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

    def run(self, llm: ServedModel, report: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Run the requests that have no answer. Calls ``report(answered, total)`` after each write."""
        with self._output.opened(), ThreadPoolExecutor(self._together, "pellucid-batch") as pool:
            running, waiting = set[Future[dict[str, Any]]](), iter(self.lines)
            try:
                while True:
                    for line in waiting:
                        running.add(pool.submit(self._answer, llm, line))
                        if len(running) >= 2 * self._together:
                            break
                    if not running:
                        return
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    self._write([future.result() for future in ended])
                    report(self.answered, self.total)
            except BaseException:
                for future in running:
                    future.cancel()
                llm.close()  # cancels running requests; the next run repeats them
                raise

    def _answer(self, llm: ServedModel, line: RequestLine) -> dict[str, Any]:
        number, (body_type, read) = str(line.number), ROUTES[line.url]
        try:
            body = body_type.decode(line.body)
            name = body.fields.model if self._name is None else self._name
            if not name:
                raise InvalidRequest("model is missing: the request must have it")
            for option in ("stream", "timings_per_token", "return_progress", "verbose"):
                if getattr(body.fields, option, False):
                    raise InvalidRequest(f"{option}=true: the answers of a batch are complete; leave it out")
            status, content = 200, _run(read(body, llm), name, number)
        except PellucidError as error:
            status = status_of(error)
            content = error_body(status, str(error), error_details(error, body_type.schema))
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
