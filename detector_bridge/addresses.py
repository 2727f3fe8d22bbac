"""Where a server may listen, and who may talk to it."""

import hmac
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from detector_bridge.certificates import read_authorities, read_bytes, read_pair
from detector_bridge.errors import InputError

# Kubernetes and load balancers ask for health without credentials.
_OPEN_METHODS = "/grpc.health.v1.Health/"

# Further kinds of names that gRPC resolves for a client.
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "xds:", "unix-abstract:")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"[\w.:%-]+")
_LONGEST_SOCKET = 107  # bytes of a path in Linux's sockaddr_un


@dataclass(frozen=True)
class Security:
    """How strangers are kept out.

    Attributes:
      tls_cert: the server's certificate chain, PEM.
      tls_key: its key, PEM.
      tls_client_ca: certificates (PEM) of who signs clients; a client without one is turned away (mTLS).
      token_file: file whose content every call must bring as `authorization: Bearer TOKEN`.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    token_file: Path | None = None

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS credentials, None without TLS.

        Raises:
          InputError: half a pair, or a file that cannot be read or used.
        """
        if not self.tls_cert and not self.tls_key and not self.tls_client_ca:
            return None
        if not self.tls_cert or not self.tls_key:
            raise InputError("TLS needs both --tls-cert and --tls-key; give the one that is missing")
        client_ca = read_authorities(self.tls_client_ca) if self.tls_client_ca else None
        chain, key = read_pair(self.tls_cert, self.tls_key)
        return grpc.ssl_server_credentials([(key, chain)], client_ca, require_client_auth=client_ca is not None)

    def token(self) -> str | None:
        """The token, None without one."""
        return read_token(self.token_file) if self.token_file else None


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
      InputError: the file cannot be read, or holds no token that a header can carry.
    """
    token = read_bytes(path).decode("ascii", "replace").strip()
    if not token or not token.isprintable() or not token.isascii():
        raise InputError(f"{path} holds no token: expected one line of printable ASCII")
    return token


def is_local(address: str) -> bool:
    """Whether an address can only be reached from this machine: a Unix socket or loopback."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(address: str, security: Security) -> None:
    """Refuses an address that is malformed, or open to the network without TLS or a token.

    Raises:
      InputError: says what is missing.
    """
    _check_form(address, f"--listen {address}", lowest_port=0)
    if not is_local(address) and not security.tls_cert and not security.token_file:
        raise InputError(
            f"--listen {address} can be reached from other machines: give --tls-cert and --tls-key, or --token-file,"
            " or listen on 127.0.0.1 or unix:PATH"
        )


def check_target(address: str) -> None:
    """Refuses what a client cannot ask, which gRPC would try until the time is over.

    Raises:
      InputError: says what is wrong.
    """
    if not address.startswith(_GRPC_SCHEMES):
        _check_form(address, f"address {address!r}", lowest_port=1)


def _check_form(address: str, name: str, *, lowest_port: int) -> None:
    expected = f"{name}: expected HOST:PORT, [IPV6]:PORT or unix:PATH"
    if not address or any(letter.isspace() or not letter.isprintable() for letter in address):
        raise InputError(f"{expected}, got {'a space in it' if address else 'nothing'}")
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path or len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise InputError(f"{expected}, got a path of {len(path)} letters; it may have 1 to {_LONGEST_SOCKET}")
        return
    if scheme := _SCHEME.match(address):
        raise InputError(f"{expected}; leave out {scheme[0]}")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port:
        raise InputError(f"{expected}, got no {'host' if colon and port else 'port'}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InputError(f"{expected}; put an IPv6 address into brackets")
    if not (port.isascii() and port.isdigit() and lowest_port <= int(port) < 65536):
        raise InputError(f"{expected}, got port {port}; it is a number from {lowest_port} to 65535")
    if not _HOST.fullmatch(host.removeprefix("[").removesuffix("]")):
        raise InputError(f"{expected}, got host {host}")


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Turns away calls without the token, before anything of them is read; health checks need none."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        given = dict(details.invocation_metadata).get("authorization", "")
        given = given.encode() if isinstance(given, str) else given
        if handler is None or details.method.startswith(_OPEN_METHODS) or hmac.compare_digest(given, self._expected):
            return handler

        async def turn_away(_: Any, context: grpc.aio.ServicerContext) -> Any:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this server needs its token: authorization: Bearer ..."
            )

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(turn_away)
        return grpc.unary_unary_rpc_method_handler(turn_away)
