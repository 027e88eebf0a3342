"""TLS: the certificates of the listener, and taking up new ones while connections go on."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from typing import Any

from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_server.config import ServerConfig

logger = get_logger(__name__)

POLL_SECONDS = 1.0
"""How often the files are looked at."""

_FILES = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")

_STRANGERS = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""What OpenSSL says of a key that is not the certificate's: of the same kind, or of another."""

_Stamp = tuple[int, int, int] | None


class _NewestContext(ssl.SSLContext):
    """A context that hands each new connection to ``current``.

    A whole new context takes the place of the old one, instead of new files being loaded into the same: nothing stays
    of an authority that is trusted no more, of a key of another kind, or of sessions that could be resumed; and half
    of a broken pair of files is never in use.
    """

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **keywords: Any) -> ssl.SSLObject:
        """What event loops call for a connection."""
        return self.current.wrap_bio(*arguments, **keywords)


class Tls:
    """The TLS side of the listener. ``context`` is for ``create_server``; it stays the same object.

    Raises ``ConfigError``, when made, for files that cannot be read or do not fit together.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stamps = _stamps(config)
        self.context = _NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.current = load_context(config)

    def refresh(self) -> bool:
        """Take up the files if they have changed. Returns whether new ones are in use now.

        Files that cannot be used leave a line in the log, and the old ones in use, until they change again.
        """
        stamps = _stamps(self._config)
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self.context.current = load_context(self._config)
        except ConfigError as error:
            logger.error("the new TLS files are not used, the old ones stay: %s", error)
            return False
        logger.info("new connections use the new TLS files")
        return True


def create_tls(config: ServerConfig) -> Tls | None:
    """The TLS side of a listener, or ``None`` for plain HTTP. Raises ``ConfigError`` as ``Tls`` does."""
    return None if config.ssl_certfile is None else Tls(config)


@contextlib.asynccontextmanager
async def refreshed(tls: Tls | None, config: ServerConfig) -> AsyncIterator[None]:
    """Within, ``tls`` follows its files, if the settings want it so."""
    if tls is None or not config.enable_ssl_refresh:
        yield
        return
    task = asyncio.create_task(_follow(tls))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _follow(tls: Tls) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS)
        await asyncio.to_thread(tls.refresh)  # files may lie on a slow disk


def load_context(config: ServerConfig) -> ssl.SSLContext:
    """A context with the files of the settings: TLS 1.2 and above, HTTP/1.1.

    Raises:
        ConfigError: naming the setting whose file cannot be read, holds something else, or does not fit, or whose
            ciphers nobody knows.
    """
    certificate, key = config.ssl_certfile or "", config.ssl_keyfile
    _check_holds("ssl_certfile", certificate, b"CERTIFICATE-----", "certificate")
    key_setting = "ssl_keyfile" if key else "ssl_certfile"
    _check_holds(key_setting, key or certificate, b"PRIVATE KEY-----", "private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    if config.ssl_ciphers is not None:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"ssl_ciphers: OpenSSL knows no cipher of {config.ssl_ciphers!r}; such as ECDHE+AESGCM:ECDHE+CHACHA20",
                field="ssl_ciphers",
            ) from error
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except (ssl.SSLError, OSError) as error:
        if getattr(error, "reason", None) in _STRANGERS:
            raise ConfigError(
                f"{key_setting}: the key in {key or certificate} does not belong to the certificate in {certificate}",
                field=key_setting,
            ) from error
        # OpenSSL does not tell which of the two files it means: the key's, if it can read the other one.
        fault, path = (
            (key_setting, key or certificate) if _is_certificate(certificate) else ("ssl_certfile", certificate)
        )
        raise ConfigError(f"{fault}: {path} cannot be used: {error}", field=fault) from error
    context.verify_mode = ssl.VerifyMode(config.ssl_cert_reqs)
    if config.ssl_ca_certs is not None:
        _check_holds("ssl_ca_certs", config.ssl_ca_certs, b"CERTIFICATE-----", "certificate")
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"ssl_ca_certs: {config.ssl_ca_certs} cannot be used: {error}", field="ssl_ca_certs"
            ) from error
    return context


def _check_holds(name: str, path: str, mark: bytes, what: str) -> None:
    """OpenSSL says of most wrong files nothing but "PEM lib": find out before which one it is."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot read {path}: {reason}", field=name) from error
    if mark not in text:
        raise ConfigError(f"{name}: {path} holds no {what} in PEM format", field=name)


def _is_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        return False
    return True


def _refuse_to_ask() -> str:
    # Without this, OpenSSL would ask for the passphrase on the terminal, and wait.
    raise ConfigError(
        "ssl_keyfile: the key is encrypted, and there is no setting for its passphrase", field="ssl_keyfile"
    )


def _stamps(config: ServerConfig) -> tuple[_Stamp, ...]:
    """What changes when a file changes, or is replaced by another one behind a link."""
    return tuple(_stamp(path) for name in _FILES if (path := getattr(config, name)) is not None)


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
