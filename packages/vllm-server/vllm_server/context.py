"""What the routes share: the engine, the settings, and the requests that run."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from vllm_engine.errors import NotFound
from vllm_engine.frontend.tally import SharedTable
from vllm_server.config import ServerConfig, served_names
from vllm_server.in_flight import InFlight
from vllm_server.response_store import ResponseStore
from vllm_server.siblings import Siblings
from vllm_server.telemetry.http_metrics import HttpMetrics
from vllm_server.telemetry.registry import Registry
from vllm_server.telemetry.sleep_metrics import SleepMetrics
from vllm_server.telemetry.told_counts import ToldCounts
from vllm_server.templates.process import TemplateProcess

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_server.telemetry.tracing import RequestTracer


@dataclass(frozen=True, kw_only=True)
class ServerContext:
    """One served model."""

    llm: "AsyncLLM"
    config: ServerConfig
    chat_template: str | None
    registry: Registry
    in_flight: InFlight = field(default_factory=InFlight)
    templates: TemplateProcess = field(default_factory=TemplateProcess)
    """For chat templates that come with requests."""
    http_metrics: HttpMetrics = field(default_factory=HttpMetrics)
    sleep_metrics: SleepMetrics = field(default_factory=SleepMetrics)
    responses: ResponseStore = field(default_factory=ResponseStore.from_environment)
    """What ``/v1/responses`` keeps."""
    tracer: "RequestTracer | None" = None
    siblings: Siblings | None = None
    """The other processes that serve the same port, if there are any."""
    counts: SharedTable | None = None
    """What they count together."""
    told_counts: ToldCounts | None = None
    """What each has told of its own counts."""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.registry.register(self.http_metrics)
        if self.llm.config.model.enable_sleep_mode:
            self.registry.register(self.sleep_metrics)

    @property
    def model_names(self) -> list[str]:
        """Names under which the model answers; the first one is its main name."""
        return served_names(self.llm.config)

    @property
    def default_sampling_params(self) -> Mapping[str, Any]:
        """Sampling values of the model's generation config."""
        return self.llm.default_sampling_params()

    def model_name(self, asked: str | None) -> str:
        """The name that a response carries. Raises ``NotFound`` for a name that is not served."""
        names = self.model_names
        if asked is None:
            return names[0]
        if asked not in names:
            shown = ascii(asked)[1:-1]
            shown = shown if len(shown) <= 100 else shown[:100] + "..."
            raise NotFound(f"There is no model {shown!r} here; this server has {', '.join(names)}.", field="model")
        return asked


def context_of(request: Request) -> ServerContext:
    """The context of the application that serves ``request``."""
    context: ServerContext = request.app.state.context
    return context


def new_id(prefix: str) -> str:
    """An id for a response, never made of a client's text: ``cmpl-0f...``."""
    return f"{prefix}-{uuid.uuid4().hex}"
