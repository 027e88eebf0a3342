"""uvicorn's lines of requests: without those of some paths, and without secrets in the queries of the others."""

import logging
import re
from collections.abc import Collection

_SECRET = re.compile(r"([?&][^=&]*(?:key|token|secret|passw|auth|signature|credential)[^=&]*=)[^&]*", re.IGNORECASE)


class AccessLogFilter(logging.Filter):
    """A filter of the logger ``uvicorn.access``, whose records have the path with its query as their third argument."""

    def __init__(self, silent_paths: Collection[str] = (), root_path: str | None = None) -> None:
        """``silent_paths`` have no lines, with ``root_path`` before them or without."""
        super().__init__()
        self._silent = {*silent_paths, *(f"{root_path or ''}{path}" for path in silent_paths)}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is a line of the log. Values that look like secrets are taken out of it."""
        args = record.args
        if not isinstance(args, tuple) or len(args) < 3 or not isinstance(args[2], str):
            return True
        path, _, query = args[2].partition("?")
        if path in self._silent:
            return False
        if query:
            record.args = (*args[:2], _SECRET.sub(r"\1***", args[2]), *args[3:])
        return True


def filter_access_log(silent_paths: Collection[str], root_path: str | None) -> None:
    """Put the filter in place, instead of one of a server before."""
    logger = logging.getLogger("uvicorn.access")
    for known in [one for one in logger.filters if isinstance(one, AccessLogFilter)]:
        logger.removeFilter(known)
    logger.addFilter(AccessLogFilter(silent_paths, root_path))
