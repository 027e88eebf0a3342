"""Settings of the engine as a whole."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vllm_engine.config.groups.reasons import NO_MAMBA
from vllm_engine.config.groups.types import NonNegative
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the engine starts, stops and reports."""

    GROUP: ClassVar[str] = "EngineArgs"

    disable_log_stats: bool = option(False, help="no periodic statistics in the log and no engine metrics")
    aggregate_engine_logging: bool = option(
        False,
        help="log statistics of all data-parallel engines together",
        no_effect="there is one engine, so its statistics are those of all",
    )
    fail_on_environ_validation: bool = option(
        False, help="end with an error, not a warning, when a VLLM_* environment variable is unknown or has no effect"
    )
    shutdown_timeout: NonNegative = option(
        0,
        help="seconds that running requests get to finish when told to stop; 0 aborts them at once",
        metavar="SECONDS",
    )
    gdn_prefill_backend: Literal["flashinfer", "triton"] | None = option(
        None, help="kernels for the prefill of gated delta net layers", unsupported=NO_MAMBA
    )


@dataclass(frozen=True, kw_only=True)
class AsyncEngineOptions:
    """Settings of an engine that serves many callers at once."""

    GROUP: ClassVar[str] = "AsyncEngineArgs"

    enable_log_requests: bool = option(
        False, help="log each request with its parameters, and with its prompt at level DEBUG"
    )
