"""What a run leaves behind in a server and the next must not find."""

import httpx

from vllm_cli.client import api_key_from_environment

_SECONDS = 10.0


def reset_prefix_cache(base_url: str, api_key: str | None) -> bool:
    """Empty the prefix cache: runs of the same seed send the same prompts. False where the server does not do that."""
    key = api_key or api_key_from_environment()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = base_url.rstrip("/").removesuffix("/v1") + "/reset_prefix_cache"
    try:
        # A server of our own may show a certificate of any name.
        with httpx.Client(timeout=_SECONDS, trust_env=False, verify=not url.startswith("https://127.0.0.1")) as client:
            return client.post(url, headers=headers, json={}).status_code == httpx.codes.OK
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
