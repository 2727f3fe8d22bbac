"""A page that shows what a run did: benchmarks before and after, what the rewards saw, and every example."""

from vigor_jax.report.build import build_report

__all__ = ["build_report"]
