"""Prompt and parameters in, validated requests for the engine core out. All bad input ends here."""

import itertools
import secrets
import time
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from vllm_engine.config import EngineConfig
from vllm_engine.config.generation import GenerationConfig
from vllm_engine.errors import InvalidRequest, shown
from vllm_engine.frontend.bad_words import bad_word_sequences
from vllm_engine.frontend.extra_args import check_extra_args
from vllm_engine.frontend.prompt_embeds import check_enabled, read_prompt_embeds
from vllm_engine.frontend.prompts import ParsedPrompt, Prompt, parse_prompt
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.logging import get_logger
from vllm_engine.messages import EmbedsSpec, EngineRequest, PromptEmbeds
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.processors import load_processor_classes

logger = get_logger(__name__)

MAX_CACHE_SALT_CHARS = 256
EMBEDS_CHARS = 1 << 16
EMBEDS_PLACEHOLDER = 0
"""The token id that stands where a prompt has a row of embeddings: any that the model's table has."""
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_MASK64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request of a user, ready to run: one ``EngineRequest`` for each of its ``n`` completions.

    ``request_id`` labels the outputs; the ids inside ``requests`` are ours. ``params`` are those that the outputs
    follow. ``arrival_time`` is ``time.time()``; ``queued_ts`` is ``time.monotonic()``; both in seconds.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    requests: list[EngineRequest]
    arrival_time: float
    queued_ts: float


