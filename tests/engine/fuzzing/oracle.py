"""What a completion has to be, by brute force: from the logits of transformers, and from all of its text at once."""

import codecs
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engine.frontend import tiny_tokenizers
from vllm_engine import SamplingParams
from vllm_engine.frontend.token_bytes import byte_level_alphabet
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.messages import EngineRequest
from vllm_engine.outputs import Logprob
from vllm_engine.sampling.uniforms import seed_streams, uniforms_at

Array = NDArray[np.float64]
TOLERANCE = 4e-3
"""Of a logit: two orders of float32 additions differ by less, and what is wrong by more."""


class TextOracle:
    """The text of ids, each time from the first one on."""

    def __init__(self, kind: str, tokenizer: Tokenizer) -> None:
        """``kind``: of ``tiny_tokenizers``. ``tokenizer``: the engine's, for those that have no bytes."""
        self._kind = kind
        self.tokenizer = tokenizer
        self._library = tiny_tokenizers.KINDS[kind]()
        added = self._library.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._alphabet = byte_level_alphabet()

    def pieces(self, prompt: list[int], ids: list[int], params: SamplingParams) -> tuple[list[str], str]:
        """What comes with each token of an output, and what is left at its end."""
        if self._kind in ("metaspace", "word_piece"):
            decoder = self.tokenizer.decoder(prompt, skip_special_tokens=params.skip_special_tokens)
            return [decoder.push(token_id) for token_id in ids], decoder.finish()
        before = self._bytes(prompt, params)
        known = _whole(before)
        broken = before.decode("utf-8", "replace")[len(known) :]  # as the prompt's own text ends
        pieces, done = [], ""
        for count in range(len(ids) + 1):
            data = self._bytes(prompt + ids[:count], params)
            text = _whole(data)[len(known) :].removeprefix(broken)
            pieces.append(text[len(done) :])
            done = text
        rest = data.decode("utf-8", "replace")[len(known) :].removeprefix(broken)
        return pieces[1:], rest[len(done) :]

    def continuation(self, prompt: list[int], ids: list[int], params: SamplingParams) -> str | None:
        """What the library's text of all ids has more than that of the prompt; None where that says nothing."""
        known = self._library.get_vocab_size()
        skip = params.skip_special_tokens
        before, whole = (
            self._library.decode([token_id for token_id in part if token_id < known], skip_special_tokens=skip)
            for part in (prompt, prompt + ids)
        )
        return whole[len(before) :] if before and "\ufffd" not in whole and whole.startswith(before) else None

    def _bytes(self, ids: list[int], params: SamplingParams) -> bytes:
        data = b"".join(self._bytes_of(token_id, params) for token_id in ids)
        return data.removeprefix(b" ") if self._kind == "llama" else data

    def _bytes_of(self, token_id: int, params: SamplingParams) -> bytes:
        token = self._library.id_to_token(token_id)
        if token is None or (params.skip_special_tokens and token_id in self._special):
            return b""
        if self._kind == "byte_level":
            in_alphabet = all(char in self._alphabet for char in token)
            return bytes(self._alphabet[char] for char in token) if in_alphabet else token.encode()
        is_byte = len(token) == 6 and token.startswith("<0x")
        return bytes([int(token[3:5], 16)]) if is_byte else token.replace("▁", " ").encode()


def _whole(data: bytes) -> str:
    """Text without a character at its end that more bytes may complete."""
    return codecs.utf_8_decode(data, "replace", False)[0]


def find_stop(pieces: list[str], params: SamplingParams) -> tuple[int, int, str] | None:
    """Tokens with which a stop string ends the text, the place where it begins, and the string."""
    text = ""
    for count, piece in enumerate(pieces, 1):
        before = len(text)
        text += piece
        if count >= params.min_tokens:
            starts = [(text.find(stop, max(0, before - len(stop) + 1)), len(stop), stop) for stop in params.stop or []]
            found = [start for start in starts if start[0] >= 0]
            if found:
                place, _, stop = min(found)
                return count, place, stop
    return None


def adjusted(logits: NDArray[np.float32], request: EngineRequest, outputs: list[int], *, steers: bool) -> Array:
    """The logits that the token after ``outputs`` is drawn from."""
    params, prompt = request.params, request.known_prompt
    values = logits.astype(np.float64)
    if params.allowed_token_ids is not None:
        values[np.setdiff1d(np.arange(len(values)), params.allowed_token_ids)] = -np.inf
    for *start, last in request.bad_words_token_ids:
        if not start or (prompt + outputs)[-len(start) :] == start:
            values[last] = -np.inf
    if len(outputs) < params.min_tokens:
        values[request.stop_token_ids] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        values[token] += bias
    if params.repetition_penalty != 1:
        for token in {*prompt, *outputs}:
            factor = params.repetition_penalty
            values[token] *= 1 / factor if values[token] > 0 else factor
    for token in set(outputs):
        values[token] -= params.frequency_penalty * outputs.count(token) + params.presence_penalty
    strength = (params.extra_args or {}).get("steer")
    if steers and strength:
        values[(sum(prompt) + 31 * len(outputs) + 7 * sum(outputs)) % len(values)] += strength
    return values


