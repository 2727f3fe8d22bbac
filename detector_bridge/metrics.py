"""What Prometheus can ask the server for."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server


class Metrics:
    """Counters of one server; nothing is published before `publish`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "detector_requests",
            "Requests answered, by result: OK or the error's code.",
            ["result"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "detector_request_seconds",
            "From a request's arrival to its reply.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self._batch_pictures = Histogram(
            "detector_batch_pictures", "Pictures in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self._model_seconds = Counter(
            "detector_model_seconds", "Seconds that devices spent in the model.", registry=self.registry
        )
        self.in_flight = Gauge(
            "detector_requests_in_flight", "Requests read and not yet answered.", registry=self.registry
        )

    def request(self, result: str, seconds: float) -> None:
        self._requests.labels(result).inc()
        self._seconds.observe(seconds)

    def batch(self, pictures: int, seconds: float) -> None:
        self._batch_pictures.observe(pictures)
        self._model_seconds.inc(seconds)

    def publish(self, address: str, port: int) -> None:
        """Serves http://ADDRESS:PORT/metrics from a separate thread."""
        start_http_server(port, address, registry=self.registry)
