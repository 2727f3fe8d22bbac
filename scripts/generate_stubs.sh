#!/usr/bin/env bash
# Makes detector_bridge/detector_pb2*.py from detector.proto, or, with --check, fails where they differ from it.
#     scripts/generate_stubs.sh [--check]
# The compiler is pinned and lives in a temporary environment: code made by it runs with protobuf 6 and 7.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check grpcio-tools==1.74.0
"$work/venv/bin/python" -m grpc_tools.protoc --proto_path=. --python_out="$work" --pyi_out="$work" \
  --grpc_python_out="$work" detector_bridge/detector.proto
if [ "${1:-}" = --check ]; then
  for file in detector_pb2.py detector_pb2.pyi detector_pb2_grpc.py; do
    diff -u "detector_bridge/$file" "$work/detector_bridge/$file" || {
      echo "error: detector_bridge/$file does not fit detector.proto; run scripts/generate_stubs.sh" >&2
      exit 1
    }
  done
else
  cp "$work"/detector_bridge/* detector_bridge/
fi
