"""One case: a random model, an engine with random settings, random requests at random moments, and what must hold."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from tests.engine.fuzzing.models import RandomModel, random_model, random_settings
from tests.engine.fuzzing.oracle import (
    TOLERANCE,
    TextOracle,
    adjusted,
    find_stop,
    told_values,
    wrong_logprobs,
    wrong_token,
)
from tests.engine.fuzzing.workload import Entry, Fault, random_embeds, random_params, random_prompt
from vllm_engine import LLM
from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.inproc import InprocClient
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.frontend.output_processor import ProcessedUpdates
from vllm_engine.metrics.stats import StepTotals

MAX_STEPS = 20_000
Logits = NDArray[np.float32]


def run_case(seed: int, folder: Path) -> Counter[str]:
    """Raises ``Fault``, with the case's model, settings and request. Returns what was checked, by kind."""
    rng = random.Random(f"engine {seed}")
    model = random_model(rng, folder)
    settings = random_settings(rng, model)
    ahead = rng.random() < 0.3
    try:
        with patch.object(EngineConfig, "schedules_ahead", ahead), _make_llm(rng, folder, settings) as llm:
            case = Case(rng, llm, model, settings)
            case.run()
            return case.check()
    except Fault as fault:
        about = f"{model.family}, {model.tokenizer}: {model.config}\nsteps ahead: {ahead}, {settings}"
        raise Fault(f"{fault}\n{about}") from None


def _make_llm(rng: random.Random, folder: Path, settings: dict[str, Any]) -> LLM:
    """Mostly with little more room than one request needs."""
    if rng.random() < 0.3:
        return LLM(str(folder), **settings, kv_cache_memory_bytes=2**23)
    try:
        return LLM(str(folder), **settings, num_gpu_blocks_override=2)
    except ConfigError as error:
        needed = re.search(r"needs (\d+)", str(error))
        if needed is None:
            raise
    num_blocks = 1 + int(int(needed[1]) * rng.choice([1, 1, 1.3, 2, 3]))
    return LLM(str(folder), **settings, num_gpu_blocks_override=num_blocks)


