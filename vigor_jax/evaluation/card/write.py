"""Writes a card: `card.json`, `card.md`, and the page `card.html` where Jinja is installed."""

import logging
from pathlib import Path

from vigor_jax.disk import naming
from vigor_jax.evaluation.card.card import Card
from vigor_jax.evaluation.card.html import to_html
from vigor_jax.evaluation.card.readme import new_readme, with_card

logger = logging.getLogger(__name__)


def write_card(card: Card, folder: Path) -> list[Path]:
    """Writes the card in its three forms; the same results give the same bytes.

    Args:
        card: What is written.
        folder: Is made if need be.

    Returns:
        The files, the one to look at first.
    """
    name = card.systems[-1].rpartition("/")[2] or "model"
    files = {"card.json": card.to_json().encode(), "card.md": with_card(new_readme(name, {}), card, name).encode()}
    try:
        files = {"card.html": to_html(card), **files}
    except ImportError as error:
        logger.warning("card: the page is left out (%s); pip install vigor-jax[report]", error)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    return [folder / file for file in files]
