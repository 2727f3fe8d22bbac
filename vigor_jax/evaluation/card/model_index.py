"""A card's figures as the metadata `model-index` that the Hub shows next to a model."""

from typing import Any

from vigor_jax.evaluation.card.card import Card

# In the arguments of a dataset: which results a card has written, and may replace.
MARK = {"evaluated_by": "vigor_jax.card"}
TASK = "image-text-to-text"


def to_model_index(card: Card, name: str) -> list[dict[str, Any]]:
    """The figures of the card's last model; shares in percent.

    Args:
        card: With one model or two.
        name: Of the model; not empty.
    """
    results: list[dict[str, Any]] = []
    for section in card.sections:
        by_part: dict[str, list[dict[str, Any]]] = {}
        for row in section.rows:
            if (value := row.values[-1]) is not None:
                number = round(100 * value.value, 2) if row.unit == "percent" else round(value.value, 4)
                # The Hub's own names, as far as there are any.
                entry = {"type": row.key, "value": number, "name": row.label + " (%)" * (row.unit == "percent")}
                by_part.setdefault(row.part, []).append(entry)
        for part, metrics in by_part.items():
            dataset = {
                "type": section.name,
                "name": f"{section.title}, {part}" if part else section.title,
                "config": section.protocol.partition(";")[0],
                **({"split": part} if part else {}),
                "args": MARK,
            }
            results.append(
                {"task": {"type": TASK, "name": "Image-Text-to-Text"}, "dataset": dataset, "metrics": metrics}
            )
    return [{"name": name, "results": results}] if results else []


def is_own(result: Any) -> bool:
    """Whether a card has written a result of a `model-index`."""
    dataset = result.get("dataset") if isinstance(result, dict) else None
    return isinstance(dataset, dict) and dataset.get("args") == MARK
