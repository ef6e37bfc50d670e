"""pellucid bench serve URL: latency and throughput of a server under the load of several clients."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pellucid.cli import common


def server_load(
    url: Annotated[str, typer.Argument(help="The server's address.", metavar="URL", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="The model; by default the server's first.", metavar="MODEL")
    ] = None,
    clients: Annotated[
        list[int] | None,
        common.count("So many clients send one request after the other; may be repeated; 16 by default."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        common.number("Instead: so many requests per second, at random times; may be repeated."),
    ] = None,
    requests: Annotated[int, common.count("How many requests are sent for each number of clients.")] = 64,
    prompt: Annotated[
        str, typer.Option(help="Words of a prompt: 256, 64-256, or 128~32 (mean ~ deviation).", metavar="N")
    ] = "256",
    shared: Annotated[int, common.count("Words that all prompts begin with.")] = 128,
    tokens: Annotated[str, typer.Option(help="Tokens of an answer, in the same forms.", metavar="N")] = "128",
    chat: Annotated[bool, typer.Option("--chat", help="Send conversations, not texts.")] = False,
    body: Annotated[
        str | None, typer.Option(help="More fields of each request, as JSON.", metavar="JSON")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The server's key. Also PELLUCID_KEY.")] = None,
    seed: Annotated[int, common.count("Requests of the same seed are the same.")] = 0,
    json: common.Json = False,
) -> None:
    """Put a server with OpenAI's API under load, and show the latency and throughput that clients see.

    Times are in milliseconds: median, 95th and 99th percentile. Shown are the time to the first token, the time per
    token after it (the mean of each request), and the time between two pieces of text.
    """
    import os

    from pellucid.errors import InvalidRequest
    from pellucid.measure.load import Lengths, Workload, loaded, models_of
    from pellucid.util.checks import whole

    if clients and rate:
        raise InvalidRequest("clients and rate are given: remove one of the two")
    key, url = key or os.environ.get("PELLUCID_KEY"), url.rstrip("/").removesuffix("/v1")
    work = Workload(
        url,
        model or _first(models_of(url, key), url),
        "chat" if chat else "completions",
        key,
        requests,
        Lengths.of("prompt", prompt),
        whole("shared", shared, 0, 1 << 20),
        Lengths.of("tokens", tokens),
        seed,
        _fields(body),
    )
    levels: list[dict[str, Any]] = (
        [{"rate": one} for one in rate] if rate else [{"clients": one} for one in clients or [16]]
    )
    found = []
    for level in levels:
        with common.progress() as bars:
            found.append(loaded(work, **level, told=bars.answering))
    if json:
        common.print_json(found[0] if len(found) == 1 else found)
    else:
        _show(found)
    if all(one["failed"] == one["requests"] for one in found):
        raise InvalidRequest(f"no request was answered: {found[0]['errors'][0]}")


def _first(models: list[str], url: str) -> str:
    from pellucid.errors import InvalidRequest

    if not models:
        raise InvalidRequest(f"{url} lists no model: name one with --model")
    return models[0]


def _fields(body: str | None) -> dict[str, Any]:
    import json

    from pellucid.errors import InvalidRequest
    from pellucid.errors.messages import brief

    if body is None:
        return {}
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest(f"body={brief(body)}: must be a JSON object")
    return found


def _show(found: list[dict[str, Any]]) -> None:
    level = "clients" if "clients" in found[0] else "rate"
    columns = ("tokens/s", "requests/s", "first token", "per token", "gap", "longest gap", "failed")
    table = common.table(level, *columns, right=(level, *columns))
    for one in found:
        table.add_row(
            f"{one[level]:g}",
            f"{one['tokens_per_second']:.1f}",
            f"{one['requests_per_second']:.2f}",
            *(_times(one[name]) for name in ("first_token", "per_token", "gap")),
            f"{1e3 * one['gap']['longest']:.0f}",
            str(one["failed"]),
        )
    common.show(table)
    for problem in dict.fromkeys(problem for one in found for problem in one["errors"]):
        print(problem)


def _times(one: dict[str, float]) -> str:
    return " ".join(f"{1e3 * one[name]:.0f}" for name in ("p50", "p95", "p99"))
