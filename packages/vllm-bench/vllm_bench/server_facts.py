"""What a server tells of itself before it is measured: its models, the longest context, counts of tokens."""

import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from vllm_cli.client import Client, api_key_from_environment

_SECONDS = 30.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of the server's list."""

    name: str
    max_model_len: int | None
    """Longest context in tokens; None when the server does not say."""


class ServerFacts:
    """Asks the server at ``base_url``, which does not end in ``/v1``, until the block ends.

    Args:
        headers: of every request; they win over the one of the key, whatever their case.
        tls: how to speak to an https server; None for one that is not.
    """

    def __init__(
        self, base_url: str, api_key: str | None, headers: Mapping[str, str], tls: ssl.SSLContext | None = None
    ) -> None:
        self._base_url = base_url
        self._api_key = api_key
        self._headers = headers
        # To load the authorities of a client that speaks no TLS would take longer than all that it asks.
        self._tls = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def __enter__(self) -> Self:
        # A proxy of the environment is not what is to be measured.
        self._http = httpx.Client(headers=self.headers, timeout=_SECONDS, trust_env=False, verify=self._tls)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def headers(self) -> dict[str, str]:
        """Those of every request: the given ones, and one that authorises it."""
        key = (self._api_key or api_key_from_environment() or "").strip()
        if not key or "authorization" in (name.lower() for name in self._headers):
            return dict(self._headers)
        return {"Authorization": f"Bearer {key}", **self._headers}

    @property
    def secrets(self) -> list[str]:
        """What no result may show: the key, and the values of headers."""
        return [part for value in self.headers.values() for part in (value, value.removeprefix("Bearer "))]

    def wait(self, seconds: float) -> None:
        """Wait at most ``seconds`` until the server answers anything; whoever asks next finds out the rest."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self._http.get(f"{self._base_url}/v1/models").status_code < 500:
                    return
            except httpx.HTTPError:
                pass
            except httpx.InvalidURL:
                return
            time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))

    def version(self) -> str | None:
        """What the server's ``/version`` says; None when it has none."""
        version = self._ask("GET", "/version").get("version")
        return version if isinstance(version, str) else None

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, by default the first that the server lists.

        Raises:
            CommandError: the server is not there, or lists no model: one line instead of a hundred failed requests.
        """
        url = f"{self._base_url}/v1"
        with Client(url, self._api_key, headers=self._headers, tls=self._tls, option="--base-url") as client:
            first = client.first_model()
        wanted = name or first
        longest = None
        for entry in self._ask("GET", "/v1/models").get("data", []):
            if isinstance(entry, dict) and entry.get("id") == wanted:
                longest = entry.get("max_model_len")
        return ServedModel(wanted, longest if isinstance(longest, int) else None)

    def count_tokens(self, model: str, text: str) -> int:
        """Tokens of ``text`` as a prompt, with whatever the server adds to one.

        Raises:
            LookupError: the server has no ``/tokenize``.
        """
        count = self._ask("POST", "/tokenize", {"model": model, "prompt": text}).get("count")
        if not isinstance(count, int):
            raise LookupError("/tokenize")
        return count

    def render(self, model: str, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The token ids of a conversation in the model's chat template, up to where the answer begins.

        Raises:
            LookupError: the server has no ``/tokenize``, or the model no chat template.
        """
        ids = self._ask("POST", "/tokenize", {"model": model, "messages": list(messages)}).get("tokens")
        if not isinstance(ids, list) or not ids or not all(isinstance(number, int) for number in ids):
            raise LookupError("/tokenize of messages")
        return ids

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that it answers; an empty one for whatever else happens."""
        try:
            response = self._http.request(method, self._base_url + path, json=body)
            content = response.json() if response.status_code == 200 else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
