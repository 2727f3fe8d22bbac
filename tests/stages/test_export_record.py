"""The record of a training checkpoint, as the export reads it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vigor_jax.errors import InputError
from vigor_jax.hf.options import ExportConfig
from vigor_jax.stages.export import export


@pytest.mark.parametrize(
    ("fingerprint", "key"),
    [
        ({}, "freeze"),
        *(({"freeze": value}, "freeze") for value in (None, 3, "x", {}, [3], [None])),
        *(({"freeze": [], "template": value}, "template") for value in (3, [], {}, True)),
    ],
)
def test_a_damaged_record_is_one_line_and_nothing_is_written(tmp_path: Path, fingerprint: Any, key: str) -> None:
    record = tmp_path / "checkpoints" / "7" / "record"
    record.mkdir(parents=True)
    (record / "record.json").write_text(json.dumps({"fingerprint": fingerprint}))
    source: Any = SimpleNamespace(directory=tmp_path, layout="llava-hf")
    with pytest.raises(InputError, match=rf"record.json: fingerprint.{key}: expected ") as caught:
        export(ExportConfig(), source, tmp_path / "checkpoints", tmp_path / "out", None)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
