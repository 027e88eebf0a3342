"""The engine core in the call stack."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_engine.config import EngineConfig
from vllm_engine.errors import EngineDead
from vllm_engine.messages import (
    EngineOutputs,
    EngineReady,
    EngineRequest,
)

if TYPE_CHECKING:
    from vllm_engine.core.engine_core import EngineCore


class InprocClient:
    """The core in the caller's own thread: ``step`` computes. For ``LLM``."""

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        """Load the model. Raises ``ConfigError`` for settings that cannot be honoured."""
        from vllm_engine.core.engine_core import EngineCore

        self._core: EngineCore | None = EngineCore(config, model_path)
        self.ready: EngineReady = self._core.ready

    @property
    def core(self) -> "EngineCore":
        """The core. Raises ``EngineDead`` after ``close``."""
        if self._core is None:
            raise EngineDead("the engine is closed")
        return self._core

    def add(self, requests: list[EngineRequest]) -> None:
        """Queue requests."""
        self.core.add(requests)

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests; unknown ids are ignored."""
        self.core.abort(request_ids)

    def step(self) -> EngineOutputs:
        """Compute one batch."""
        return self.core.step()

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything to do."""
        return self.core.has_unfinished()

    def call(self, method: str, *args: Any) -> Any:
        """Run a control method of the core."""
        return self.core.call(method, list(args))

    def close(self) -> None:
        """Release the model and the cache. May be called again."""
        if self._core is not None:
            self._core.close()
            self._core = None
