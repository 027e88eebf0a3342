"""The keys that requests must carry: where they come from, what they may look like, and whether one is right."""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable

from vllm_engine import envs
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

VARIABLES = {"api_key": "VLLM_API_KEY", "admin_api_key": "VLLM_ADMIN_API_KEY"}
"""Setting -> the environment variable that holds a key when the setting gives none."""

MAX_FILE_BYTES = 1 << 20

_SENDABLE = re.compile(r"[!-~]+")
"""What the value of a header can hold without being trimmed or changed on its way: visible ASCII, no spaces."""


def keys_from_environment(setting: str) -> list[str] | None:
    """The key in the environment for ``api_key`` or ``admin_api_key``, as a list of one; ``None`` without."""
    variable = VARIABLES[setting]
    key: str | None = envs.get(variable)
    if key is None and variable in os.environ:
        logger.warning("%s is set but empty: requests need no key", variable)
    return [key] if key else None


def keys_from_file(path: str) -> list[str]:
    """The keys in a file, one in a line; empty lines, and those that begin with ``#``, are none.

    Raises ``ConfigError`` for a file that cannot be read or holds no key. The message shows nothing of the file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"api_key_file: cannot read {path}: {reason}", field="api_key_file") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"api_key_file: {path} is too long for a list of keys", field="api_key_file")
    keys = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file: {path} holds no key", field="api_key_file")
    check_keys(keys, "api_key_file")
    return keys


def check_keys(keys: Iterable[str], setting: str = "api_key") -> None:
    """Raise ``ConfigError`` for a key that no request could carry. The message does not show the key."""
    source = f"{setting} (or {VARIABLES[setting]})" if setting in VARIABLES else setting
    for place, key in enumerate(keys, 1):
        if not _SENDABLE.fullmatch(key):
            fault = "is empty" if not key else "holds spaces, line breaks or characters outside ASCII"
            raise ConfigError(
                f"{source}: key {place} {fault}; a key is made of visible ASCII characters", field=setting
            )


def tenant_name(key: bytes) -> str:
    """By what a key is known inside: a name that tells nothing of it."""
    return hashlib.sha256(b"tenant " + key).hexdigest()[:32]


class ApiKeys:
    """A set of keys that tells by the time it takes neither which key is near nor how near it is."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def has(self, candidate: bytes) -> bool:
        """Whether ``candidate`` is one of the keys. All are compared, and their digests rather than they themselves."""
        digest = hashlib.sha256(candidate).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found
