"""Text and stop strings of a completion, token by token."""

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.frontend import tiny_tokenizers as tiny
from tests.engine.frontend.test_token_decoder import BYTE_IDS, TEXTS
from vllm_engine.frontend.detokenizer import Detokenizer
from vllm_engine.params import SamplingParams


def detokenize(text: str, params: SamplingParams) -> tuple[list[str], str | None, int]:
    """Pieces, stop string and number of tokens read, of a text given as one token per byte."""
    detokenizer = Detokenizer.for_request(tiny.load("byte_level"), [], params)
    pieces = []
    for count, byte in enumerate(text.encode(), start=1):
        piece, stop = detokenizer.push(BYTE_IDS[byte])
        pieces.append(piece)
        if stop is not None:
            return pieces, stop, count
    return [*pieces, detokenizer.finish()], None, len(text.encode())


@given(TEXTS, TEXTS.filter(bool), st.booleans())
def test_a_stop_string_spread_over_single_bytes_ends_the_text_and_never_leaks(
    text: str, stop: str, include: bool
) -> None:
    params = SamplingParams(stop=[stop], include_stop_str_in_output=include)
    pieces, found, _ = detokenize(text + stop + text, params)
    whole = text + stop + text
    end = whole.index(stop) + (len(stop) if include else 0)
    assert found == stop
    assert "".join(pieces) == whole[:end]


def test_text_that_only_began_like_a_stop_string_goes_out_at_the_end() -> None:
    pieces, stop, _ = detokenize("I am don", SamplingParams(stop=["done"]))
    assert stop is None
    assert pieces[-1] == "don"
    assert "".join(pieces) == "I am don"


def test_no_stop_string_counts_before_min_tokens_tokens_are_there() -> None:
    assert detokenize("abab", SamplingParams(stop=["ab"], min_tokens=0))[2] == 2
    assert detokenize("abab", SamplingParams(stop=["ab"], min_tokens=2))[2] == 2
    assert detokenize("abab", SamplingParams(stop=["ab"], min_tokens=3))[2] == 4
    assert detokenize("abab", SamplingParams(stop=["ab"], min_tokens=5))[1] is None


def test_a_stop_string_that_begins_before_min_tokens_and_ends_after_is_cut_whole() -> None:
    pieces, stop, count = detokenize("xstopy", SamplingParams(stop=["stop"], min_tokens=4))
    assert (stop, count, "".join(pieces)) == ("stop", 5, "x")


def test_a_character_that_stays_broken_shows_as_one_replacement_at_the_end() -> None:
    detokenizer = Detokenizer.for_request(tiny.load("byte_level"), [], SamplingParams())
    broken = "é😀".encode()[:-1]
    pieces = [detokenizer.push(BYTE_IDS[byte])[0] for byte in broken]
    assert "".join(pieces) == "é"
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_show_only_on_request() -> None:
    end = tiny.load("byte_level").eos_token_id
    assert end is not None
    for skip, expected in ((True, ""), (False, "<|im_end|>")):
        params = SamplingParams(skip_special_tokens=skip)
        detokenizer = Detokenizer.for_request(tiny.load("byte_level"), [], params)
        assert detokenizer.push(end)[0] == expected
