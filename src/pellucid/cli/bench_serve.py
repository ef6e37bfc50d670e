"""pellucid bench serve URL: latency and throughput of a server under the load of several clients."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.cli import common

Clients = Annotated[
    list[int] | None,
    common.count(
        "Number of clients that send requests at the same time. Each client waits for the response before its next "
        "request. May be repeated. Default: 16."
    ),
]
Rate = Annotated[
    list[float] | None,
    common.number("Instead of --clients: requests per second, at random times. May be repeated."),
]
PromptWords = Annotated[
    str, common.text("N", "Words of a prompt: 256, 64-256 (uniform), or 128~32 (mean ~ standard deviation).")
]
Body = Annotated[str | None, common.text("JSON", "JSON object with further fields of each request.")]


def server_load(
    url: Annotated[str, common.argument("URL", "Address of the server: http://HOST:PORT.")],
    model: Annotated[
        str | None, common.text("MODEL", "Model to request. Default: the server's first.")
    ] = None,
    clients: Clients = None,
    rate: Rate = None,
    requests: Annotated[int, common.count("Requests for each number of --clients, or each --rate.")] = 64,
    prompt: PromptWords = "256",
    shared: Annotated[int, common.count("Words at the beginning that all prompts share.")] = 128,
    tokens: Annotated[str, common.text("N", "Tokens of an answer, in the same forms as --prompt.")] = "128",
    chat: Annotated[bool, common.flag("--chat", "Send chat completions, not text completions.")] = False,
    body: Body = None,
    key: Annotated[str | None, common.text("KEY", "API key of the server. Default: PELLUCID_KEY.")] = None,
    seed: Annotated[int, common.count("Seed of the random words, lengths and times.")] = 0,
    json: common.Json = False,
) -> None:
    """Measure the latency and throughput of a server with OpenAI's API, as clients under load see them.

    Times are in milliseconds: median, 95th and 99th percentile. The columns are the time to the first token, the time
    per token after the first token (the mean over each request), and the time between two pieces of text.
    """
    from pellucid.errors import InvalidRequest
    from pellucid.measure.server_load import Lengths, ServerLoad, measure_server, models_of
    from pellucid.util.checks import whole

    if clients and rate:
        raise InvalidRequest("--clients and --rate exclude each other: remove one")
    key, url = common.secret("PELLUCID_KEY") if key is None else key, url.rstrip("/").removesuffix("/v1")
    load = ServerLoad(
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
        [{"rate": level} for level in rate] if rate else [{"clients": level} for level in clients or [16]]
    )
    results = []
    for level in levels:
        with common.progress() as bars:
            results.append(measure_server(load, **level, progress=bars.answering))
    if json:
        common.print_json(results[0] if len(results) == 1 else results)
    else:
        _show(results)
    if all(result["failed"] == result["requests"] for result in results):
        raise InvalidRequest(f"no request was answered: {results[0]['errors'][0]}")


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
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"body={brief(body)}: must be a JSON object")
    return fields


def _show(results: list[dict[str, Any]]) -> None:
    level = "clients" if "clients" in results[0] else "rate"
    columns = ("tokens/s", "requests/s", "first token", "per token", "gap", "longest gap", "failed")
    table = common.table(level, *columns, right=(level, *columns))
    for result in results:
        table.add_row(
            f"{result[level]:g}",
            f"{result['tokens_per_second']:.1f}",
            f"{result['requests_per_second']:.2f}",
            *(common.milliseconds(result[name]) for name in ("first_token", "per_token", "gap")),
            f"{1e3 * result['gap']['longest']:.0f}",
            str(result["failed"]),
        )
    common.show(table)
    for problem in dict.fromkeys(problem for result in results for problem in result["errors"]):
        print(problem)
