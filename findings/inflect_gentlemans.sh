#!/usr/bin/env bash
# inflect: the plural of "gentleman" is "gentlemans" and that of "burrito" "burritoes", though "policeman" gives "policemen" and "photo" "photos".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check inflect==7.5.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import inflect

engine = inflect.engine()
print(f"inflect {version('inflect')}")
found = {word: engine.plural_noun(word) for word in ("policeman", "snowman", "gentleman", "photo", "burrito", "flamingo")}
for word, plural in found.items():
    print(f"plural_noun({word!r}) = {plural!r}")
wrong = engine.plural_noun("gentleman") == "gentlemans" and engine.plural_noun("burrito") == "burritoes"
as_found = wrong and found["policeman"] == "policemen" and found["photo"] == "photos"
print("as found" if as_found else "this has changed")
sys.exit(not as_found)
PYTHON
