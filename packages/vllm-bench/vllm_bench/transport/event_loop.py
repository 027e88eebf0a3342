"""The event loop of a measurement."""

import importlib
from typing import Any


def loop_factory() -> Any:
    """What ``asyncio.Runner`` makes its loop with: uvloop where it is installed, as it is beside a server of ours, else
    None for the usual one. With it, reading a piece of an answer takes less of the cores that the server may need.
    """
    try:
        return importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
