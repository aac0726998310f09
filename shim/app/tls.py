"""The certificate that the data plane shows: read at the start, and again with every reload.

A renewed certificate is shown from the next handshake on; connections that are open keep theirs.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from shim.settings import Settings


class CertificateError(Exception):
    """There is nothing to show. The message names the files, and nothing of the key."""


def build_listener_tls(settings: Settings) -> ssl.SSLContext | None:
    """What the data plane speaks TLS with; None where it speaks plain HTTP. Raises `CertificateUnusable`."""
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password it would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise CertificateError(_load_error(certificate, key, error)) from None
    return context


def _load_error(certificate: Path, key: Path, error: Exception) -> str:
    files = f"SHIM_TLS_CERT={certificate}, SHIM_TLS_KEY={key}"
    if not isinstance(error, ssl.SSLError):
        reason = getattr(error, "strerror", None) or str(error)
        return f"{files}: {reason}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{files}: the key is not that of the certificate, expected the two that belong together"
    return (
        f"{files}: expected a certificate chain and its key in PEM, the key without a password "
        f"({error.reason or 'not readable'})"
    )
