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

VARIABLE = "VLLM_API_KEY"
"""The environment variable that holds a key when no flag gives one."""

_SENDABLE = re.compile(r"[!-~]+")
"""What the value of a header can hold without being trimmed or changed on its way: visible ASCII, no spaces."""


def keys_from_environment() -> list[str] | None:
    """The key in the environment, as a list of one; ``None`` when there is none."""
    key: str | None = envs.get(VARIABLE)
    if key is None and VARIABLE in os.environ:
        logger.warning("%s is set but empty: requests need no key", VARIABLE)
    return [key] if key else None


def check_keys(keys: Iterable[str]) -> None:
    """Raise ``ConfigError`` for a key that no request could carry. The message does not show the key."""
    for place, key in enumerate(keys, 1):
        if not _SENDABLE.fullmatch(key):
            fault = "is empty" if not key else "holds spaces, line breaks or characters outside ASCII"
            raise ConfigError(
                f"api_key (or {VARIABLE}): key {place} {fault}; a key is made of visible ASCII characters",
                field="api_key",
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
