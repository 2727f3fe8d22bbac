"""Fetches a model as the sidecar does and says where it is, or why not.

python -m tests.detector_bridge.run_hub ORG/NAME
"""

import logging
import sys

from detector_bridge import hub
from detector_bridge.command import run


def main() -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("detector_bridge").setLevel(logging.INFO)
    directory = hub.whole_model(sys.argv[1])
    print(directory)
    print(hub.origin(directory))
    print(" ".join(sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())))


if __name__ == "__main__":
    run(main)
