"""``SamplingParams``: how one request wants its tokens chosen and returned."""

import copy
import enum
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import msgspec

from vllm_engine.errors import InvalidRequest, shown

# Bounds on what one request may ask for, so that no single request can exhaust the engine before admission.
MAX_N = 1024
MAX_STOP_STRINGS = 256
MAX_STOP_STRING_LENGTH = 4096
MAX_STOP_TOKEN_IDS = 4096
MAX_BAD_WORDS = 1024
MAX_LOGIT_BIAS = 4096
MAX_EXTRA_ARGS_SIZE = 65536
MAX_EXTRA_ARGS_DEPTH = 16

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_INT32_MAX = 2**31 - 1
# Sampling computes in float32: a larger temperature would be infinite there, a smaller or larger penalty make it so.
_FLOAT32_MAX = 3.4e38
_PENALTY_MIN, _PENALTY_MAX = 1e-20, 1e20
_PLAIN = frozenset({int, float, str, bool, type(None)})


class OutputKind(enum.Enum):
    """What each ``RequestOutput`` of a request holds."""

    CUMULATIVE = 0
    """All text and tokens so far, in every output."""
    DELTA = 1
    """Only what is new since the output before."""
    FINAL_ONLY = 2
    """One output, when the request is finished."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling and output options of one request. Checked on construction; immutable, with lists of its own.

    Args:
        n: how many independent completions of the prompt.
        temperature: divides the logits; 0 picks the most likely token (greedy).
        top_p: smallest set of most likely tokens whose probabilities add up to this, in (0, 1].
        top_k: number of most likely tokens to keep; 0 or -1 keeps all.
        min_p: drops tokens less likely than this times the most likely one, in [0, 1].
        repetition_penalty: > 1 discourages tokens of prompt and output; logits > 0 are divided by it, others
            multiplied (CTRL, arXiv:1909.05858).
        presence_penalty: subtracted once from the logit of every token that is in the output, in [-2, 2].
        frequency_penalty: subtracted once per occurrence in the output, in [-2, 2].
        seed: makes this request's tokens reproducible, whatever else runs beside it.
        stop: strings that end the completion.
        stop_token_ids: token ids that end the completion.
        bad_words: words that must not be generated (no token may complete them).
        include_stop_str_in_output: keep the stop string at the end of the text.
        ignore_eos: go on past the end-of-sequence token.
        min_tokens: no end-of-sequence or stop token before so many tokens.
        max_tokens: at most so many new tokens; None: up to the model's length.
        max_tokens_must_fit: refuse the request when there is no room for ``max_tokens`` after the prompt; otherwise it
            ends where the model's length does.
        logprobs: number of most likely tokens to return at each new position, beside the chosen one;
            0 returns only the chosen one, -1 the whole vocabulary.
        prompt_logprobs: the same for the positions of the prompt.
        logit_bias: token id -> value added to its logit, in [-100, 100].
        allowed_token_ids: if given, only these ids can be generated.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens in the text.
        truncate_prompt_tokens: keep only so many last tokens of the prompt; -1: what the model can take.
        detokenize: turn tokens into text; without, ``text`` stays empty.
        output_kind: cumulative, delta or final only.
        extra_args: what logits processors of the user's own are told, by name: JSON values, nested at most 16 deep, of
            at most 65536 characters and values together.

    Raises:
        InvalidRequest: with the name of the field and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    max_tokens_must_fit: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    detokenize: bool = True
    output_kind: OutputKind = OutputKind.CUMULATIVE
    extra_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._normalise()
        _check_int("n", self.n, low=1, high=MAX_N)
        _check_float("temperature", self.temperature, low=0.0, high=_FLOAT32_MAX)
        _check_float("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        _check_int("top_k", self.top_k, low=-1, high=_INT32_MAX)
        _check_float("min_p", self.min_p, low=0.0, high=1.0)
        _check_float("repetition_penalty", self.repetition_penalty, low=_PENALTY_MIN, high=_PENALTY_MAX)
        _check_float("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        _check_float("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        _check_int("seed", self.seed, low=_INT64_MIN, high=_INT64_MAX, optional=True)
        _check_strings("stop", self.stop, most=MAX_STOP_STRINGS, longest=MAX_STOP_STRING_LENGTH)
        _check_token_ids("stop_token_ids", self.stop_token_ids, most=MAX_STOP_TOKEN_IDS)
        _check_strings("bad_words", self.bad_words, most=MAX_BAD_WORDS, longest=MAX_STOP_STRING_LENGTH)
        _check_int("min_tokens", self.min_tokens, low=0, high=_INT32_MAX)
        _check_int("max_tokens", self.max_tokens, low=1, high=_INT32_MAX, optional=True)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}", field="min_tokens"
            )
        _check_int("logprobs", self.logprobs, low=-1, high=_INT32_MAX, optional=True)
        _check_int("prompt_logprobs", self.prompt_logprobs, low=-1, high=_INT32_MAX, optional=True)
        _check_logit_bias(self.logit_bias)
        _check_token_ids("allowed_token_ids", self.allowed_token_ids, least=1)
        _check_int("truncate_prompt_tokens", self.truncate_prompt_tokens, low=-1, high=_INT32_MAX, optional=True)
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("truncate_prompt_tokens must be at least 1, or -1", field="truncate_prompt_tokens")
        _check_extra_args(self.extra_args)
        if not isinstance(self.output_kind, OutputKind):
            raise InvalidRequest("output_kind must be an OutputKind", field="output_kind")
        for name in (
            "include_stop_str_in_output",
            "ignore_eos",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "detokenize",
            "max_tokens_must_fit",
        ):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} must be true or false", field=name)
        if self.stop and not self.detokenize:
            raise InvalidRequest("stop needs detokenize=True: stop strings are found in the text", field="stop")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) not in _PLAIN:
                msgspec.structs.force_setattr(self, name, _plain(value))

    def _normalise(self) -> None:
        """One spelling for values that mean the same, so that the engine compares against one."""
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", [self.stop])
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)

    @property
    def stop_strings(self) -> list[str]:
        """``stop`` as a list, empty when there is none."""
        return list(self.stop) if self.stop else []

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without randomness. Below 1e-5 a division would overflow."""
        return self.temperature < 1e-5

    def replace(self, **changes: Any) -> "SamplingParams":
        """A checked copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def with_valid(self, **changes: Any) -> "SamplingParams":
        """``replace`` without the checks, for values that are valid for certain."""
        copied = copy.copy(self)
        for name in self.__struct_fields__:
            value = changes[name] if name in changes else getattr(self, name)
            if name in changes or type(value) not in _PLAIN:
                msgspec.structs.force_setattr(copied, name, _plain(value))
        return copied


def _plain(value: Any) -> Any:
    """A copy in Python's own types. Only those cross the process boundary (a ``numpy.float64`` is a float, but not one
    of them), and what the caller does to a list or dict later must not reach a running request.
    """
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in _PLAIN or not isinstance(value, (int, float, str)):
        return value
    # The base class's own conversions: a subclass may show itself as something else.
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_int(
    name: str, value: object, *, low: int | None = None, high: int | None = None, optional: bool = False
) -> None:
    if value is None and optional:
        return
    if not _is_int(value):
        raise InvalidRequest(f"{name} must be an integer, got {shown(value)}", field=name)
    if (low is not None and value < low) or (high is not None and value > high):
        raise InvalidRequest(f"{name} must be {_range(low, high, False)}, got {shown(value)}", field=name)


def _check_float(
    name: str, value: object, *, low: float | None = None, high: float | None = None, low_open: bool = False
) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
        raise InvalidRequest(f"{name} must be a finite number, got {shown(value)}", field=name)
    too_low = low is not None and (value <= low if low_open else value < low)
    if too_low or (high is not None and value > high):
        raise InvalidRequest(f"{name} must be {_range(low, high, low_open)}, got {shown(value)}", field=name)


def _check_strings(name: str, value: object, *, most: int, longest: int) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InvalidRequest(f"{name} must be a list of non-empty strings", field=name)
    if len(value) > most:
        raise InvalidRequest(f"{name} takes at most {most} strings, got {len(value)}", field=name)
    if any(len(item) > longest for item in value):
        raise InvalidRequest(f"{name} takes strings of at most {longest} characters", field=name)


def _check_token_ids(name: str, value: object, *, least: int = 0, most: int | None = None) -> None:
    """Shape only: that each id is inside the vocabulary is checked by the input processor, which knows its size."""
    if value is None:
        return
    if not isinstance(value, list) or not all(_is_int(item) and item >= 0 for item in value):
        raise InvalidRequest(f"{name} must be a list of token ids (integers of at least 0)", field=name)
    if len(value) < least:
        raise InvalidRequest(f"{name} must not be empty", field=name)
    if most is not None and len(value) > most:
        raise InvalidRequest(f"{name} takes at most {most} ids, got {len(value)}", field=name)


def _check_logit_bias(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise InvalidRequest(f"logit_bias must map at most {MAX_LOGIT_BIAS} token ids to numbers", field="logit_bias")
    for token_id, bias in value.items():
        if not _is_int(token_id) or token_id < 0:
            raise InvalidRequest(f"logit_bias has a key that is no token id: {shown(token_id)}", field="logit_bias")
        _check_float("logit_bias", bias, low=-100.0, high=100.0)


def _check_extra_args(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InvalidRequest("extra_args must be an object with keys", field="extra_args")
    if _json_size(value, MAX_EXTRA_ARGS_SIZE, 0) > MAX_EXTRA_ARGS_SIZE:
        raise InvalidRequest(
            f"extra_args takes at most {MAX_EXTRA_ARGS_SIZE} characters and values", field="extra_args"
        )


def _json_size(value: object, limit: int, depth: int) -> int:
    """Number of values and characters; counting stops soon after ``limit``. Raises for what is no JSON value."""
    if depth > MAX_EXTRA_ARGS_DEPTH:
        raise InvalidRequest(f"extra_args is nested more than {MAX_EXTRA_ARGS_DEPTH} deep", field="extra_args")
    size = 1
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidRequest(f"extra_args has a key that is no text: {shown(key)}", field="extra_args")
            size += _json_size(key, limit, depth)
            size += _json_size(item, limit - size, depth + 1)
            if size > limit:
                break
    elif isinstance(value, list):
        for item in value:
            size += _json_size(item, limit - size, depth + 1)
            if size > limit:
                break
    elif isinstance(value, str):
        size += len(value)
        if size <= limit and not value.isascii():
            _check_unicode(value)
    elif isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise InvalidRequest("extra_args has an integer of more than 64 bits", field="extra_args")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequest("extra_args has a number that is not finite", field="extra_args")
    elif value is not None:
        raise InvalidRequest(f"extra_args takes JSON values only, got {shown(value)}", field="extra_args")
    return size


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("extra_args has a text that is no valid Unicode", field="extra_args") from error


def _range(low: float | None, high: float | None, low_open: bool) -> str:
    parts: Sequence[str] = [
        *([f"{'more than' if low_open else 'at least'} {low:g}"] if low is not None else []),
        *([f"at most {high:g}"] if high is not None else []),
    ]
    return " and ".join(parts)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