class Case:
    """The requests of a case, on their way through the parts of an engine."""

    def __init__(self, rng: random.Random, llm: LLM, model: RandomModel, settings: dict[str, Any]) -> None:
        assert isinstance(llm._client, InprocClient)
        self._rng, self._llm, self._model, self._settings = rng, llm, model, settings
        self._client, self._inputs, self._outputs = llm._client, llm._inputs, llm._outputs
        self._vocab_size, self._max_model_len = llm.ready.vocab_size, llm.ready.max_model_len
        self._table: torch.nn.Module = model.model.get_input_embeddings()
        self._entries: dict[str, Entry] = {}
        self._in_cache: list[Entry] = []
        self._prompts: list[list[int]] = []
        self._embeds: list[torch.Tensor] = []
        self._totals = StepTotals()
        self._aborted = self._forgotten = False
        self._counts: Counter[str] = Counter()

    # ---- the run ----

    def run(self) -> None:
        """Requests come, run, are aborted; the engine forgets its cache, sleeps and wakes up."""
        rng, client, outputs = self._rng, self._client, self._outputs
        to_come = rng.choice([1, 3, 8, 20, 40])
        if self._vocab_size * self._max_model_len > 300_000:
            to_come = min(to_come, 6)
        is_eventful, burst, every = rng.random() < 0.6, rng.choice([1, 3, 40]), rng.choice([1, 1, 1, 3])
        asleep_until = 0
        for step in range(MAX_STEPS):
            if not (to_come or asleep_until or outputs.num_requests or client.has_unfinished()):
                break
            if to_come and (not outputs.num_requests or rng.random() < 0.3):
                count = min(to_come, rng.randrange(1, burst + 1))
                to_come -= count
                for _ in range(count):
                    self._add()
            if is_eventful:
                if outputs.num_requests and rng.random() < 0.01:
                    self._abort(rng.choice(sorted(outputs._requests)))
                if rng.random() < 0.01:
                    client.call("reset_prefix_cache", rng.random() < 0.5)
                    self._forget()
                if not asleep_until and rng.random() < 0.006:
                    self._llm.sleep(
                        rng.choice([0, 1, 2])
                    ) if rng.random() < 0.8 else self._llm.release_kv_cache_memory()
                    self._forget()
                    asleep_until = step + rng.randrange(1, 4)
            if asleep_until and step >= asleep_until:
                self._llm.wake_up()
                asleep_until = 0
            has_stepped = client.has_unfinished()
            if has_stepped:
                self._step()
            if step % every == 0 or not has_stepped:
                self._hand_out(outputs.hand_out())
        else:
            raise Fault(f"no end after {MAX_STEPS} steps")
        self._hand_out(outputs.hand_out())

    def _add(self) -> None:
        rng, vocab_size, max_model_len = self._rng, self._vocab_size, self._max_model_len
        embeds = None
        prompt: Any = {}
        if rng.random() < 0.1:
            if not self._embeds or rng.random() < 0.6:
                length = rng.randrange(1, max(2, max_model_len // 2))
                self._embeds.append(random_embeds(rng, self._table, vocab_size, length))
            prompt["prompt_embeds"] = embeds = rng.choice(self._embeds)
            length = len(embeds)
        else:
            ids = random_prompt(rng, vocab_size, max_model_len, self._prompts, self._llm.get_tokenizer())
            prompt["prompt_token_ids"] = ids
            length = len(ids)
        salt = rng.choice([None, None, None, "a", "b"])
        if salt is not None:
            prompt["cache_salt"] = salt
        steers = "logits_processors" in self._settings
        params = random_params(rng, vocab_size, max_model_len, max_model_len - length, steers=steers)
        if embeds is not None:
            params = params.replace(prompt_logprobs=None)
        name, tenant = f"r{len(self._entries)}", rng.choice(["", "x", "y"])
        try:
            prepared = self._inputs.process(name, prompt, params, priority=rng.randrange(-2, 3), tenant=tenant)
        except InvalidRequest:
            self._counts["refused"] += 1
            return
        keep = params.truncate_prompt_tokens
        if keep is not None:
            keep = max(1, max_model_len - (params.max_tokens or 1)) if keep == -1 else keep
            embeds = None if embeds is None else embeds[-keep:]
        if embeds is None and prepared.prompt_token_ids != ids[-keep if keep else 0 :]:
            raise Fault(f"{name}: the prompt was not truncated to its last {keep} tokens")
        surely = [] if self._forgotten else [one for one in self._entries.values() if one.finished and not one.aborted]
        entry = Entry(prepared, params, embeds, salt, before=self._in_cache.copy(), surely=surely)
        self._entries[name] = entry
        self._in_cache.append(entry)
        self._outputs.add(prepared)
        self._client.add(prepared.requests)

    def _abort(self, name: str) -> None:
        self._aborted = self._entries[name].aborted = True
        engine_ids, result = self._outputs.abort([name])
        self._client.abort(engine_ids)
        self._hand_out(result)

    def _forget(self) -> None:
        """What has ended cannot be found any more; what runs may still leave blocks."""
        self._forgotten = True
        self._in_cache = [entry for entry in self._in_cache if not entry.finished]

    def _step(self) -> None:
        step = self._client.step()
        stats = step.stats
        if not 0 <= stats.kv_cache_usage <= 1 or stats.num_running > self._settings["max_num_seqs"]:
            raise Fault(f"{stats}")
        for update in step.updates:
            if update.error is not None and "no token is possible" not in update.error:
                raise Fault(f"a request ended with: {update.error}")
        self._client.abort(self._outputs.take(step.updates, step.timestamp, self._totals))

    def _hand_out(self, result: ProcessedUpdates) -> None:
        for output in result.outputs:
            self._entries[output.request_id].take(output)

    # ---- what must hold ----

    def check(self) -> Counter[str]:
        """All of it, after ``run``."""
        self._check_rest()
        if not self._aborted:
            self._check_counters()
        is_roomy = self._is_roomy()
        logits = self._logits()
        text = TextOracle(self._model.tokenizer, self._llm.get_tokenizer())
        for name, entry in self._entries.items():
            for index, completion in enumerate(entry.completions):
                try:
                    _check_tokens(entry, index, logits[name, index], self._settings, self._counts)
                    _check_end(entry, index, logits[name, index], self._settings, text, self._max_model_len)
                except Fault as fault:
                    raise Fault(f"{name}, completion {index}: {fault}\n{completion}\n{entry}") from None
                self._counts["completions"] += 1
                self._counts["tokens"] += len(completion.ids)
            if entry.completions[0].ids:
                later = list(self._entries.values())[list(self._entries).index(name) :]
                _check_cached(entry, [*entry.before, *later], self._settings, is_roomy=is_roomy)
        return self._counts

    def _check_rest(self) -> None:
        """Nobody holds anything of anyone."""
        core, outputs = self._client.core, self._outputs
        scheduler, stats = core.scheduler, core.scheduler.stats()
        self._counts["preemptions"] = stats.num_preemptions
        self._counts["cached tokens"] = stats.prefix_cache_hits
        scheduler.kv.check_invariants()
        kv = scheduler.kv
        if stats.num_running or stats.num_waiting or stats.kv_cache_usage or len(scheduler) or scheduler._under_way:
            raise Fault(f"the scheduler is not at rest: {stats}")
        if kv.pool.num_used or kv._tables or kv._settled or kv._num_registered:
            raise Fault("KV blocks, or something about them, are kept")
        if kv.pool._evictable and not self._settings["enable_prefix_caching"]:
            raise Fault("blocks are cached without a prefix cache")
        if set(core.executor.worker.runner.batch._row_of) - set(scheduler._removed):
            raise Fault("the batch keeps a request")
        if outputs.num_requests or outputs._by_engine_id or outputs._touched:
            raise Fault("the output processor keeps a request")

    def _check_counters(self) -> None:
        """Sums over the requests, none of which was aborted, are the engine's own."""
        entries, stats = list(self._entries.values()), self._client.core.scheduler.stats()
        told = [entry for entry in entries if any(completion.ids for completion in entry.completions)]
        sums = {
            "output tokens": (
                self._totals.num_generation_tokens,
                sum(len(completion.ids) for entry in entries for completion in entry.completions),
            ),
            "prompt tokens": (self._totals.num_prompt_tokens, sum(len(entry.prompt) for entry in told)),
        }
        if not any(completion.reason == "error" for entry in entries for completion in entry.completions):
            cached = sum(entry.metrics.num_cached_tokens for entry in entries)
            sums["cached tokens"] = stats.prefix_cache_hits, cached
            if self._settings["enable_prefix_caching"]:
                looked_up = [len(e.prompt) * (e.params.n - (e.params.prompt_logprobs is not None)) for e in entries]
                sums["tokens looked up"] = stats.prefix_cache_queries, sum(looked_up)
            if not any(entry.params.stop for entry in entries):  # preempted after the string, it tells nobody
                told_preemptions = sum(entry.metrics.num_preemptions for entry in entries)
                sums["preemptions"] = stats.num_preemptions, told_preemptions
        for name, (counted, expected) in sums.items():
            if counted != expected:
                raise Fault(f"{counted} {name} were counted, and there were {expected}")

    def _is_roomy(self) -> bool:
        """Whether no cached block can have been evicted."""
        layout = self._client.core.limits.layout
        blocks = [
            (1 + entry.metrics.num_preemptions) * (2 + (len(entry.prompt) + len(completion.ids)) // layout.block_size)
            for entry in self._entries.values()
            for completion in entry.completions
        ]
        return layout.num_blocks - 1 > len(layout.groups) * sum(blocks) and not self._forgotten

    @torch.no_grad()
    def _logits(self) -> dict[tuple[str, int], Logits]:
        """What transformers says at each position of each completion, as ``[tokens, vocabulary]``."""
        model: Any = self._model.model
        found: dict[tuple[str, int], Logits] = {}
        for name, entry in self._entries.items():
            for index, completion in enumerate(entry.completions):
                length = len(entry.prompt) + len(completion.ids)
                ids = entry.prompt + completion.ids
                if self._model.needs_full_length:
                    ids = ids + [0] * (self._max_model_len - length)
                if entry.embeds is None:
                    logits = model(torch.tensor([ids])).logits
                else:
                    outputs = torch.tensor(ids[len(entry.prompt) :], dtype=torch.int64)
                    logits = model(inputs_embeds=torch.cat([entry.embeds, self._table(outputs)])[None]).logits
                found[name, index] = logits[0, :length].float().numpy()
        return found


def _check_tokens(entry: Entry, index: int, logits: Logits, settings: dict[str, Any], counts: Counter[str]) -> None:
    """Tokens, their log-probabilities, and those of the prompt, against the model's logits."""
    params, completion, request = entry.params, entry.completions[index], entry.prepared.requests[index]
    mode, first = settings["logprobs_mode"], len(entry.prompt) - 1
    if len(completion.logprobs) != (len(completion.ids) if params.logprobs is not None else 0):
        raise Fault(f"{len(completion.logprobs)} logprobs for {len(completion.ids)} tokens")
    for place, token in enumerate(completion.ids):
        row = logits[first + place]
        values = adjusted(row, request, completion.ids[:place], steers="logits_processors" in settings)
        wrong = wrong_token(values, params, request.seed, place, token)
        # Where filters end is not the same in two precisions: what they leave is held by the token alone.
        filters = not params.greedy and (params.top_p < 1 or params.min_p > 0 or params.top_k > 0)
        if wrong is None and params.logprobs is not None and not (mode.startswith("processed") and filters):
            tolerance = 2 * TOLERANCE
            if mode.startswith("processed"):
                tolerance *= max(1.0, params.repetition_penalty) / (1 if params.greedy else min(1, params.temperature))
            told = completion.logprobs[place]
            wrong = wrong_logprobs(told, token, told_values(mode, row, values, params), params.logprobs, tolerance)
            counts["logprobs"] += 1
        if wrong is not None:
            raise Fault(f"token {place}: {wrong}")
    if params.logprobs is not None and completion.ids:
        told_sum = sum(told[token].logprob for told, token in zip(completion.logprobs, completion.ids, strict=True))
        if completion.cumulative_logprob != told_sum:
            raise Fault(f"the logprobs add up to {told_sum}, not {completion.cumulative_logprob}")
    if params.prompt_logprobs is not None and index == 0 and completion.ids:
        prompt_mode = "raw_" + mode.partition("_")[2]
        prompt_logprobs = entry.prompt_logprobs or []
        if len(prompt_logprobs) != len(entry.prompt) or prompt_logprobs[0] is not None:
            raise Fault(f"{len(prompt_logprobs)} prompt logprobs for {len(entry.prompt)} tokens")
        for place in range(1, len(entry.prompt)):
            row = logits[place - 1]
            values = told_values(prompt_mode, row, row.astype(np.float64), params)
            token, told = entry.prompt[place], prompt_logprobs[place] or {}
            wrong = wrong_logprobs(told, token, values, params.prompt_logprobs, 2 * TOLERANCE)
            if wrong is not None:
                raise Fault(f"token {place} of the prompt: {wrong}")
        counts["prompt logprobs"] += len(entry.prompt) - 1


def _check_end(
    entry: Entry, index: int, logits: Logits, settings: dict[str, Any], text: TextOracle, max_model_len: int
) -> None:
    """Where the completion ends, why, and its text."""
    params, completion, request = entry.params, entry.completions[index], entry.prepared.requests[index]
    ids = completion.ids
    limit = min(params.max_tokens or max_model_len, max_model_len - len(entry.prompt))
    expected: tuple[str | None, int | str | None] = ("length", None)
    stops = [place for place, token in enumerate(ids) if token in request.stop_token_ids]
    if stops and stops[0] < len(ids) - 1:
        raise Fault(f"token {stops[0]} was to be the last one")
    if stops:
        is_end_of_text = ids[-1] in request.eos_token_ids and ids[-1] not in (params.stop_token_ids or ())
        expected = "stop", None if is_end_of_text else ids[-1]
    if completion.reason == "error":
        values = adjusted(logits[-1], request, ids, steers="logits_processors" in settings)
        if values.max() > -np.inf:
            raise Fault("a token was possible")
        return
    told = ""
    if params.detokenize:
        shown = ids[:-1] if stops and not params.include_stop_str_in_output else ids
        context = entry.prompt
        if entry.embeds is not None:
            context = text.tokenizer.encode("a", add_special_tokens=False)
        pieces, rest = text.pieces(context, shown, params)
        told = "".join(pieces)
        found = find_stop(pieces, params)
        if found is None:
            told += rest
            whole = text.continuation(context, shown, params)
            if whole is not None and whole != told and params.spaces_between_special_tokens:
                raise Fault(f"the text of all tokens at once is {whole!r}, not {told!r}")
        else:
            count, start, stop = found
            if count != len(ids):
                raise Fault(f"{stop!r} ends the text with token {count}")
            told = told[: start + len(stop) if params.include_stop_str_in_output else start]
            expected = "stop", stop
    if completion.text != told:
        raise Fault(f"the text is {completion.text!r}, not {told!r}")
    if completion.reason == "abort" and entry.aborted:
        return
    if (completion.reason, completion.stop) != expected or (expected[0] == "length" and len(ids) != limit):
        raise Fault(f"{expected} and at most {limit} tokens were expected")


def _check_cached(entry: Entry, others: list[Entry], settings: dict[str, Any], *, is_roomy: bool) -> None:
    """The tokens that were found in the prefix cache: no more than anybody can have left there, and no fewer than
    those who had ended have, where nothing is ever evicted.
    """
    size = settings["block_size"]
    most = least = 0
    if settings["enable_prefix_caching"] and entry.params.prompt_logprobs is None:
        most = _common_prefix(entry, others, size)
        least = _common_prefix(entry, entry.surely, size) if is_roomy else 0
    if entry.num_cached_tokens % size or not least <= entry.num_cached_tokens <= most:
        raise Fault(f"{entry.num_cached_tokens} cached tokens, and not {least} to {most}\n{entry}")


def _common_prefix(entry: Entry, others: list[Entry], block_size: int) -> int:
    """Tokens of the longest beginning, in whole blocks, that another completion has computed, too."""
    longest = 0
    for other in others:
        for index, completion in enumerate(other.completions):
            if other.cache_key != entry.cache_key or (other is entry and index == 0):
                continue
            computed = (other.prompt + completion.ids)[:-1]
            same = [one == two for one, two in zip(entry.prompt[:-1], computed, strict=False)]
            longest = max(longest, (same.index(False) if False in same else len(same)) // block_size * block_size)
    return longest
