"""docs/layout.md names only what exists, and every folder of the package."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "layout.md").read_text()))


def test_what_the_page_names_exists():
    wrong = [name for name in NAMED if not ((ROOT / name).is_dir() if name.endswith("/") else (ROOT / name).is_file())]
    assert len(NAMED) > 50
    assert not wrong


def test_the_page_names_every_folder_of_the_package():
    files = (path for path in (ROOT / "vigor_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in files}
    assert "vigor_jax/hf/weights/" in folders
    assert folders <= NAMED, f"docs/layout.md lacks {sorted(folders - NAMED)}"