def _softmax(values: Array) -> Array:
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum())


def _log_softmax(values: Array) -> Array:
    shifted = values - values.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _kept(probabilities: Array, params: SamplingParams, slack: float = 0.0) -> NDArray[np.int64]:
    """Tokens that pass the filters, by id; ``slack`` moves the ends of top_p and min_p."""
    order = np.lexsort((np.arange(len(probabilities)), -probabilities))
    order = order[probabilities[order] >= min(params.min_p * (1 - slack), 1.0) * probabilities[order[0]]]
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        sums = np.cumsum(probabilities[order])
        order = order[: 1 + int(np.searchsorted(sums, params.top_p * (1 + slack) * sums[-1]))]
    return np.sort(order)


def wrong_token(values: Array, params: SamplingParams, seed: int, place: int, token: int) -> str | None:
    """Why ``token`` cannot be what is drawn as output ``place`` from adjusted logits."""
    tolerance = TOLERANCE * max(1.0, params.repetition_penalty)
    if values[token] == -np.inf:
        return f"{token} is forbidden"
    if params.greedy:
        best = int(values.argmax())
        return None if values[token] >= values[best] - tolerance else f"{token} is not the most likely one, {best}"
    uniform = float(uniforms_at(seed_streams([seed]), np.array([place], np.uint64))[0])
    probabilities = _softmax(values / params.temperature)
    slack = 3 * tolerance / params.temperature
    for moved in (0.0, -slack, slack):
        kept = _kept(probabilities, params, moved)
        ends = np.cumsum(probabilities[kept]) / probabilities[kept].sum()
        at = int(np.searchsorted(kept, token))
        if at < len(kept) and kept[at] == token:
            begin = float(ends[at - 1]) if at else 0.0
            if begin - slack <= uniform <= ends[at] + slack:
                return None
    if _has_close_call(values, probabilities, params, tolerance):
        return None
    return f"{token} is not what {uniform} draws"


def _has_close_call(values: Array, probabilities: Array, params: SamplingParams, tolerance: float) -> bool:
    """Whether a filter ends among tokens that are as good as equal."""
    if 0 < params.top_k < len(values):
        end = np.sort(values)[-params.top_k]
        if end > -np.inf and np.count_nonzero(np.abs(values - end) < tolerance) > 1:
            return True
    end = params.min_p * probabilities.max()
    return bool(end and (np.abs(probabilities / end - 1) < 3 * tolerance / params.temperature).any())


def told_values(mode: str, logits: NDArray[np.float32], values: Array, params: SamplingParams) -> Array:
    """What ``logprobs`` tells of each token, in a mode."""
    found = logits.astype(np.float64) if mode.startswith("raw") else values
    if mode.startswith("processed") and not params.greedy:
        scaled = values / params.temperature
        kept = _kept(_softmax(scaled), params)
        found = np.full(len(values), -np.inf)
        found[kept] = scaled[kept]
    return found if mode.endswith("logits") else _log_softmax(found)


def wrong_logprobs(told: dict[int, Logprob], token: int, values: Array, count: int, tolerance: float) -> str | None:
    """Why an entry of ``logprobs`` cannot be: ``count`` most likely tokens of ``values``, beside the chosen one."""
    count = len(values) if count < 0 else min(count, len(values))
    if next(iter(told)) != token or not max(1, count) <= len(told) <= count + 1:
        return f"{len(told)} tokens, {next(iter(told))} first, for {count} and {token}"
    for one, entry in told.items():
        value = values[one]
        if not _close(entry.logprob, value, tolerance):
            return f"{one} has {entry.logprob}, not {value}"
        first, last = 1 + np.count_nonzero(values > value + tolerance), np.count_nonzero(values >= value - tolerance)
        if entry.rank is None or not first <= entry.rank <= last:
            return f"{one} has rank {entry.rank}, not {first} to {last}"
    best = np.sort(values)[::-1][:count]
    listed = sorted((entry.logprob for entry in told.values()), reverse=True)
    if not all(_close(one, other, tolerance) for one, other in zip(listed, best, strict=False)):
        return f"the best are {best}, not {listed}"
    return None


def _close(value: float, other: Any, tolerance: float) -> bool:
    return value == other or abs(value - other) <= tolerance * max(1.0, abs(other) / 20)
