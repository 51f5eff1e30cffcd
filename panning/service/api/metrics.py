"""Figures for Prometheus: requests, jobs by state, open streams, the server's process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from panning.service.api.guard import Seen

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counts what is asked, and looks at the rest when somebody asks for figures.

    >>> from panning.service.api.metrics import Metrics
    >>> text = Metrics(lambda: {"queued": 2}, lambda: 0).text().decode()
    >>> 'panning_jobs{state="queued"} 2.0' in text
    True

    Args:
        jobs: gives the jobs in each state.
        streams: gives the number of open streams.
    """

    def __init__(self, jobs: Callable[[], Mapping[Any, int]], streams: Callable[[], int]) -> None:
        self._jobs, self._streams = jobs, streams
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "panning_requests", "Requests.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "panning_request_seconds", "Seconds until the last byte of an answer, streams apart.", ["method", "route"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def hear(self, seen: Seen) -> None:
        """Take note of a request."""
        method = seen.method if seen.route else "-"  # both of a table: what callers make up would have no end
        self._requests.labels(method, seen.route, str(seen.status)).inc()
        if not seen.route.endswith("/events"):
            self._seconds.labels(method, seen.route).observe(seen.seconds)

    def collect(self) -> Iterator[Metric]:
        """What is looked at when it is asked for."""
        jobs = GaugeMetricFamily("panning_jobs", "Jobs in each state.", labels=["state"])
        for state, n in self._jobs().items():
            jobs.add_metric([state], n)
        yield jobs
        yield GaugeMetricFamily("panning_streams", "Open streams of events.", value=self._streams())

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
