"""The card as a page: one file, which needs no other file."""

import base64
import hashlib
from importlib import resources
from typing import NamedTuple

import vigor_jax
from vigor_jax.evaluation.card.card import Card, Row, shown
from vigor_jax.evaluation.card.markdown import headline, interval, p_value, settings, written

_WIDTH = 196


class _Mark(NamedTuple):
    """A figure with its interval in the small plot of a row, in its units."""

    place: int
    low: float
    x: float
    high: float
    y: float


def to_html(card: Card) -> bytes:
    """The page.

    Raises:
        ImportError: Jinja is missing, which the extra `report` brings.
    """
    import jinja2
    from markupsafe import Markup

    folder = resources.files("vigor_jax")
    own = folder / "evaluation" / "card" / "page"
    # As the pages of vigor_jax.report look.
    base = (folder / "report" / "page" / "base.css").read_text(encoding="utf-8")
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("card.css", "card.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((own / "card.html").read_text(encoding="utf-8"))
    # The browser runs this script and no other, whatever else might get into the page.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        card=card,
        headline=headline(card),
        columns=shown,
        written=written,
        interval=interval,
        p_value=p_value,
        settings=settings,
        plot=_plot,
        style=Markup(base + style),
        script=Markup(script),
        script_digest=digest,
        version=vigor_jax.__version__,
    ).encode()


def _plot(row: Row) -> list[_Mark]:
    """Marks of a share, from 0 at the left to 1 at the right; none of other figures."""
    if row.unit != "percent":
        return []
    marks = []
    for place, value in enumerate(row.values):
        if value and value.low is not None and value.high is not None:
            low, x, high = (round(min(max(each, 0), 1) * _WIDTH, 1) for each in (value.low, value.value, value.high))
            marks.append(_Mark(place, low, x, high, 13 if len(row.values) == 1 else 8 + 10 * place))
    return marks
