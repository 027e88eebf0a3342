"""The event loop of the programs of this wheel."""

import sys
from typing import Any


def loop_factory() -> Any:
    """What ``asyncio.Runner`` makes its loop with: uvloop where there is one, else None for the usual one."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
