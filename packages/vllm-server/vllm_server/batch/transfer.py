"""Files over HTTP: the input by GET, the output by PUT, block by block, so that memory does not grow with them.

No message tells more of a URL than ``shown_url``, and of an answer nothing but its status: its body and headers may
repeat what the URL has. The HTTP library is imported only where a URL is used.
"""

import asyncio
import contextlib
import logging
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO

import httpx

from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_server import __version__
from vllm_server.batch.errors import BatchFileError, TransferRefused, reason_of
from vllm_server.batch.url import shown_url

logger = get_logger(__name__)

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""How long the other side may send or take nothing."""
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt, on average."""

_BLOCK = 2**20
_MAX_REDIRECTS = 10
_REDIRECTS = {
    "GET": (301, 302, 303, 307, 308),
    # After a 303 the other side has taken something, and nobody knows what of the file.
    "PUT": (301, 302, 307, 308),
}
_TRY_AGAIN = (408, 425, 429)
"""Refusals that may end by waiting, beside all 5xx."""

Content = Callable[[], AsyncIterator[bytes]]


class _Failed(Exception):
    """An attempt that failed and may go well the next time."""


async def fetch(url: str, folder: str | None) -> IO[bytes]:
    """What ``url`` gives, as a temporary file in ``folder`` that has no name and ends with this process.

    Raises:
        ConfigError: when there can be no file in the folder.
        TransferRefused: when the URL gives no file.
        BatchFileError: when every attempt has failed, or the file cannot be written.
    """
    name = shown_url(url)

    async def attempt() -> None:
        file.seek(0)
        file.truncate()
        async with _answer("GET", url) as response:
            async for block in response.aiter_bytes(_BLOCK):
                file.write(block)

    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise ConfigError(
            f"output_tmp_dir: cannot write to {folder or 'the temporary folder'}: {reason_of(error)}",
            field="output_tmp_dir",
        ) from error
    try:
        await _repeated(attempt, f"cannot fetch {name}")
        file.flush()
    except OSError as error:
        file.close()
        raise BatchFileError(f"cannot store {name}: {reason_of(error)}") from error
    except BaseException:
        file.close()
        raise
    logger.info("fetched %s: %d bytes", name, file.tell())
    return file


async def upload(path: Path, url: str) -> None:
    """Send the file ``path`` to ``url``.

    Raises:
        BatchFileError: when the URL refuses it, every attempt has failed, or the file cannot be read.
    """
    name = shown_url(url)

    async def attempt() -> None:
        with open(path, "rb") as file:

            async def blocks() -> AsyncIterator[bytes]:
                file.seek(0)
                while block := file.read(_BLOCK):
                    yield block

            # Storage services take no body whose length is not announced.
            async with _answer("PUT", url, blocks, {"Content-Length": str(path.stat().st_size)}):
                pass

    try:
        await _repeated(attempt, f"cannot send the answers to {name}")
    except OSError as error:
        raise BatchFileError(f"cannot read {path}: {reason_of(error)}") from error


async def _repeated(attempt: Callable[[], Awaitable[None]], what: str) -> None:
    """Attempt it until it goes well or is refused, or the patience is at its end."""
    for wait in (*WAITS, None):
        try:
            await attempt()
            return
        except _Failed as error:
            if wait is None:
                raise BatchFileError(f"{what}: {error}, {len(WAITS) + 1} times") from None
            logger.warning("%s: %s; another attempt follows", what, error)
        except TransferRefused as error:
            raise TransferRefused(f"{what}: {error}") from None
        await asyncio.sleep(wait * random.uniform(0.5, 1.5))


@contextlib.asynccontextmanager
async def _answer(
    method: str, url: str, content: Content | None = None, headers: dict[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """The answer to a request that went well, after redirects; its body is not read yet."""
    try:
        async with _client() as client, _followed(client, method, httpx.URL(url), content, headers) as response:
            if response.status_code >= 500 or response.status_code in _TRY_AGAIN:
                raise _Failed(f"it answered {_status(response)}")
            # A GET that is answered with less than a whole file was not understood.
            if not response.is_success or (method == "GET" and response.status_code not in (200, 203)):
                raise TransferRefused(f"it answered {_status(response)}")
            yield response
    except (httpx.InvalidURL, UnicodeError):
        raise TransferRefused("that is no URL which can be called") from None
    except httpx.RequestError as error:
        raise _Failed(_reason(error)) from None


@contextlib.asynccontextmanager
async def _followed(
    client: httpx.AsyncClient, method: str, url: httpx.URL, content: Content | None, headers: dict[str, str] | None
) -> AsyncIterator[httpx.Response]:
    """The first answer that is no redirect. The method stays; user and password go to nobody but whom they are for."""
    login = (url.username, url.password) if url.userinfo else None
    for _ in range(_MAX_REDIRECTS + 1):
        url = url.copy_with(userinfo=b"", fragment=None)
        request = client.build_request(method, url, content=content() if content else None, headers=headers)
        response = await client.send(request, auth=login, stream=True, follow_redirects=False)
        try:
            if response.status_code not in _REDIRECTS[method] or "location" not in response.headers:
                yield response
                return
            target = url.join(response.headers["location"])
        finally:
            await response.aclose()
        if target.scheme not in ("http", "https") or not target.host:
            raise TransferRefused("it redirects to something that is no URL for files")
        if url.scheme == "https" and target.scheme == "http":
            raise TransferRefused("it redirects to a connection that is not encrypted")
        if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
            login = None
        url = target
    raise TransferRefused(f"more than {_MAX_REDIRECTS} redirects")


@contextlib.asynccontextmanager
async def _client() -> AsyncIterator[httpx.AsyncClient]:
    try:
        client = httpx.AsyncClient(
            headers={"User-Agent": f"vllm/{__version__}"},
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            # A proxy of the environment is never meant for this machine itself.
            mounts={"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None},
        )
    except (ValueError, ImportError, OSError):
        raise TransferRefused("the proxy or the certificates that the environment names cannot be used") from None
    with _no_log_of_urls():
        async with client:
            yield client


@contextlib.contextmanager
def _no_log_of_urls() -> Iterator[None]:
    """The library logs URLs and headers as they are; whatever the operator logs, these stay out of it."""
    names = {"httpx", "httpcore"}
    names |= {name for name in logging.root.manager.loggerDict if name.partition(".")[0] in names}
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(max(logging.WARNING, before[name]))
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _status(response: httpx.Response) -> str:
    """The status, in the words of the standard: the server's own may repeat anything."""
    try:
        return f"{response.status_code} {HTTPStatus(response.status_code).phrase}"
    except ValueError:
        return str(response.status_code)


def _reason(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "it cannot be reached in time"
    if isinstance(error, httpx.TimeoutException):
        return "it was silent for too long"
    if isinstance(error, httpx.ConnectError):
        return f"it cannot be reached ({error})"
    if isinstance(error, httpx.ProxyError):
        return "the proxy refused"
    return f"the connection broke ({type(error).__name__})"
