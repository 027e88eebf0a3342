"""Counting the tokens of a response while its outputs come in."""

from msgspec import UNSET

from vllm_engine.outputs import RequestOutput
from vllm_server.protocol.usage import PromptTokensDetails, Usage


class TokenCounts:
    """Sums over all prompts and completions; each prompt counts once, however many completions it has."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion_tokens = 0

    def add(self, prompt_index: int, output: RequestOutput, *, count_completion: bool = True) -> None:
        """Take in one output, whose ``token_ids`` are new."""
        self._prompts[prompt_index] = len(output.prompt_token_ids), output.num_cached_tokens
        if count_completion:
            for item in output.outputs:
                self._completion_tokens += len(item.token_ids)

    def usage(self, *, details: bool = False) -> Usage:
        """The counts so far; ``details`` adds how much of the prompts came out of the prefix cache."""
        prompt_tokens = sum(count for count, _ in self._prompts.values())
        cached = sum(cached for _, cached in self._prompts.values())
        return Usage(
            prompt_tokens,
            prompt_tokens + self._completion_tokens,
            self._completion_tokens,
            PromptTokensDetails(cached) if details else UNSET,
        )
