"""`GET /metrics`: what `metrics.py` counted, in Prometheus' text format or OpenMetrics.

Imported by the first scrape, in a thread: prometheus_client takes 64 ms, which a boot does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from paiton_artifacts.record import dataclass
from paiton_runtime.server.metrics import COUNTERS, GAUGES, HISTOGRAMS, Snapshot

_encode_openmetrics: Callable[[CollectorRegistry, str], bytes] = openmetrics.generate_latest  # has no types


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a scrape shows besides the engine's reports.

    Attributes:
        model: name under which the model is served: label `model_name` of everything.
        boot: the ledger's rows, see `Ledger.as_list`.
        cache: labels of `vllm:cache_config_info`.
        gauges: by the names of `GAUGES`.
    """

    model: str
    boot: Sequence[Mapping[str, Any]]
    cache: Mapping[str, str]
    gauges: Mapping[str, float]


def render(snapshot: Snapshot, facts: ServerFacts, accept: str) -> tuple[bytes, str]:
    """Returns the metrics and their content type.

    Args:
        snapshot: what the engine reported.
        facts: what it does not.
        accept: the request's `Accept` header, which chooses the format.
    """
    registry = CollectorRegistry()
    registry.register(_Engine(snapshot, facts))
    ProcessCollector(registry=registry)
    encode, content_type = exposition.choose_encoder(accept)
    if content_type.startswith("application/openmetrics-text"):
        # The encoder would write vllm:x as vllm_x in samples (prometheus/client_python#1177), but not with this
        # escaping. No name here needs any.
        return _encode_openmetrics(registry, openmetrics.ALLOWUTF8), openmetrics.CONTENT_TYPE_LATEST
    return encode(registry), content_type


class _Engine(Collector):
    """Turns a snapshot into families of metrics."""

    def __init__(self, snapshot: Snapshot, facts: ServerFacts) -> None:
        self._snapshot = snapshot
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        """Yields one family a metric."""
        model = (self._facts.model,)
        for name, value in self._facts.gauges.items():
            gauge = GaugeMetricFamily(name, GAUGES[name], labels=("model_name",))
            gauge.add_metric(model, value)
            yield gauge
        for name, count in self._snapshot.counters.items():
            counter = CounterMetricFamily(name, COUNTERS[name], labels=("model_name",))
            counter.add_metric(model, count)
            yield counter
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests that ended, by reason.", labels=("model_name", "finished_reason")
        )
        for reason, count in self._snapshot.ended.items():
            ended.add_metric((*model, reason), count)
        yield ended
        for name, (counts, total) in self._snapshot.histograms.items():
            yield _histogram(name, self._facts.model, counts, total)
        yield self._boot()
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "How the KV cache is set up.", labels=("model_name", *self._facts.cache)
        )
        cache.add_metric((*model, *self._facts.cache.values()), 1)
        yield cache

    def _boot(self) -> Metric:
        text = "Stages of the boot; they overlap. total and first token count from the start of the process."
        family = GaugeMetricFamily("paiton_boot_seconds", text, labels=("model_name", "stage"))
        for row in self._facts.boot:
            family.add_metric((self._facts.model, row["stage"]), row["end"] - row["start"])
        return family


def _histogram(name: str, model: str, counts: Sequence[int], total: float) -> Metric:
    text, bounds = HISTOGRAMS[name]
    seen, buckets = 0, []
    for bound, count in zip((*(str(float(bound)) for bound in bounds), "+Inf"), counts, strict=True):
        seen += count
        buckets.append((bound, seen))
    family = HistogramMetricFamily(name, text, labels=("model_name",))
    family.add_metric((model,), buckets, total)
    return family
