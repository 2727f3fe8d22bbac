"""The hallucination card: a model's benchmarks, or two models' side by side, on one page."""
