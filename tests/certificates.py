"""Certificates of an authority that nobody else knows."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Certificates:
    """A certificate in a folder, and what a client trusts it with.

    Args:
        folder: Where the files are written.
        names: What it is for.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.names = names or ("localhost", "127.0.0.1")
        self.folder = folder
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.authority = trustme.CA()
        self.trust = ssl.create_default_context()
        self.authority.configure_trust(self.trust)
        self.renew()

    def renew(self) -> None:
        """Write a new certificate over the old one."""
        issued = self.authority.issue_cert(*self.names)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())

    @property
    def options(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}
