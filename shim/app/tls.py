"""Load the TLS certificate of the data plane, at start and with each reload.

A renewed certificate applies from the next handshake on; open connections keep the previous one.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from shim.settings import Settings


class CertificateError(Exception):
    """The certificate cannot be used. The message names the files and contains nothing of the key."""


def build_listener_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of the data plane, or None for plain HTTP. Raises `CertificateError`."""
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password OpenSSL would prompt for one on the terminal.
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
        return f"{files}: the key does not belong to the certificate"
    return (
        f"{files}: expected a certificate chain and its key in PEM, the key without a password "
        f"({error.reason or 'not readable'})"
    )
