"""Judgments of descriptions that others have published; docs/annotation.md shows the layouts."""
