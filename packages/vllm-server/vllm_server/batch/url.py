"""URLs as names of files: which texts are URLs, and how one is shown without its secrets."""

from urllib.parse import urlsplit

from vllm_engine.errors import ConfigError


def is_url(name: str) -> bool:
    """Whether a file's name is a URL."""
    return name.lower().startswith(("http://", "https://"))


def shown_url(url: str) -> str:
    """A URL for messages: without user, password, query and fragment, any of which may let others in."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{'' if parts.port is None else f':{parts.port}'}{parts.path}"


def check_url(url: str, field: str) -> None:
    """Raises ``ConfigError`` for a URL that cannot be called. It is not shown: nobody knows where its secrets are."""
    try:
        parts = urlsplit(url)
        is_sound = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ConfigError(f"{field} begins like a URL and is none", field=field)
