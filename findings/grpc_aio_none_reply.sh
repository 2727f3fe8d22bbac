#!/usr/bin/env bash
# grpc.aio: a reply whose deserializer raises is handed to the caller as None with status OK; the synchronous client raises INTERNAL.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check grpcio==1.74.0
"$work/venv/bin/python" - 2>"$work/log" <<'PYTHON'
import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

# A service whose replies are plain text, asked by clients that expect JSON: both are valid gRPC.
server = grpc.server(ThreadPoolExecutor(2))
handlers = {"Ask": grpc.unary_unary_rpc_method_handler(lambda request, context: b"plain text")}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Service", handlers),))
address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()

with grpc.insecure_channel(address) as channel:
    try:
        reply = channel.unary_unary("/demo.Service/Ask", response_deserializer=json.loads)(b"")
        synchronous = f"returned {reply!r}"
    except grpc.RpcError as error:
        synchronous = f"raised {error.code().name}: {error.details()}"


async def ask() -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/demo.Service/Ask", response_deserializer=json.loads)(b"")
        try:
            return f"returned {await call!r}, status {(await call.code()).name}"
        except grpc.RpcError as error:
            return f"raised {error.code().name}: {error.details()}"


asynchronous = asyncio.run(ask())
server.stop(0).wait()
print(f"grpcio {grpc.__version__}")
print(f"synchronous client: {synchronous}")
print(f"grpc.aio client:    {asynchronous}")
as_found = synchronous.startswith("raised INTERNAL") and asynchronous == "returned None, status OK"
print("as found" if as_found else "this has changed")
sys.exit(not as_found)
PYTHON
