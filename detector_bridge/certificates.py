"""Certificates and keys, looked at before gRPC gets them: of a bad one it says only that it failed."""

import re
import ssl
from pathlib import Path

from detector_bridge.errors import InputError

_CERTIFICATE = re.compile(rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY-----")
_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: *4, *ENCRYPTED")


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
      InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a readable file") from None


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """A certificate chain and its key, PEM.

    Raises:
      InputError: a file cannot be read, holds none, holds a key with a passphrase, or the two do not belong together.
    """
    chain = _read(certificate, _CERTIFICATE, "certificate")
    secret = _read(key, _KEY, "private key")
    if _ENCRYPTED.search(secret):
        raise InputError(f"{key} is a key with a passphrase: take it off with openssl pkey -in {key} -out PLAIN.pem")
    try:
        _context().load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(
                f"{key} is not the key of the certificate in {certificate}: give the two as a pair"
            ) from None
        damaged = certificate if _is_damaged(chain) else key
        raise InputError(f"{damaged} is damaged ({_reason(error)}): copy it again") from None
    return chain, secret


def read_authorities(path: Path) -> bytes:
    """Certificates of those who sign, PEM.

    Raises:
      InputError: the file cannot be read, or holds none.
    """
    content = _read(path, _CERTIFICATE, "certificate")
    try:
        _context().load_verify_locations(cadata=content.decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise InputError(f"{path} is damaged ({_reason(error)}): copy it again") from None
    return content


def _read(path: Path, wanted: re.Pattern[bytes], name: str) -> bytes:
    content = read_bytes(path)
    if wanted.search(content):
        return content
    if not content.strip():
        what = "it is empty"
    elif _KEY.search(content):
        what = "it holds a private key: are certificate and key swapped?"
    elif _CERTIFICATE.search(content):
        what = "it holds a certificate: are certificate and key swapped?"
    elif content[:1] == b"\x30":
        what = "it looks like DER: convert it with openssl"
    else:
        what = "give a PEM file"
    raise InputError(f"{path} holds no {name} (a line -----BEGIN {name.upper()}-----); {what}")


def _is_damaged(chain: bytes) -> bool:
    try:
        _context().load_verify_locations(cadata=chain.decode("ascii", "replace"))
    except ssl.SSLError:
        return True
    return False


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # whether a key is long enough is gRPC's to say
    return context


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
