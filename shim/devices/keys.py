"""Encrypt and decrypt the secrets of devices with AES-256-GCM.

The key is SHIM_DEVICE_KEY, or by default a file of mode 0600 beside the SQLite database. Either may hold
several keys: the first encrypts, all of them decrypt, so that a key can be replaced. Each row names its key
by `key_id`, and its associated data are the device's id and the person's uid, so that a row is worth nothing
under another id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_FILE_BYTES = 65536
_SEPARATORS = re.compile(r"[\s,]+")
_COMMENT = "# The key that encrypts the device passwords of navidrome-auth-shim. Keep it with the database.\n"


class KeyFault(Exception):
    """The key is missing, unreadable or wrong; the message states what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class EncryptedSecret:
    """An encrypted secret."""

    key_id: str
    nonce: bytes
    data: bytes = field(repr=False)


class Keyring:
    """The keys of this process: the first encrypts. At least one."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        # Import late: without a device nothing is encrypted, and this is megabytes.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        self._ciphers = {key_id(key): AESGCM(key) for key in reversed(keys)}
        self.current = key_id(keys[0])

    def __contains__(self, name: str) -> bool:
        return name in self._ciphers

    def encrypt(self, secret: str, device_id: str, uid: str) -> EncryptedSecret:
        """Encrypt a secret for this device of this person."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = self._ciphers[self.current]
        data = cipher.encrypt(nonce, secret.encode(), _associated(device_id, uid))
        return EncryptedSecret(self.current, nonce, data)

    def decrypt(self, encrypted: EncryptedSecret, device_id: str, uid: str) -> bytes:
        """Return the secret. Raises `KeyFault` if its key is not there, or if the row was changed."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        cipher = self._ciphers.get(encrypted.key_id)
        if cipher is None:
            raise KeyFault(
                f"the secret of device {device_id} is encrypted with the key {encrypted.key_id}, and the key "
                f"in use is {self.current}"
            )
        try:
            return cipher.decrypt(encrypted.nonce, encrypted.data, _associated(device_id, uid))
        except (InvalidTag, ValueError):
            raise KeyFault(
                f"the secret of device {device_id} was changed in the database"
            ) from None


def _associated(device_id: str, uid: str) -> bytes:
    # The id has a fixed alphabet without a line end, so the two can't be read in another way.
    return f"{device_id}\n{uid}".encode("utf-8", "surrogatepass")


def key_id(key: bytes) -> str:
    """Return the public name of a key."""
    return hashlib.sha256(b"navidrome-auth-shim device key\n" + key).hexdigest()[:12]


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys in a text: each is 32 bytes in hexadecimal or base64, separated by blanks, commas or
    line ends; lines that begin with `#` are comments. Raises `KeyFault`, which shows nothing of the text."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = [word for word in _SEPARATORS.split("\n".join(lines)) if word]
    keys = tuple(map(_parse_key, words))
    if not keys:
        raise KeyFault("there is no key in it")
    if len({key_id(key) for key in keys}) != len(keys):
        raise KeyFault("it has the same key twice")
    return keys


def _parse_key(word: str) -> bytes:
    expected = f"expected {KEY_BYTES} bytes as 64 hexadecimal digits or in base64"
    try:
        if len(word) == 2 * KEY_BYTES:
            return bytes.fromhex(word)
        padded = word.rstrip("=") + "=" * (-len(word.rstrip("=")) % 4)
        key = base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except (ValueError, binascii.Error):
        raise KeyFault(expected) from None
    if len(key) != KEY_BYTES:
        raise KeyFault(f"{expected}, got {len(key)} bytes")
    return key


class KeySource:
    """Where the keys come from: the text of SHIM_DEVICE_KEY, or else `file`. Neither, with PostgreSQL."""

    def __init__(self, text: str | None, file: Path | None) -> None:
        self._text = text
        self.file = None if text is not None else file

    def load(self) -> Keyring:
        """Read the keys. Raises `KeyFault`."""
        return Keyring(self._keys())

    def problem(self) -> str | None:
        """Return why the keys can't be used, None if they can, or if none was needed yet."""
        if self.can_create or self.is_missing:
            return None
        try:
            self._keys()
        except KeyFault as error:
            return str(error)
        return None

    @property
    def is_missing(self) -> bool:
        """Return whether there is neither a setting nor a place for a file: no device can be added."""
        return self._text is None and self.file is None

    @property
    def can_create(self) -> bool:
        """Return whether there is no key yet, and a file may be created for one."""
        return self.file is not None and not self.file.exists()

    def create(self) -> Keyring:
        """Create the file with a new key. Another process may do so first: then that key counts. Raises
        `KeyFault`."""
        assert self.file is not None
        temporary = self._write_temporary((secrets.token_bytes(KEY_BYTES),))
        try:
            os.link(temporary, self.file)  # fails if the file exists by now, and is whole if not
        except FileExistsError:
            pass
        except OSError as error:
            raise self._fault(error.strerror or str(error)) from None
        finally:
            temporary.unlink(missing_ok=True)
        return self.load()

    def add_new_key(self) -> Keyring:
        """Put a new key before those in the file. Raises `KeyFault`, also where the keys are a setting."""
        keys = self._keys()
        if self.file is None:
            raise KeyFault(
                "the key is a setting: put a new key before the present one in SHIM_DEVICE_KEY (NEW,OLD), "
                "restart the shim, and run the command again"
            )
        self._replace((secrets.token_bytes(KEY_BYTES), *keys))
        return self.load()

    def drop_old_keys(self, used: Collection[str]) -> None:
        """Keep only the first key in the file, unless another one is `used` (by `key_id`). Raises
        `KeyFault`."""
        if self.file is None:
            return
        first, *others = self._keys()
        if others and not any(key_id(each) in used for each in others):
            self._replace((first,))

    @property
    def has_old_keys(self) -> bool:
        """Return whether there is more than one key. Raises `KeyFault`."""
        return len(self._keys()) > 1

    def _keys(self) -> tuple[bytes, ...]:
        if self._text is not None:
            try:
                return parse_keys(self._text)
            except KeyFault as error:
                raise KeyFault(f"SHIM_DEVICE_KEY: {error}") from None
        if self.file is None:
            raise KeyFault(
                "SHIM_DEVICE_KEY is not set, and PostgreSQL has no place for a key file: set it to the "
                "output of `openssl rand -hex 32`"
            )
        try:
            with self.file.open("rb") as opened:
                content = opened.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise self._fault("the file is missing") from None
        except OSError as error:
            raise self._fault(error.strerror or str(error)) from None
        try:
            return parse_keys(content[:_MAX_FILE_BYTES].decode("ascii"))
        except UnicodeDecodeError:
            raise self._fault("it is not text") from None
        except KeyFault as error:
            raise self._fault(str(error)) from None

    def _fault(self, detail: str) -> KeyFault:
        return KeyFault(f"key file {self.file}: {detail}")

    def _replace(self, keys: Sequence[bytes]) -> None:
        assert self.file is not None
        temporary = self._write_temporary(keys)
        try:
            temporary.replace(self.file)
            _sync_folder(self.file.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._fault(error.strerror or str(error)) from None

    def _write_temporary(self, keys: Sequence[bytes]) -> Path:
        """Write a file beside the key file, complete on disk. Raises `KeyFault`."""
        assert self.file is not None
        temporary = self.file.with_name(f"{self.file.name}.{secrets.token_hex(4)}.tmp")
        content = _COMMENT + "".join(f"{key.hex()}\n" for key in keys)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(content.encode())
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise self._fault(f"can't be written: {error.strerror or error}") from None
        return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
