"""The text of one completion, token by token: decoding and stop strings together."""

from collections.abc import Sequence

from vllm_engine.frontend.stop_strings import StopStrings
from vllm_engine.frontend.token_decoder import TokenDecoder
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.params import SamplingParams


class Detokenizer:
    """Turns the output ids of one completion into text and finds its end.

    Tokens go in one by one, so that the text never depends on how many of them a step of the engine brought.
    Work per token does not grow with the length of the output.
    """

    __slots__ = ("_decoder", "_has_stops", "_min_tokens", "_num_tokens", "_stops")

    def __init__(self, decoder: TokenDecoder, params: SamplingParams) -> None:
        self._decoder = decoder
        self._stops = StopStrings(params.stop_strings, include=params.include_stop_str_in_output)
        self._has_stops = bool(params.stop)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0

    @classmethod
    def for_request(
        cls, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> "Detokenizer":
        """The detokenizer of a completion that follows a prompt."""
        decoder = tokenizer.decoder(
            prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        return cls(decoder, params)

    def push(self, token_id: int) -> tuple[str, str | None]:
        """Add a token; returns the text that may go out now, and the stop string that ends the completion with it.

        No stop string counts whose last character came before ``min_tokens`` tokens were there.
        """
        if not self._has_stops:
            return self._decoder.push(token_id), None
        self._num_tokens += 1
        return self._stops.feed(self._decoder.push(token_id), active=self._num_tokens >= self._min_tokens)

    def finish(self) -> str:
        """The rest of the text, when the completion ends for another reason than a stop string."""
        return self._stops.flush() + self._decoder.finish()
