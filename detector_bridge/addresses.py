"""Where a server may listen, and who may talk to it."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from detector_bridge.errors import InputError

# Kubernetes and load balancers ask for health without credentials.
_OPEN_METHODS = "/grpc.health.v1.Health/"


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
          InputError: half a pair, or a file that cannot be read.
        """
        if not self.tls_cert and not self.tls_key and not self.tls_client_ca:
            return None
        if not self.tls_cert or not self.tls_key:
            raise InputError("TLS needs both --tls-cert and --tls-key; give the one that is missing")
        client_ca = read_bytes(self.tls_client_ca) if self.tls_client_ca else None
        pair = (read_bytes(self.tls_key), read_bytes(self.tls_cert))
        return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)

    def token(self) -> str | None:
        """The token, None without one."""
        return read_token(self.token_file) if self.token_file else None


def read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a readable file") from None


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
    host, _, port = address.rpartition(":")
    if not address.startswith("unix:") and not (host and port.isdigit() and int(port) < 65536):
        raise InputError(f"--listen {address}: expected HOST:PORT, [IPV6]:PORT or unix:PATH")
    if not is_local(address) and not security.tls_cert and not security.token_file:
        raise InputError(
            f"--listen {address} can be reached from other machines: give --tls-cert and --tls-key, or --token-file,"
            " or listen on 127.0.0.1 or unix:PATH"
        )


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
