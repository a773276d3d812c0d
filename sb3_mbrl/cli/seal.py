"""A seal on the records of a user's own runs: what a record names is imported without asking if this user has written it."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from sb3_mbrl.agent.whole_files import write_beside

_BYTES = 32


def seal(content: bytes) -> str | None:
    """
    Seal a text with this user's key, which is made at the first call.

    :return: the seal; ``None`` where no key can be kept, such as without a home folder
    """
    try:
        key = _key() or _new_key()
    except (OSError, RuntimeError):  # the second: no home folder
        return None
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def is_sealed(content: bytes, sealed: object) -> bool:
    """Tell whether this user has sealed a text."""
    try:
        key = _key()
    except (OSError, RuntimeError):
        return False
    if key is None or not isinstance(sealed, str):
        return False
    return hmac.compare_digest(hmac.new(key, content, hashlib.sha256).hexdigest().encode(), sealed.encode())


def _path() -> Path:
    configured = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "sb3-mbrl" / "key"


def _key() -> bytes | None:
    path = _path()
    key = path.read_bytes() if path.is_file() else b""
    return key if len(key) == _BYTES else None


def _new_key() -> bytes:
    path, key = _path(), secrets.token_bytes(_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(beside: Path) -> None:
        beside.touch(mode=0o600)
        beside.write_bytes(key)

    write_beside(path, write)
    return key
