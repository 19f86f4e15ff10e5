"""The certificate of a node that speaks TLS itself."""

from __future__ import annotations

import ssl

from freeim.config import Options
from freeim.errors import ConfigError


def server_context(options: Options) -> ssl.SSLContext | None:
    """Return what TLS connections are accepted with, or None where the node speaks plain HTTP.

    Raises:
        ConfigError: The certificate or its key cannot be used; the sentence says why.
    """
    cert, key = options.tls_cert, options.tls_key
    if cert is None:
        if key is not None:
            raise ConfigError("tls_key is given but no tls_cert; name the certificate too", "tls_key", "tls_cert")
        return None
    # Its defaults are those of ssl for servers: TLS 1.2 or newer, no compression.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A peer that asks for one new handshake after the other would keep a core busy with a single connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    for name, file in (("tls_cert", cert), ("tls_key", key)):
        if file is not None:
            _check_readable(name, file)
    try:
        context.load_cert_chain(cert, key, password=_refuse_password)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls_cert {cert!r} with the key in {key or cert!r} cannot be used ({_explain(error)}); both must be PEM "
            "files, the certificate with its chain, and the key must belong to it",
            "tls_cert",
            "tls_key",
        ) from error
    return context


def _check_readable(name: str, file: str) -> None:
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{name} {file!r} cannot be read: {error.strerror}", name) from error


def _refuse_password() -> str:
    raise ConfigError(
        "the key of tls_cert is encrypted, and a node has nobody to ask for its password; store it without one, and "
        "readable by the node's user alone",
        "tls_key",
    )


def _explain(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)
