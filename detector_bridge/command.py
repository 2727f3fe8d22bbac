"""What the commands of this package share: mistakes in what was given end in one line and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from detector_bridge.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose options have their whole names."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command: exit code 0 when done, 2 with one line when what the user gave is wrong, 1 for a defect."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
