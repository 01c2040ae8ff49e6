"""HTTPS with certificates made here: who has the wrong one, or none, gets no answer."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from features.errors import ConfigError
from pipelines.tls import Tls
from tests.integration.conftest import recsys
from tests.integration.hostile import wide_bundle, wide_rows
from tests.integration.test_serve import PATIENCE, Server, Store, until

BODY = {"rows": wide_rows(2, 1)}


class Certificates:
    """An authority for servers, one for clients, and a stranger's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers, self.clients, self.strangers = trustme.CA(), trustme.CA(), trustme.CA()
        issued = self.servers.issue_cert("127.0.0.1", "localhost")
        self.cert, self.key, self.client_ca = folder / "cert.pem", folder / "key.pem", folder / "clients.pem"
        issued.private_key_pem.write_to_path(str(self.key))
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(str(self.cert), append=number > 0)
        self.clients.cert_pem.write_to_path(str(self.client_ca))

    def context(self, client: trustme.CA | None = None) -> ssl.SSLContext:
        """Of a client that trusts the server, with a certificate of some authority."""
        context = ssl.create_default_context()
        self.servers.configure_trust(context)
        if client is not None:
            client.issue_cert("batch@here").configure_cert(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[Server]:
    """Asks clients for a certificate."""
    bundle = wide_bundle(certificates.folder / "clicks")
    options = ["--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)]
    options += ["--tls-client-ca", str(certificates.client_ca), "--timeout-ms", "60000"]
    with Server(Store("", certificates.folder, {}), *options, model=str(bundle)) as started:
        assert started.process.stdout is not None
        line = started.process.stdout.readline()
        assert line.startswith("serving clicks version"), (line, started.log.read_text())
        started.url = line.split()[5]
        yield started
        assert started.stop() == 0


def test_a_client_with_a_certificate_of_its_authority_is_answered(server: Server, certificates: Certificates) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    with httpx.Client(base_url=server.url, timeout=PATIENCE, verify=certificates.context(certificates.clients)) as http:
        until(lambda: http.get("/readyz").status_code == 200)
        answer = http.post("/v1/score", json=BODY)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["scores"]["p_click"]) == 2


def ask(url: str, context: ssl.SSLContext) -> None:
    with httpx.Client(base_url=url, timeout=PATIENCE, verify=context) as http:
        http.get("/healthz")


def test_others_are_turned_away(server: Server, certificates: Certificates) -> None:
    turned_away = (httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)
    with pytest.raises(turned_away):
        ask(server.url, certificates.context())
    with pytest.raises(turned_away):
        ask(server.url, certificates.context(certificates.strangers))
    with pytest.raises(turned_away):
        ask(server.url.replace("https", "http"), certificates.context())


def test_a_client_that_does_not_trust_the_server_says_so(server: Server) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(server.url, ssl.create_default_context())


def test_old_versions_of_tls_are_refused(server: Server, certificates: Certificates) -> None:
    context = certificates.context(certificates.clients)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        ask(server.url, context)


def test_wrong_files_are_named_before_anything_starts(certificates: Certificates, tmp_path: Path) -> None:
    cert, key, other = certificates.cert, certificates.key, tmp_path / "other.pem"
    Tls(cert, key, certificates.client_ca).check()
    with pytest.raises(ConfigError, match=r"other\.pem: there is no such file"):
        Tls(cert, other).check()
    trustme.CA().issue_cert("here").private_key_pem.write_to_path(str(other))
    with pytest.raises(ConfigError, match=r"certificate and key cannot be used.*mismatch"):
        Tls(cert, other).check()
    with pytest.raises(ConfigError, match="the authorities of clients cannot be used"):
        Tls(cert, key, other).check()
    other.write_text("no PEM")
    with pytest.raises(ConfigError, match="certificate and key cannot be used"):
        Tls(other, key).check()


def test_a_key_with_a_password_is_refused_and_not_asked_for(certificates: Certificates, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(certificates.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigError, match="without a password"):
        Tls(certificates.cert, locked).check()


@pytest.mark.parametrize("options", [["--tls-cert", "c.pem"], ["--tls-key", "k.pem"], ["--tls-client-ca", "a.pem"]])
def test_half_of_it_is_not_enough(options: list[str]) -> None:
    outcome = recsys("serve", "bundle", *options)
    assert outcome.code == 2
    assert "TLS needs the server's certificate and its key" in " ".join(outcome.err.replace("│", " ").split())
