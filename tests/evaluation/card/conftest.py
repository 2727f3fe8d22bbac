"""A real browser, as for the report."""

from tests.report.conftest import browser, open_page

__all__ = ["browser", "open_page"]
