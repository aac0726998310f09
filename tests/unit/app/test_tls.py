"""The certificate that the data plane shows: what is wrong with the files is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shim.app.tls import CertificateError, build_listener_tls
from shim.settings import load
from tests.support.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def why_not(certificate: Path, key: Path) -> str:
    settings = load({"SHIM_TLS_CERT": str(certificate), "SHIM_TLS_KEY": str(key)}, None)
    with pytest.raises(CertificateError) as unusable:
        build_listener_tls(settings)
    said = str(unusable.value)
    assert said.startswith(f"SHIM_TLS_CERT={certificate}, SHIM_TLS_KEY={key}: ")
    return said


def test_without_one_there_is_no_tls() -> None:
    assert build_listener_tls(load({}, None)) is None


def test_the_two_that_belong_together_are_taken(made: Certificates) -> None:
    settings = load({"SHIM_TLS_CERT": str(made.certificate), "SHIM_TLS_KEY": str(made.key)}, None)
    assert build_listener_tls(settings) is not None


def test_the_key_of_another_certificate(made: Certificates, tmp_path: Path) -> None:
    assert "the key is not that of the certificate" in why_not(made.certificate, _key(tmp_path))


def test_a_key_with_a_password_is_not_asked_for_it(made: Certificates, tmp_path: Path) -> None:
    assert "without a password" in why_not(made.certificate, _key(tmp_path, b"s3cret"))


def test_a_file_that_is_no_certificate(made: Certificates, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing of the kind")
    assert "expected a certificate chain and its key in PEM" in why_not(junk, made.key)
    assert "expected a certificate chain and its key in PEM" in why_not(made.certificate, junk)


def _key(folder: Path, password: bytes = b"") -> Path:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    path = folder / "key.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
    )
    return path