class InputProcessor:
    """Turns what users give into what the engine core takes. Safe to use from several threads at once."""

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer | None,
        generation: GenerationConfig,
        *,
        max_model_len: int,
        vocab_size: int,
        prompt_embeds: EmbedsSpec | None = None,
    ) -> None:
        """Prepare for one engine.

        Args:
            config: its settings.
            tokenizer: None with ``skip_tokenizer_init``: then only token ids come in and go out.
            generation: the model's defaults.
            max_model_len: most tokens of prompt and output together.
            vocab_size: number of token ids that the model knows.
            prompt_embeds: what the model takes as embeddings; None where prompts may not be given so.
        """
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self._embeds_spec = prompt_embeds
        self._generation = generation
        self._eos_token_ids = self._known_eos(generation)
        allowed = config.model.max_logprobs
        self._max_logprobs = vocab_size if allowed == -1 else min(allowed, vocab_size)
        self._logits_processors = load_processor_classes(config)
        self._id_prefix = secrets.token_hex(4)
        self._id_counter = itertools.count()

    def _known_eos(self, generation: GenerationConfig) -> list[int]:
        ids = list(generation.eos_token_ids)
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        unknown = [token_id for token_id in ids if token_id >= self.vocab_size]
        if unknown:
            logger.warning("end-of-sequence ids %s are outside of the model's vocabulary: ignored", unknown)
        return list(dict.fromkeys(token_id for token_id in ids if token_id < self.vocab_size))

    def default_sampling_params(self) -> dict[str, Any]:
        """Fields of ``SamplingParams`` that the model's files and the settings give where a request gives none."""
        return dict(self._generation.sampling)

    def process(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        token_ids: list[int] | None = None,
        tenant: str = "",
    ) -> PreparedRequest:
        """Check a request and fill in its defaults.

        Args:
            request_id: label for the outputs.
            prompt: text, token ids, or a dict (``prompts.PromptDict``).
            params: as the user gave them.
            priority: lower runs first; int32.
            cache_salt: see ``PromptDict``; the one in the prompt wins.
            token_ids: the ids of a text prompt, when the caller has tokenized it in a batch.
            tenant: who asks, for fair shares.

        Raises:
            InvalidRequest: with the name of the field at fault.
            RequestFailed: when a logits processor of the user's own fails to check the parameters.
        """
        arrival_time, queued_ts = time.time(), time.monotonic()
        check_params(params)
        check_extra_args(params, self._logits_processors)
        parsed = parse_prompt(prompt)
        self._check_without_tokenizer(params)
        embeds = None if parsed.embeds is None else self._prompt_embeds(parsed.embeds, params)
        if embeds is not None:
            ids = [EMBEDS_PLACEHOLDER] * embeds.shape[0]
        else:
            ids = self._prompt_ids(parsed if token_ids is None else ParsedPrompt(parsed.text, token_ids), params)
        if not isinstance(priority, int) or isinstance(priority, bool) or not _INT32_MIN <= priority <= _INT32_MAX:
            raise InvalidRequest(f"priority must be an integer from {_INT32_MIN} to {_INT32_MAX}", field="priority")
        salt = check_cache_salt(cache_salt if parsed.cache_salt is None else parsed.cache_salt)
        bad_words = self._bad_words(params)
        stop_ids = self._stop_token_ids(params)
        self._check_token_choice(params, bad_words, stop_ids)
        core_params = self._core_params(params)
        template = EngineRequest(
            request_id="",
            prompt_token_ids=ids,
            params=core_params,
            max_tokens=self._max_tokens(params, len(ids)),
            seed=0,
            stop_token_ids=stop_ids,
            eos_token_ids=[] if params.ignore_eos else self._eos_token_ids,
            bad_words_token_ids=bad_words,
            priority=int.__int__(priority),
            cache_salt=salt,
            arrival_time=queued_ts,
            prompt_embeds=embeds,
            tenant=tenant,
        )
        requests = self._fan_out(template, params)
        # The core's ids are not those of the outputs: what a user does to an output must not reach a core in a thread.
        return PreparedRequest(request_id, parsed.text, ids.copy(), params, requests, arrival_time, queued_ts)

    def chars_to_tokenize(self, prompt: Prompt) -> int:
        """How long ``process`` would take, in characters. To read embeddings takes as long as a long text."""
        if isinstance(prompt, dict) and prompt.get("prompt_embeds") is not None:
            return EMBEDS_CHARS
        text = prompt.get("prompt") if isinstance(prompt, dict) and "prompt_token_ids" not in prompt else prompt
        return len(text) if isinstance(text, str) else 0

    # ---- the prompt ----

    def _check_without_tokenizer(self, params: SamplingParams) -> None:
        if self.tokenizer is None and params.stop:
            raise InvalidRequest("stop needs a tokenizer, and this engine runs without one", field="stop")
        if self.tokenizer is None and params.bad_words:
            raise InvalidRequest("bad_words needs a tokenizer, and this engine runs without one", field="bad_words")

    def _prompt_ids(self, prompt: ParsedPrompt, params: SamplingParams) -> list[int]:
        limit = self._truncation(params)
        token_ids = prompt.token_ids
        if token_ids is None:
            token_ids = self._encode(prompt, truncates=limit is not None)
        if not token_ids:
            raise InvalidRequest("the prompt is empty: it needs at least one token", field="prompt")
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            wrong = next(i for i in token_ids if not 0 <= i < self.vocab_size)
            raise InvalidRequest(
                f"the prompt has token id {shown(wrong)}, but the model knows 0 to {self.vocab_size - 1}",
                field="prompt",
            )
        if limit is not None and len(token_ids) > limit:
            token_ids = token_ids[-limit:]
        if len(token_ids) >= self.max_model_len:
            raise self._too_long(str(len(token_ids)))
        return token_ids

    def _prompt_embeds(self, value: Any, params: SamplingParams) -> PromptEmbeds:
        spec = check_enabled(self._embeds_spec)
        if params.prompt_logprobs is not None:
            raise InvalidRequest(
                "prompt_logprobs cannot be given for prompt_embeds: they have no tokens", field="prompt_logprobs"
            )
        limit = self._truncation(params)
        embeds = read_prompt_embeds(value, spec, max_model_len=self.max_model_len, keep=limit)
        if embeds.shape[0] >= self.max_model_len:
            raise self._too_long(str(embeds.shape[0]), field="prompt_embeds")
        return embeds

    def _encode(self, prompt: ParsedPrompt, *, truncates: bool) -> list[int]:
        text = prompt.text or ""
        if self.tokenizer is None:
            raise InvalidRequest(
                "this engine runs without a tokenizer: give prompt_token_ids instead of text", field="prompt"
            )
        # A text that cannot fit whatever its tokens are is refused before the work of tokenizing it.
        if not truncates and len(text) > 16 * self.max_model_len:
            fewest = len(text) // self.tokenizer.longest_token
            if fewest >= self.max_model_len:
                raise self._too_long(f"at least {fewest}")
        return self.tokenizer.encode(text, prompt.add_special_tokens)

    def _too_long(self, length: str, *, field: str = "prompt") -> InvalidRequest:
        return InvalidRequest(
            f"the prompt has {length} tokens, but the model takes {self.max_model_len} of prompt and output together, "
            f"so a prompt may have at most {self.max_model_len - 1}",
            field=field,
        )

    def _truncation(self, params: SamplingParams) -> int | None:
        """How many last tokens of the prompt to keep. -1 leaves room for ``max_tokens``, or for one token without."""
        limit = params.truncate_prompt_tokens
        if limit is None:
            return None
        if limit == -1:
            return max(1, self.max_model_len - (params.max_tokens or 1))
        if limit >= self.max_model_len:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {limit}, but a prompt may have at most {self.max_model_len - 1} tokens",
                field="truncate_prompt_tokens",
            )
        return limit

    # ---- the parameters ----

    def _max_tokens(self, params: SamplingParams, prompt_length: int) -> int:
        room = self.max_model_len - prompt_length
        if params.min_tokens > room:
            raise InvalidRequest(
                f"min_tokens is {params.min_tokens}, but after a prompt of {prompt_length} tokens there is room "
                f"for {room} of {self.max_model_len}",
                field="min_tokens",
            )
        if params.max_tokens is None:
            return room
        if params.max_tokens_must_fit and params.max_tokens > room:
            raise InvalidRequest(
                f"max_tokens is {params.max_tokens}, but after a prompt of {prompt_length} tokens there is room "
                f"for {room} of {self.max_model_len}",
                field="max_tokens",
            )
        return min(params.max_tokens, room)

    def _logprobs(self, name: str, value: int | None) -> int | None:
        """The number to compute: -1 becomes the size of the vocabulary."""
        if value is None:
            return None
        count = self.vocab_size if value == -1 else value
        if count > self._max_logprobs:
            asked = f"{value} (all {self.vocab_size})" if value == -1 else str(value)
            raise InvalidRequest(
                f"{name} is {asked}, but this engine returns at most {self._max_logprobs} (max_logprobs)", field=name
            )
        return count

    def _check_ids(self, name: str, token_ids: Any) -> None:
        wrong = next((token_id for token_id in token_ids if token_id >= self.vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"{name} has token id {shown(wrong)}, but the model knows 0 to {self.vocab_size - 1}", field=name
            )

    def _stop_token_ids(self, params: SamplingParams) -> list[int]:
        self._check_ids("stop_token_ids", params.stop_token_ids or ())
        eos = [] if params.ignore_eos else self._eos_token_ids
        return list(dict.fromkeys([*(params.stop_token_ids or ()), *eos]))

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        if not params.bad_words or self.tokenizer is None:
            return []
        sequences = bad_word_sequences(self.tokenizer, params.bad_words)
        for sequence in sequences:
            self._check_ids("bad_words", sequence)
        return sequences

    def _check_token_choice(self, params: SamplingParams, bad_words: list[list[int]], stop_ids: list[int]) -> None:
        """Refuse what leaves no token to choose from: the sampler would have to pick among nothing."""
        self._check_ids("logit_bias", params.logit_bias or ())
        forbidden = {sequence[0] for sequence in bad_words if len(sequence) == 1}
        if params.min_tokens:
            forbidden.update(stop_ids)
        if params.allowed_token_ids is not None:
            self._check_ids("allowed_token_ids", params.allowed_token_ids)
            if forbidden.issuperset(params.allowed_token_ids):
                raise InvalidRequest(
                    "allowed_token_ids leaves no token: bad_words or min_tokens forbid all of them",
                    field="allowed_token_ids",
                )
        elif len(forbidden) >= self.vocab_size:
            raise InvalidRequest("bad_words and stop tokens forbid every token", field="bad_words")

    def _core_params(self, params: SamplingParams) -> SamplingParams:
        """The parameters as the core needs them: one completion, and no text."""
        return params.with_valid(
            n=1,
            stop=None,
            bad_words=None,
            logprobs=self._logprobs("logprobs", params.logprobs),
            prompt_logprobs=self._logprobs("prompt_logprobs", params.prompt_logprobs),
            truncate_prompt_tokens=None,
            max_tokens_must_fit=False,
        )

    def _fan_out(self, template: EngineRequest, params: SamplingParams) -> list[EngineRequest]:
        """One request per completion, each with a seed of its own; prompt logprobs are computed by the first only."""
        number = next(self._id_counter)
        # Later children look the prompt up in the prefix cache, where the first has put it.
        later = (
            template
            if params.prompt_logprobs is None
            else replace(template, params=template.params.replace(prompt_logprobs=None))
        )
        return [
            replace(
                later if index else template,
                request_id=f"{self._id_prefix}-{number}-{index}",
                seed=secrets.randbits(63) if params.seed is None else child_seed(params.seed, index),
            )
            for index in range(params.n)
        ]


def check_params(params: object) -> SamplingParams:
    """The parameters, if that is what they are. Raises ``InvalidRequest`` for anything else."""
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(
            f"sampling_params must be a SamplingParams, got a {type(params).__name__}", field="sampling_params"
        )
    return params


def child_seed(seed: int, index: int) -> int:
    """Seed of completion ``index`` of a request with a seed: 63 bits that look unrelated for neighbouring indices.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014) over ``seed + (index + 1) * golden ratio``. Completion 0 of
    ``n`` has the seed of the only completion of ``n=1``.
    """
    value = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (value ^ (value >> 31)) >> 1


def check_cache_salt(salt: object) -> str | None:
    """A salt that can be used. Raises ``InvalidRequest`` for anything but None or a short non-empty text."""
    if salt is None:
        return None
    if not isinstance(salt, str) or not 0 < len(salt) <= MAX_CACHE_SALT_CHARS:
        raise InvalidRequest(f"cache_salt must be a text of 1 to {MAX_CACHE_SALT_CHARS} characters", field="cache_salt")
    try:
        salt.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("cache_salt is no valid Unicode text", field="cache_salt") from error
    return str.__str__(salt)  # of a subclass, what the messages to the core can hold
