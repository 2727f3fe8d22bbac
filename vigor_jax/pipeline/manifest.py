"""What a run directory was made with: a stage whose settings have changed, or those of a stage before it, is stale.

`stages.json` has an entry for each stage that was begun: its settings, and fingerprints of the stages that it reads.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vigor_jax import fingerprint
from vigor_jax.data.records.store import remove
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.stages.stage import Result


class RunManifest:
    """Compares a run directory with the settings of today.

    Args:
      run_dir: the run directory.
      results: all that a run may make, whether they are to be made now or not. Settings are read of those that are to
        be made, that were begun, and of what they are made of.
    """

    def __init__(self, run_dir: Path, results: Sequence[Result]) -> None:
        self._path = run_dir / "stages.json"
        self._results = _in_order(results)
        self._today: dict[str, dict[str, Any]] = {}  # of those that were asked for
        self._left: dict[str, str] = {}

    @property
    def results(self) -> tuple[Result, ...]:
        """All results, each after those that it is made of."""
        return tuple(self._results.values())

    def mark(self, name: str) -> str:
        """Names the settings of today that a stage's result depends on, those of the stages before it included."""
        return fingerprint.digest(self.today(name))

    def today(self, name: str) -> Mapping[str, Any]:
        """The settings of a stage, and fingerprints of those that it reads; of no others.

        Raises:
          InputError: they cannot be read.
        """
        if name not in self._today:
            result = self._results[name]
            after = {each: self.mark(each) for each in result.after}
            self._today[name] = {"settings": dict(result.settings), "after": after}
        return self._today[name]

    def leave_to_stage(self, name: str, key: str) -> None:
        """Lets a stage find out by itself what a change of one setting means, until a stage after it was begun."""
        self._left[name] = key

    def stale(self) -> list[str]:
        """Stages that were begun with other settings, or after stages that were, in their order."""
        begun = self._read()
        for name, key in self._left.items():
            now = self.today(name)["settings"]
            if name in begun and key in now and not begun.keys() & set(self.after(name)[1:]):
                begun[name]["settings"][key] = now[key]
        return [name for name in self._results if name in begun and begun[name] != self.today(name)]

    def check(self, stages: Collection[str], *, overwrite: bool) -> list[str]:
        """The stale stages, which may be removed.

        Args:
          stages: those that are to be run now.
          overwrite: whether stale ones may be removed.

        Raises:
          InputError: there are some, and `overwrite` is false, or they would not be run again; says what changed.
        """
        if not (stale := self.stale()):
            return []
        changes = "; ".join(self._changes(stale)) or "other stages"
        what = f"{self._path.parent} was made with {changes}; this makes {', '.join(stale)} stale"
        if not overwrite:
            raise InputError(
                f"{what}; go back to those settings, choose another run.dir, or give --run.overwrite true to remove "
                "what is stale and make it again"
            )
        if kept := [name for name in stale if name not in stages]:
            raise InputError(f"{what}; add {', '.join(kept)} to run.stages, for nothing else makes that again")
        return stale

    def after(self, name: str) -> list[str]:
        """A stage and all that were made of its results."""
        found = [name]
        for stage in self._results.values():
            if stage.name not in found and set(stage.after) & set(found):
                found.append(stage.name)
        return found

    def remove(self, names: Iterable[str]) -> None:
        """Removes what stages left; the last first, so that a kill leaves nothing younger than what it is made of."""
        begun = self._read()
        for name in reversed([name for name in self._results if name in set(names)]):
            for output in self._results[name].outputs:
                remove(output)
            begun.pop(name, None)
            self._write(begun)

    def begin(self, name: str) -> None:
        """Notes that a stage is being run with the settings of today."""
        self._write({**self._read(), name: self.today(name)})

    def _changes(self, stale: Iterable[str]) -> list[str]:
        begun = self._read()
        found: list[str] = []
        for name in stale:
            found += map(str, fingerprint.differences(begun[name]["settings"], self.today(name)["settings"]))
        return list(dict.fromkeys(found))

    def _read(self) -> dict[str, Any]:
        try:
            begun = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InputError(f"{self._path} is damaged ({error}); remove it, or choose another run.dir") from None
        entries = begun.values() if isinstance(begun, dict) else [None]
        if not all(isinstance(entry, dict) and isinstance(entry.get("settings"), dict) for entry in entries):
            raise InputError(
                f"{self._path} is damaged (expected the settings of each stage); remove it, or choose another run.dir"
            )
        return begun

    def _write(self, begun: Mapping[str, Any]) -> None:
        partial = self._path.with_name(f".{self._path.name}.partial")
        with naming(partial):
            partial.write_text(json.dumps(begun, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path)


def _in_order(results: Sequence[Result]) -> dict[str, Result]:
    """Results by name, each after those that it is made of, and else as they are given."""
    by_name, found = {result.name: result for result in results}, dict[str, Result]()

    def add(result: Result) -> None:
        for name in result.after:
            if name in by_name and name not in found:
                add(by_name[name])
        found[result.name] = result

    for result in results:
        if result.name not in found:
            add(result)
    return found
