"""Certificates and keys that are none: named, and never taken for an address in use."""

import base64
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from detector_bridge.certificates import read_authorities, read_pair
from detector_bridge.client import ClientConfig, DetectorClient
from detector_bridge.errors import InputError
from detector_bridge.messages import Answer, Request
from tests.detector_bridge.sidecar import ROOT, encode, failed_start, picture, sidecar
from tests.detector_bridge.test_server import ask


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Path:
    """Good pairs, and files that are wrong in every way that happens."""
    place = tmp_path_factory.mktemp("pem")
    for name in ("one", "other"):
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(place / f"{name}.ca")
        issued.private_key_pem.write_to_path(place / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(place / f"{name}.pem")
        issued.private_key_and_cert_chain_pem.write_to_path(place / f"{name}.both")
    certificate, key = (place / "one.pem").read_bytes(), (place / "one.key").read_bytes()
    (place / "empty").write_bytes(b"")
    (place / "text").write_bytes(b"certificate of my server\n")
    (place / "der").write_bytes(base64.b64decode(b"".join(certificate.splitlines()[1:-1])))
    (place / "cut.pem").write_bytes(certificate[: len(certificate) // 2] + b"\n-----END CERTIFICATE-----\n")
    (place / "cut.key").write_bytes(key[: len(key) // 2])
    (place / "folder").mkdir()
    encrypted = ["openssl", "pkey", "-in", place / "one.key", "-aes256", "-passout", "pass:secret"]
    (place / "locked.key").write_bytes(subprocess.run(encrypted, check=True, capture_output=True).stdout)
    legacy = [*encrypted[:5], "-traditional", *encrypted[5:]]
    (place / "legacy.key").write_bytes(subprocess.run(legacy, check=True, capture_output=True).stdout)
    return place


PAIRS = [
    ("nowhere", "one.key", "nowhere cannot be read"),
    ("folder", "one.key", "folder cannot be read (Is a directory)"),
    ("one.pem", "nowhere", "nowhere cannot be read"),
    ("empty", "one.key", "empty holds no certificate (a line -----BEGIN CERTIFICATE-----); it is empty"),
    ("text", "one.key", "text holds no certificate"),
    ("der", "one.key", "it looks like DER"),
    ("one.pem", "text", "text holds no private key (a line -----BEGIN PRIVATE KEY-----)"),
    ("one.key", "one.pem", "one.key holds no certificate (a line -----BEGIN CERTIFICATE-----); it holds a private key"),
    ("one.pem", "other.pem", "other.pem holds no private key (a line -----BEGIN PRIVATE KEY-----); it holds a cert"),
    ("one.pem", "other.key", "other.key is not the key of the certificate in"),
    ("cut.pem", "one.key", "cut.pem is damaged"),
    ("one.pem", "cut.key", "cut.key is damaged"),
    ("one.pem", "locked.key", "locked.key is a key with a passphrase"),
    ("one.pem", "legacy.key", "legacy.key is a key with a passphrase"),
]


@pytest.mark.parametrize(("certificate", "key", "named"), PAIRS)
def test_pairs_that_are_none(pem, certificate, key, named):
    with pytest.raises(InputError) as caught:
        read_pair(pem / certificate, pem / key)
    assert named in str(caught.value).replace(f"{pem}/", "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("nowhere", "cannot be read"),
        ("empty", "it is empty"),
        ("text", "holds no certificate"),
        ("one.key", "it holds a private key"),
        ("cut.pem", "cut.pem is damaged"),
    ],
)
def test_authorities_that_are_none(pem, file, named):
    with pytest.raises(InputError, match=named):
        read_authorities(pem / file)


def test_good_ones_are_returned_as_they_are(pem):
    assert read_pair(pem / "one.pem", pem / "one.key") == tuple((pem / f"one.{x}").read_bytes() for x in ("pem", "key"))
    assert read_pair(pem / "one.both", pem / "one.both")[0] == (pem / "one.both").read_bytes()
    assert read_authorities(pem / "one.ca") == (pem / "one.ca").read_bytes()


@pytest.mark.parametrize(("certificate", "key", "named"), [PAIRS[4], PAIRS[7], PAIRS[9], PAIRS[10], PAIRS[12]])
def test_the_server_names_them(model, pem, certificate, key, named):
    options = ("--model", model, "--listen", "127.0.0.1:0", "--tls-cert", pem / certificate, "--tls-key", pem / key)
    message = failed_start(*map(str, options))
    assert named in message.replace(f"{pem}/", "")
    assert "listened on" not in message


@pytest.mark.slow
@pytest.mark.main
def test_an_address_in_use_is_still_named_with_good_ones(model, pem):
    options = ("--tls-cert", pem / "one.pem", "--tls-key", pem / "one.key")
    with sidecar(model, *map(str, options)) as running:
        message = failed_start(*map(str, ("--model", model, "--listen", running.address, *options)))
        assert f"--listen {running.address} cannot be listened on" in message
        answers = ask(running.address, [Request(encode(picture(0)), ("dog",))], tls_ca=pem / "one.ca")
        assert isinstance(answers[0], Answer)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tls_ca": "text"}, "text holds no certificate"),
        ({"tls_ca": "one.key"}, "it holds a private key"),
        ({"tls_ca": "one.ca", "tls_cert": "one.pem", "tls_key": "other.key"}, "other.key is not the key"),
        ({"tls_ca": "one.ca", "tls_cert": "one.key", "tls_key": "one.pem"}, "swapped"),
        ({"tls_cert": "one.pem"}, "both tls_cert and tls_key"),
        ({"tls_ca": "nowhere"}, "cannot be read"),
    ],
)
def test_the_client_names_them_before_it_asks(pem, options, named):
    files = {name: pem / file for name, file in options.items()}
    with pytest.raises(InputError, match=named):
        DetectorClient(ClientConfig(("127.0.0.1:9",), **files))
    command = [sys.executable, "-m", "detector_bridge.client", "--address", "127.0.0.1:9", "--image", "x.jpg"]
    command += ["--phrases", "dog", *(f"--{name.replace('_', '-')}={file}" for name, file in files.items())]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 20
