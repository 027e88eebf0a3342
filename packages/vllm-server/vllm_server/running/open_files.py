"""How many files, and so connections, the server's processes may have open."""

import resource

from vllm_engine.logging import get_logger

logger = get_logger(__name__)

WANTED = 65536


def allow_many_files() -> None:
    """Raise the soft limit as far as it is allowed: the usual 1024 would be used up by as many idle connections.

    Beyond the limit the system closes connections as they come.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        logger.warning("only %d files and connections may be open at once (ulimit -n): %s", soft, error)
