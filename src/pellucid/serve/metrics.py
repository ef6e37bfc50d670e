"""Metrics for Prometheus: under vLLM's names, which dashboards for vLLM read, and under Pellucid's own names.

Sources: https://docs.vllm.ai/en/latest/design/metrics.html, and Prometheus' conventions for names and units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pellucid.engine.request import Request
from pellucid.engine.state import ReplicaStates
from pellucid.serve.pool import ModelPool

SHORT = (*(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5), *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0))
GAPS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
WHOLE = (*(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0), *(15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0))
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "Time from a request to its first token.", SHORT),
    ("vllm:inter_token_latency_seconds", "Time between two tokens.", GAPS),
    ("vllm:request_time_per_output_token_seconds", "Mean time per token after the first token.", GAPS),
    ("vllm:e2e_request_latency_seconds", "Time from a request to its last token.", WHOLE),
    ("vllm:request_queue_time_seconds", "Time until a request's first step.", WHOLE),
    ("vllm:request_prefill_time_seconds", "Time of a request's prefill steps.", WHOLE),
    ("vllm:request_decode_time_seconds", "Time from the first to the last token.", WHOLE),
    ("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS),
    ("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS),
)
COUNTERS = (
    ("vllm:prompt_tokens", "Tokens of prompts."),
    ("vllm:generation_tokens", "Generated tokens."),
    ("vllm:prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache."),
    ("vllm:prefix_cache_hits", "Tokens of prompts that were found in the prefix cache."),
    ("vllm:spec_decode_num_draft_tokens", "Tokens that speculative decoding proposed."),
    ("vllm:spec_decode_num_accepted_tokens", "Proposed tokens that were accepted."),
)
ENGINE_GAUGES = (
    ("vllm:num_requests_running", "Requests that run.", "running"),
    ("vllm:num_requests_waiting", "Requests that wait for their first step.", "waiting"),
    ("vllm:kv_cache_usage_perc", "Fraction of the cache's pages that are in use, from 0 to 1.", "pages_in_use"),
    ("pellucid:prefix_cache_bytes", "Bytes of the pages in the prefix cache.", "prefix_cache_bytes"),
)
ENGINE_COUNTERS = (
    ("vllm:num_preemptions", "Number of times that a request lost its pages to another request.", "preemptions"),
    ("pellucid:steps", "Steps of the model.", "steps"),
    ("pellucid:step_seconds", "Time of all steps, in seconds.", "step_seconds"),
)
"""Name, text and field of ``EngineState``."""
REPLICA_GAUGES = (
    ("running", "Requests that run on the replica."),
    ("waiting", "Requests that wait for their first step on the replica."),
    ("pages_in_use", "Pages of the replica's cache that are in use."),
)
REPLICA_COUNTERS = (
    ("steps", "Steps of the replica."),
    ("step_seconds", "Time of all steps of the replica, in seconds."),
)
REASONS = {"stop": "stop", "until": "stop", "probe": "stop", "length": "length", "time": "length", None: "abort"}


class Metrics:
    """Metrics of a server: counts and times of its requests, and the current state of its models."""

    def __init__(self, models: ModelPool) -> None:
        self._registry = CollectorRegistry()
        labels = ["model_name"]
        self._histograms = {
            name: Histogram(name, text, labels, buckets=buckets, registry=self._registry)
            for name, text, buckets in HISTOGRAMS
        }
        self._counters = {name: Counter(name, text, labels, registry=self._registry) for name, text in COUNTERS}
        self._ended = Counter(
            "vllm:request_success", "Requests that have ended.", [*labels, "finished_reason"], registry=self._registry
        )
        self._http = Counter(
            "pellucid:http_requests", "Responses by route and status.", ["route", "status"], registry=self._registry
        )
        self._registry.register(_Engines(models))

    def answered(self, route: str, status: int) -> None:
        """Count a response by route and status."""
        self._http.labels(route, str(status)).inc()

    def observe(self, model: str, groups: Sequence[Request]) -> None:
        """Record requests of a model that have ended or were cancelled."""
        for group in groups:
            for number, (generation, builder) in enumerate(zip(group.results(), group.outputs)):
                usage, times = generation.usage, generation.timings
                self._ended.labels(model, REASONS[generation.finish_reason]).inc()
                counts = {
                    "vllm:generation_tokens": usage.generated_tokens,
                    "vllm:spec_decode_num_draft_tokens": usage.proposed_tokens,
                    "vllm:spec_decode_num_accepted_tokens": usage.accepted_tokens,
                }
                # Count a group's prompt once, and only if the prompt was prefilled.
                if number == 0 and generation.ids:
                    counts |= {
                        "vllm:prompt_tokens": usage.prompt_tokens,
                        "vllm:prefix_cache_queries": usage.prompt_tokens,
                        "vllm:prefix_cache_hits": usage.cached_tokens,
                    }
                for name, count in counts.items():
                    self._counters[name].labels(model).inc(count)
                if not generation.ids:
                    continue
                decode, gaps = times.total - times.first_token, usage.generated_tokens - 1
                seconds = {
                    "vllm:time_to_first_token_seconds": times.first_token,
                    "vllm:e2e_request_latency_seconds": times.total,
                    "vllm:request_queue_time_seconds": times.queue,
                    "vllm:request_prefill_time_seconds": times.prefill,
                    "vllm:request_decode_time_seconds": decode,
                    "vllm:request_prompt_tokens": usage.prompt_tokens,
                    "vllm:request_generation_tokens": usage.generated_tokens,
                }
                if gaps:
                    seconds["vllm:request_time_per_output_token_seconds"] = decode / gaps
                for name, value in seconds.items():
                    self._histograms[name].labels(model).observe(value)
                between = self._histograms["vllm:inter_token_latency_seconds"].labels(model)
                for before, after in pairwise(builder.times):
                    between.observe(after - before)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Engines(Collector):
    """Current state of the engines of the loaded models."""

    def __init__(self, models: ModelPool) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        families = {
            field: kind(name, text, labels=["model_name"])
            for kind, names in ((GaugeMetricFamily, ENGINE_GAUGES), (CounterMetricFamily, ENGINE_COUNTERS))
            for name, text, field in names
        }
        for model in self._models.loaded:
            if (llm := self._models.llm(model)) is None:
                continue
            now = llm.state()
            values = {"pages_in_use": now.pages_in_use / max(now.pages, 1)}
            for field, family in families.items():
                family.add_metric([model], values.get(field, getattr(now, field)))
            if (states := llm.replica_states()) is not None:
                yield from _replicas(model, states)
        yield from families.values()
        if self._models.clustered:
            up = self._models.degraded is None
            yield GaugeMetricFamily("pellucid:cluster_head_up", "1 if Ray's head answers, otherwise 0.", up)


def _replicas(model: str, states: ReplicaStates) -> Iterator[Metric]:
    """Current state of each replica of a model."""
    labels = ["model_name", "replica"]
    up = GaugeMetricFamily("pellucid:replica_up", "1 if the replica is up, otherwise 0.", labels=labels)
    stages = CounterMetricFamily(
        "pellucid:replica_stage_seconds",
        "Time of all steps in a stage of a replica with several stages, in seconds.",
        labels=[*labels, "stage"],
    )
    families = {
        field: kind(f"pellucid:replica_{field}", text, labels=labels)
        for kind, names in ((GaugeMetricFamily, REPLICA_GAUGES), (CounterMetricFamily, REPLICA_COUNTERS))
        for field, text in names
    }
    for name, state in states.replicas.items():
        up.add_metric([model, name], state is not None)
        for number, seconds in enumerate(state.stage_seconds if state else ()):
            stages.add_metric([model, name, str(number)], seconds)
        for field, family in families.items():
            if state is not None:
                family.add_metric([model, name], getattr(state, field))
    yield from (up, stages, *families.values())
    for name, text, value in (
        ("pellucid:requests_moved", "Requests that moved from one replica to another.", states.moved),
        ("pellucid:routed_pages", "Whole pages of routed prompts.", states.prefix_queries),
        (
            "pellucid:routed_pages_known",
            "Whole pages of routed prompts that the chosen replica already had.",
            states.prefix_hits,
        ),
    ):
        counter = CounterMetricFamily(name, text, labels=labels[:1])
        counter.add_metric([model], value)
        yield counter
