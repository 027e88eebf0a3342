"""``vllm serve`` with the scripted engine instead of the real one: ``python -m tests.server.fake_serve [flags]``.

The environment variable ``FAKE`` holds JSON: ``delay`` and ``first_delay`` of the engine; ``start_delay`` in seconds;
``fails``, an error at start; ``dies_after``, seconds after the start until the engine is dead.
"""

import argparse
import asyncio
import json
import os
import sys
import types
from typing import Any

from tests.server.fake_llm import FakeLLM
from vllm_engine.config import EngineConfig
from vllm_engine.errors import ConfigError, EngineDead
from vllm_server.serve import add_arguments, run

SCRIPT: dict[str, Any] = json.loads(os.environ.get("FAKE", "{}"))


class StandIn(FakeLLM):
    """The scripted engine behind the constructor of ``AsyncLLM``."""

    def __init__(
        self, config: EngineConfig, *, multiprocess: bool, stat_loggers: list[Any], max_log_len: int | None, **_: Any
    ) -> None:
        super().__init__(delay=SCRIPT.get("delay", 0.0), first_delay=SCRIPT.get("first_delay", 0.0))
        self.config = config
        if max_log_len is not None:
            print(f"{max_log_len=}", flush=True)
        heavy = sorted(name for name in ("fastapi", "uvicorn", "torch") if name in sys.modules)
        print(f"engine launched, multiprocess={multiprocess}, imported={heavy}", flush=True)

    async def start(self) -> None:
        await asyncio.sleep(SCRIPT.get("start_delay", 0.0))
        if SCRIPT.get("fails") == "config":
            raise ConfigError("max_model_len: too long for the cache", field="max_model_len")
        if SCRIPT.get("fails") == "dead":
            raise EngineDead("the engine process ended with code 1")
        if "dies_after" in SCRIPT:
            asyncio.get_running_loop().call_later(SCRIPT["dies_after"], lambda: setattr(self, "dead", True))

    async def close(self) -> None:
        print(f"engine closed, running={len(self.running)}, aborted={len(self.aborted)}", flush=True)


def module() -> types.ModuleType:
    """What stands in for ``vllm_engine.async_llm``."""
    stand_in = types.ModuleType("vllm_engine.async_llm")
    stand_in.AsyncLLM = StandIn  # type: ignore[attr-defined]
    return stand_in


def main() -> int:
    """Parse the flags as the command line does, and serve."""
    sys.modules["vllm_engine.async_llm"] = module()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
