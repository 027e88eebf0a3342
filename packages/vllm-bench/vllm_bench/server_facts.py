"""What a server tells of itself before it is measured: its models, the longest context, counts of tokens."""

from dataclasses import dataclass
from typing import Any, Self

import httpx

from vllm_cli.client import Client, api_key_from_environment

_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of the server's list."""

    name: str
    max_model_len: int | None
    """Longest context in tokens; None when the server does not say."""


class ServerFacts:
    """Asks the server at ``base_url``, which does not end in ``/v1``, until the block ends."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        self._base_url = base_url
        self._api_key = api_key

    def __enter__(self) -> Self:
        # A proxy of the environment is not what is to be measured.
        self._http = httpx.Client(headers=self.headers, timeout=_SECONDS, trust_env=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authorise a request."""
        key = (self._api_key or api_key_from_environment() or "").strip()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, by default the first that the server lists.

        Raises:
            CommandError: the server is not there, or lists no model: one line instead of a hundred failed requests.
        """
        with Client(f"{self._base_url}/v1", self._api_key) as client:
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

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that it answers; an empty one for whatever else happens."""
        try:
            response = self._http.request(method, self._base_url + path, json=body)
            content = response.json() if response.status_code == 200 else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
