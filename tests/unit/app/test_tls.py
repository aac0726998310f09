"""The TLS certificate of the data plane: invalid files are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shim.app.tls import CertificateError, build_listener_tls
from shim.settings import load
from tests.support.certificates import Certificates, make_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def load_error(certificate: Path, key: Path) -> str:
    settings = load({"SHIM_TLS_CERT": str(certificate), "SHIM_TLS_KEY": str(key)}, None)
    with pytest.raises(CertificateError) as unusable:
        build_listener_tls(settings)
    message = str(unusable.value)
    assert message.startswith(f"SHIM_TLS_CERT={certificate}, SHIM_TLS_KEY={key}: ")
    return message


def test_without_a_certificate_there_is_no_tls() -> None:
    assert build_listener_tls(load({}, None)) is None


def test_a_matching_certificate_and_key_are_loaded(files: Certificates) -> None:
    settings = load({"SHIM_TLS_CERT": str(files.certificate), "SHIM_TLS_KEY": str(files.key)}, None)
    assert build_listener_tls(settings) is not None


def test_the_key_of_another_certificate_is_rejected(files: Certificates, tmp_path: Path) -> None:
    assert "the key does not belong to the certificate" in load_error(
        files.certificate, _key(tmp_path)
    )


def test_an_encrypted_key_is_rejected_without_a_prompt(files: Certificates, tmp_path: Path) -> None:
    assert "without a password" in load_error(files.certificate, _key(tmp_path, b"s3cret"))


def test_a_file_that_is_not_a_certificate_is_rejected(files: Certificates, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing of the kind")
    assert "expected a certificate chain and its key in PEM" in load_error(junk, files.key)
    assert "expected a certificate chain and its key in PEM" in load_error(files.certificate, junk)


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
