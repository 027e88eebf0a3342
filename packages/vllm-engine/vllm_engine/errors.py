"""Every error that a user of the engine can meet. The server maps each class to one HTTP status."""


class VllmError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(VllmError):
    """A setting that cannot be honoured, found at start-up; the command line exits with 2.

    ``field`` is the name of the setting, spelled as the keyword argument (``max_num_seqs``).
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidRequest(VllmError):
    """Bad input in one request (HTTP 400). ``field`` names the parameter at fault."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Unsupported(InvalidRequest):
    """A well-formed request for something that this model or build cannot do (HTTP 400)."""


class NotFound(VllmError):
    """A model or object that is not there (HTTP 404)."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Overloaded(VllmError):
    """The engine refuses more work for now (HTTP 429 or 503); ``retry_after`` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestFailed(VllmError):
    """One request failed inside the engine; the others go on (HTTP 500)."""


class EngineDead(VllmError):
    """The engine core has stopped and serves nobody any more (HTTP 503)."""


class EngineStalled(VllmError):
    """The engine core is there and makes no progress for now (HTTP 503)."""


def shown(value: object) -> str:
    """A short, safe picture of a bad value: no object addresses in messages that reach a client."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print the longest ones
        return "a very large integer"
    if isinstance(value, (str, int, float, bool)) or value is None:
        return repr(value)[:80]
    return f"a {type(value).__name__}"
