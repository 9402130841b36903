"""Counts and times for Prometheus; no name of a file or a person is a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What one server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("tskd_requests", "Requests answered.", labels, registry=self.registry)
        self.times = Histogram(
            "tskd_request_seconds", "From a request's head to the end of its answer.", ("route",), buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self.slices = Counter("tskd_slices", "Images and slices segmented.", registry=self.registry)
        self.working = Gauge("tskd_working", "Requests that are worked on.", registry=self.registry)
        self.admitted = Gauge(
            "tskd_admitted", "Requests that are worked on, uploading or waiting.", registry=self.registry
        )
        self.saved = Counter("tskd_corrections", "Corrections saved.", registry=self.registry)

    def count(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Count one request; what matches no route has none, and no odd method is a label."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD") else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.times.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all in the text format of Prometheus."""
        return bytes(generate_latest(self.registry))
