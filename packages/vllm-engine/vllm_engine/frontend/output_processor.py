"""Updates of the engine core to outputs for users: each finds its request, is decoded, and joins its siblings."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm_engine.errors import InvalidRequest, Overloaded
from vllm_engine.frontend.completion_state import CompletionState
from vllm_engine.frontend.held_logprobs import Holding
from vllm_engine.frontend.input_processor import PreparedRequest
from vllm_engine.frontend.request_state import RequestState
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.logging import get_logger
from vllm_engine.messages import RequestUpdate
from vllm_engine.metrics.stats import RequestStats, StepTotals
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind

logger = get_logger(__name__)


@dataclass(slots=True)
class ProcessedUpdates:
    """What came of some updates. ``refused`` are requests that get an error in place of an answer, by the users' ids.
    ``aborts`` are engine ids to abort in the core: their text has met a stop string, or they are refused.
    """

    outputs: list[RequestOutput] = field(default_factory=list)
    refused: dict[str, InvalidRequest | Overloaded] = field(default_factory=dict)
    finished: list[RequestStats] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    totals: StepTotals = field(default_factory=StepTotals)


class OutputProcessor:
    """Holds the state of every request that runs. Not thread-safe: one caller at a time."""

    def __init__(self, tokenizer: Tokenizer | None, *, stream_interval: int = 1) -> None:
        """``stream_interval``: a stream gets its first token and its end at once, and else so many tokens in a part."""
        self._tokenizer = tokenizer
        self._stream_interval = stream_interval
        self._requests: dict[str, RequestState] = {}
        self._by_engine_id: dict[str, tuple[RequestState, CompletionState]] = {}
        self._touched: dict[RequestState, float] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._requests)

    def add(self, prepared: PreparedRequest, *, kind: OutputKind | None = None, holding: Holding | None = None) -> None:
        """Expect updates of a request. ``kind`` replaces the one of its parameters. One whose ``holding`` has no room
        for what comes is refused.

        Raises:
            InvalidRequest: when a request of the same id is running.
        """
        if prepared.request_id in self._requests:
            raise InvalidRequest("a request with this request_id is running", field="request_id")
        state = RequestState(
            prepared,
            self._tokenizer,
            kind=kind or prepared.params.output_kind,
            stream_interval=self._stream_interval,
            holding=holding,
        )
        self._requests[state.request_id] = state
        for completion in state.completions:
            self._by_engine_id[completion.engine_id] = state, completion

    def is_urgent(self, updates: Iterable[RequestUpdate]) -> bool:
        """Whether a request gets its first token from the updates of a step, or ends."""
        for update in updates:
            entry = self._by_engine_id.get(update.request_id)
            if entry is not None and (update.finish_reason is not None or not entry[1].num_tokens):
                return True
        return False

    def process(self, updates: Iterable[RequestUpdate], timestamp: float) -> ProcessedUpdates:
        """``take`` the updates of one step, and ``hand_out`` what comes of them."""
        totals = StepTotals()
        aborts = self.take(updates, timestamp, totals)
        result = self.hand_out()
        result.aborts, result.totals = aborts, totals
        return result

    def take(self, updates: Iterable[RequestUpdate], timestamp: float, totals: StepTotals) -> list[str]:
        """Take updates of a step, of ``timestamp`` in monotonic seconds, and count them in ``totals``.

        Updates of requests that are gone are dropped. A request whose update cannot be processed fails alone.
        Returns engine ids to abort in the core: their text has met a stop string, or they are refused.
        """
        aborts: list[str] = []
        by_engine_id, touched = self._by_engine_id, self._touched
        for update in updates:
            entry = by_engine_id.get(update.request_id)
            if entry is None:
                continue
            state, completion = entry
            touched[state] = timestamp
            try:
                state.update(completion, update, timestamp, totals)
            except (InvalidRequest, Overloaded) as error:
                state.refusal = error
                aborts.extend(self._end(state, "abort"))
                continue
            except Exception as error:
                logger.exception("the output of a request could not be processed")
                aborts.extend(self._end(state, f"output processing failed ({type(error).__name__})"))
                continue
            if completion.finish_reason is not None:
                by_engine_id.pop(update.request_id, None)
                if update.finish_reason is None:
                    aborts.append(update.request_id)
        return aborts

    def hand_out(self) -> ProcessedUpdates:
        """The outputs of all that was taken since the last time, one per request at most, and who is finished."""
        result = ProcessedUpdates()
        touched, self._touched = self._touched, {}
        for state, timestamp in touched.items():
            output = state.output()
            if state.refusal is not None:
                result.refused[state.request_id] = state.refusal
            elif output is not None:
                result.outputs.append(output)
            if state.finished:
                self._forget(state)
                result.finished.append(state.stats(timestamp))
        return result

    def abort(self, request_ids: Iterable[str]) -> tuple[list[str], ProcessedUpdates]:
        """End requests by the users' ids; unknown ones are ignored.

        Returns the engine ids to abort in the core, and the last outputs, with ``finish_reason`` ``abort``.
        """
        engine_ids: list[str] = []
        result = ProcessedUpdates()
        for request_id in request_ids:
            state = self._requests.get(request_id)
            if state is None:
                continue
            engine_ids.extend(self._end(state, "abort"))
            self._forget(state)
            output = state.output()
            if output is not None:
                result.outputs.append(output)
            result.finished.append(state.stats(time.monotonic()))
        return engine_ids, result

    def abort_all(self) -> tuple[list[str], ProcessedUpdates]:
        """End every request that runs, as ``abort`` does."""
        return self.abort(list(self._requests))

    def _end(self, state: RequestState, reason: str) -> list[str]:
        engine_ids = state.finish_open(reason)
        for engine_id in engine_ids:
            self._by_engine_id.pop(engine_id, None)
        return engine_ids

    def _forget(self, state: RequestState) -> None:
        self._requests.pop(state.request_id, None)
        self._touched.pop(state, None)
