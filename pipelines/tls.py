"""The certificates of a server, looked at before it starts: what is wrong with them is said once and clearly."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import ConfigError
from features.frames import first_line


@dataclass(frozen=True)
class Tls:
    """PEM files.

    Attributes:
        cert: The server's certificate, with those between it and its authority.
        key: Its private key, without a password.
        client_ca: The authorities of clients. With them a client must show a certificate that one of them signed,
            before anything of a request is read.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Loads the files.

        Raises:
            ConfigError: One is missing or no PEM file, the key has a password or is not that of the certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for path in (self.cert, self.key, self.client_ca):
            if path is not None and not path.is_file():
                raise ConfigError("there is no such file", field=str(path), mend="give the path of a PEM file")
        try:
            # Without a password given, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                "certificate and key cannot be used",
                field=f"{self.cert}, {self.key}",
                found=first_line(error),
                expected="a PEM certificate and its PEM key, without a password",
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    "the authorities of clients cannot be used",
                    field=str(self.client_ca),
                    found=first_line(error),
                    expected="PEM certificates",
                ) from error

    def options(self) -> dict[str, Any]:
        """What uvicorn is told."""
        return {
            "ssl_certfile": str(self.cert),
            "ssl_keyfile": str(self.key),
            "ssl_ca_certs": str(self.client_ca) if self.client_ca is not None else None,
            "ssl_cert_reqs": ssl.CERT_NONE if self.client_ca is None else ssl.CERT_REQUIRED,
        }
