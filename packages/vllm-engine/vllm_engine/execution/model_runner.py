"""``ModelRunner``: one scheduled batch in, new tokens out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_engine.execution.batch import BatchResult, ScheduledBatch
from vllm_engine.execution.forward_graphs import ForwardGraphs
from vllm_engine.execution.given_embeds import given_embeds
from vllm_engine.execution.input_batch import InputBatch
from vllm_engine.execution.launched import Launched
from vllm_engine.execution.step_inputs import StepInputs, build_step_inputs
from vllm_engine.kv_layout import KVCacheLayout, LayerKVSpec
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.embedding import GivenEmbeds
from vllm_engine.models.causal_lm import CausalLM
from vllm_engine.sampling.processors import LogitsProcessor
from vllm_engine.sampling.sampler import (
    NAN_LOGITS,
    LogprobsMode,
    PromptLogprobs,
    Sampler,
    Sampling,
    SamplingState,
)
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache

GraphsFor = Callable[..., ForwardGraphs | None]
"""``graphs_for`` of some settings."""
PROMPT_LOGPROB_ROWS = 256
"""Prompt positions whose logits are held at once: a long prompt times a large vocabulary would not fit."""


@dataclass(slots=True)
class _Tokens:
    """New tokens under way. One entry for each in ``ids``, ``rows`` and ``states``."""

    sampling: Sampling
    ids: list[str]
    rows: np.ndarray
    states: list[SamplingState]


@dataclass(slots=True)
class _Step:
    """What a step has under way: tokens, and by request the log-probabilities of parts of its prompt."""

    tokens: _Tokens | None = None
    prompt_logprobs: dict[str, list[PromptLogprobs]] = field(default_factory=dict)


class ModelRunner:
    """Keeps the batch, runs the model, samples. One per worker.

    A step may be launched before the one before it has been waited for: its tokens go from sampler to model on the
    device. What sampling needs on the host (penalties, words, a user's own processors) is there all the same, as the
    step before is waited for when the layers of this one are under way, and not earlier.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        vocab_size: int,
        device: torch.device,
        cache_formats: Sequence[CacheFormat],
        logprobs_mode: LogprobsMode = "raw_logprobs",
        processors: Sequence[LogitsProcessor] = (),
        graphs_for: GraphsFor | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self._dtype = model.dtype
        self._cache_formats = cache_formats
        self._sampler = Sampler(vocab_size, logprobs_mode)
        self.processors = processors
        """Of the user's own: what new requests are given to."""
        self._graphs_for = graphs_for
        self.graphs: ForwardGraphs | None = None
        self._capture_when_needed = False

    def kv_specs(self) -> list[LayerKVSpec]:
        """What each layer keeps in the KV cache, in the order of the layers."""
        return self.model.kv_specs(self._cache_formats)

    def initialize_kv_cache(self, layout: KVCacheLayout, *, max_num_seqs: int, max_model_len: int) -> None:
        """Allocate the cache tensors and the batch."""
        specs = self.kv_specs()
        caches: dict[tuple[int, int, int, CacheFormat], KVCache] = {}
        group_of_layer = [0] * len(specs)
        kv_caches: list[KVCache | None] = [None] * len(specs)
        for group_index, group in enumerate(layout.groups):
            for position, layer in enumerate(group.layers):
                spec = specs[layer]
                key = (position, spec.num_kv_heads, spec.head_dim, spec.cache_format)
                if key not in caches:
                    caches[key] = allocate_kv_cache(
                        layout.num_blocks,
                        layout.block_size,
                        spec.num_kv_heads,
                        spec.head_dim,
                        spec.cache_format,
                        self.device,
                    )
                kv_caches[layer] = caches[key]
                group_of_layer[layer] = group_index
        self._kv_caches = [cache for cache in kv_caches if cache is not None]
        self._group_of_layer = group_of_layer
        self._max_model_len = max_model_len
        self.batch = InputBatch(layout, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        self._under_way: Launched | None = None
        self.drop_graphs()
        self.make_graphs()

    def make_graphs(self) -> None:
        """Run decode steps as graphs from now on, unless they are run so already."""
        if self.graphs is None and self._graphs_for is not None:
            self.graphs = self._graphs_for(
                self.model,
                self.batch.block_tables,
                self._kv_caches,
                self._group_of_layer,
                self._max_model_len,
                self.device,
            )
        if self.graphs is not None:
            self.graphs.when_needed = self._capture_when_needed

    def capture_when_needed(self) -> None:
        """Let steps capture the graphs that they need from now on: until now they were for trying."""
        self._capture_when_needed = True
        if self.graphs is not None:
            self.graphs.when_needed = True

    def drop_graphs(self) -> None:
        """Forget graphs: the addresses that they know are no longer those of weights and caches."""
        self.graphs = None

    def cache_tensors(self) -> list[torch.Tensor]:
        """All that the KV cache consists of."""
        caches = {id(cache): cache for cache in self._kv_caches}.values()
        return [tensor for cache in caches for tensor in cache.tensors()]

    def execute(self, scheduled: ScheduledBatch) -> BatchResult:
        """Compute the scheduled tokens of every request, and sample where the last known token was reached."""
        return self.launch(scheduled).wait()

    @torch.inference_mode()
    def launch(self, scheduled: ScheduledBatch) -> Launched:
        """As ``execute``, but the device is not waited for. The step before must be waited for after this, at last."""
        self._update_batch(scheduled)
        ids = list(scheduled.num_scheduled_tokens)
        before = self._under_way
        if not ids:
            return Launched.done(BatchResult())
        rows = self.batch.rows_of(ids)
        counts = np.fromiter(scheduled.num_scheduled_tokens.values(), np.int64, len(ids))
        one_token_each = scheduled.total_num_tokens == len(ids)
        has_home = one_token_each and self.graphs is not None and not self.batch.prompt_embeds
        home = self.graphs.home(len(ids)) if has_home and self.graphs is not None else None
        inputs = build_step_inputs(self.batch, rows, counts, self.device, home)
        if len(inputs.late_places):
            self._put_late_tokens(inputs)
        given = given_embeds(self.batch, rows, inputs, self._dtype, self.device) if self.batch.prompt_embeds else None
        hidden = self._forward(inputs, given)
        if before is not None:
            before.wait()
        step = _Step()
        if self.batch.wants_prompt_logprobs:
            self._prompt_logprobs(ids, rows, inputs, hidden, step)
        self.batch.num_computed_tokens[rows] += counts
        if given is not None:
            self.batch.forget_computed_embeds()
        if len(inputs.sampled):
            self._sample(ids, rows, inputs, hidden, step)
        self._under_way = launched = Launched(lambda: self._finish(step))
        return launched

    def _put_late_tokens(self, inputs: StepInputs) -> None:
        """Put the tokens that the device alone knows, those of the step before, at their places."""
        # A row without a possible token has -1: its request ends, and what comes out here is thrown away.
        tokens = self._chosen.index_select(0, inputs.late_sources).clamp_(min=0)
        inputs.input_ids.index_copy_(0, inputs.late_places, tokens)

    @torch.inference_mode()
    def _finish(self, step: _Step) -> BatchResult:
        """Wait for what a step computed, and take it in."""
        result = BatchResult()
        for request_id, parts in step.prompt_logprobs.items():
            result.prompt_logprobs[request_id] = [entry for part in parts for entry in part.finish()]
        tokens = step.tokens
        if tokens is None:
            return result
        output = tokens.sampling.finish()
        if not any(output.errors):
            self.batch.tell(tokens.rows, tokens.states, output.token_ids)
        else:
            sound = [place for place, error in enumerate(output.errors) if error is None]
            states, token_ids = tokens.states, output.token_ids
            self.batch.tell(tokens.rows[sound], [states[i] for i in sound], [token_ids[i] for i in sound])
        for request_id, token_id, logprobs, error in zip(
            tokens.ids, output.token_ids, output.logprobs, output.errors, strict=True
        ):
            if error is not None:
                result.errors[request_id] = error
                result.num_corrupted += error == NAN_LOGITS
                continue
            result.sampled[request_id] = [token_id]
            if logprobs is not None:
                result.logprobs[request_id] = [logprobs]
        return result

    def _update_batch(self, scheduled: ScheduledBatch) -> None:
        """Apply the difference to the step before."""
        for request_id in scheduled.removed:
            self.batch.remove(request_id)
        for request_id, block_ids in scheduled.new_block_ids.items():
            self.batch.append_blocks(request_id, block_ids)
        for new in scheduled.new_requests:
            self.batch.add(new, SamplingState(new.request, new.token_ids[:], self.processors))

    def _forward(self, inputs: StepInputs, given: GivenEmbeds | None) -> torch.Tensor:
        """Hidden states of all tokens of the step, ``[T, H]``, which hold until the next step.

        Where only those count that are sampled from, a model may give just these.
        """
        some = 0 < len(inputs.sampled) < len(inputs.input_ids) and not self.batch.wants_prompt_logprobs
        context = AttentionContext(
            metadata=inputs.metadata,
            slot_mappings=inputs.slot_mappings,
            group_of_layer=self._group_of_layer,
            kv_caches=self._kv_caches,
            wanted=inputs.sample_indices if some else None,
        )
        steps: CausalLM | ForwardGraphs = self.model if self.graphs is None else self.graphs
        return steps.forward(inputs.input_ids, inputs.positions, context, given)

    def _sample(self, ids: list[str], rows: np.ndarray, inputs: StepInputs, hidden: torch.Tensor, step: _Step) -> None:
        """Draw a token for every sequence that reached its last known one."""
        sampled_rows = rows[inputs.sampled]
        if len(inputs.sampled) < len(hidden):
            hidden = hidden.index_select(0, inputs.sample_indices)
        logits = self.model.compute_logits(hidden)
        states = [state for row in sampled_rows.tolist() if (state := self.batch.states[row]) is not None]
        sampling = self._sampler.begin(logits, states)
        self.batch.append_unknown(sampled_rows)
        self._chosen = sampling.chosen  # in the order of the rows
        if len(sampled_rows) < len(ids):
            ids = [ids[place] for place in inputs.sampled.tolist()]
        step.tokens = _Tokens(sampling, ids, sampled_rows, states)

    def _prompt_logprobs(
        self, ids: list[str], rows: np.ndarray, inputs: StepInputs, hidden: torch.Tensor, step: _Step
    ) -> None:
        """Log-probabilities of prompt tokens given those before, for positions whose logits come in this step."""
        for i, request_id in enumerate(ids):
            num_prompt_tokens = self.batch.wants_prompt_logprobs.get(request_id)
            state = self.batch.states[rows[i]]
            if num_prompt_tokens is None or state is None:
                continue
            start, begin, end = int(inputs.starts[i]), int(inputs.offsets[i]), int(inputs.offsets[i + 1])
            count = min(end - begin, num_prompt_tokens - 1 - start)
            num_logprobs = state.request.params.prompt_logprobs or 0
            parts = step.prompt_logprobs[request_id] = []
            for first in range(0, count, PROMPT_LOGPROB_ROWS):
                size = min(PROMPT_LOGPROB_ROWS, count - first)
                logits = self.model.compute_logits(hidden[begin + first : begin + first + size])
                targets = self.batch.token_ids[rows[i], start + first + 1 : start + first + size + 1].tolist()
                parts.append(self._sampler.prompt_logprobs(logits, targets, num_logprobs))
            if start + count >= num_prompt_tokens - 1:
                del self.batch.wants_prompt_logprobs[request_id]

    def reset(self) -> None:
        """Forget all requests, and the step under way, after a failed one."""
        self._under_way = None
        self.batch.clear()
