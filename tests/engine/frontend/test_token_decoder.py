"""Ids to text piece by piece, against the ``tokenizers`` library's text of all ids at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.frontend import tiny_tokenizers as tiny
from vllm_engine.frontend.backends import FastBackend
from vllm_engine.frontend.token_bytes import byte_level_alphabet
from vllm_engine.frontend.token_decoder import CONTEXT_TOKENS, MAX_PENDING_TOKENS, TokenDecoder, WindowDecoder

TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from("the cat sat  on\n.,!é你好世界مرحبا😀👩‍👧🇩🇪नि\u0301\u200d\ufffd"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)
BYTE_IDS = {byte: tiny.byte_level().token_to_id(char) for char, byte in byte_level_alphabet().items()}


def stream(decoder: TokenDecoder, token_ids: Sequence[int]) -> str:
    return "".join(decoder.push(token_id) for token_id in token_ids) + decoder.finish()


def ids(kind: str) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tiny.load(kind).vocab_size - 1), max_size=24)


def continuation(whole: str, prompt: str) -> str:
    """What a text adds to the text of its prompt, whose last character may have been broken."""
    if not whole.startswith(prompt):
        prompt = prompt[:-1]
        assert whole.startswith(prompt)
    return whole[len(prompt) :]


@given(TEXTS)
def test_text_cut_into_single_bytes_comes_back_whole_and_never_shows_a_broken_character(text: str) -> None:
    token_ids = [BYTE_IDS[byte] for byte in text.encode()]
    decoder = tiny.load("byte_level").decoder()
    pieces = [decoder.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + decoder.finish() == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    ends = {len(text[:i].encode()) for i in range(1, len(text) + 1)}
    assert {i + 1 for i, piece in enumerate(pieces) if piece} == ends  # each character goes out with its last byte


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
@given(text=TEXTS)
def test_text_comes_back_from_its_own_tokens(kind: str, text: str) -> None:
    tokenizer = tiny.load(kind)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    expected = tiny.KINDS[kind]().decode(token_ids)
    assert stream(tokenizer.decoder(), token_ids) == tokenizer.decode(token_ids) == expected
    if "▁" not in text and not any(token in text for token in ("<unk>", "<s>", "</s>", *tiny.ENDS)):
        assert expected == text


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@given(data=st.data())
def test_any_ids_give_the_text_that_the_library_gives(kind: str, skip: bool, data: st.DataObject) -> None:
    token_ids = data.draw(ids(kind))
    expected = tiny.KINDS[kind]().decode(token_ids, skip_special_tokens=skip)
    tokenizer = tiny.load(kind)
    assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected
    assert stream(tokenizer.decoder(skip_special_tokens=skip), token_ids) == expected


@pytest.mark.parametrize("skip", [True, False])
@given(token_ids=ids("llama"))
def test_broken_bytes_cost_only_themselves_in_a_sentencepiece_tokenizer(skip: bool, token_ids: list[int]) -> None:
    tokenizer = tiny.load("llama")
    text = stream(tokenizer.decoder(skip_special_tokens=skip), token_ids)
    assert text == tokenizer.decode(token_ids, skip_special_tokens=skip)
    library = tiny.llama().decode(token_ids, skip_special_tokens=skip)
    if "\ufffd" not in library:
        assert text == library
        return
    # The library turns every byte beside a broken one into U+FFFD as well; UTF-8 says which ones are broken.
    data = b""
    for token_id in token_ids:
        token = tiny.llama().id_to_token(token_id)
        if skip and token_id in tokenizer.all_special_ids:
            continue
        data += bytes([token_id - 3]) if token.startswith("<0x") else token.replace("▁", " ").encode()
    assert text == data.removeprefix(b" ").decode("utf-8", "replace")
    assert text.count("\ufffd") <= library.count("\ufffd")


@pytest.mark.parametrize("kind", list(tiny.KINDS))
@given(data=st.data())
def test_the_output_continues_the_prompt_even_from_within_a_character(kind: str, data: st.DataObject) -> None:
    tokenizer = tiny.load(kind)
    prompt_ids, output_ids = data.draw(ids(kind)), data.draw(ids(kind))
    whole, prompt = tokenizer.decode(prompt_ids + output_ids), tokenizer.decode(prompt_ids)
    assert stream(tokenizer.decoder(prompt_ids), output_ids) == continuation(whole, prompt)


def test_a_prompt_that_ends_within_an_emoji_lets_the_output_complete_it() -> None:
    emoji = [BYTE_IDS[byte] for byte in "😀".encode()]
    for cut in range(1, 4):
        assert stream(tiny.load("byte_level").decoder(emoji[:cut]), emoji[cut:]) == "😀"


@pytest.mark.parametrize("output", [b"", b"\x80", b"a", b"\xe2\x82\xac"])
def test_half_of_a_surrogate_at_the_end_of_a_prompt_is_no_character_to_complete(output: bytes) -> None:
    prompt = b"\xed\xa0"
    decoder = tiny.load("byte_level").decoder([BYTE_IDS[byte] for byte in prompt])
    expected = (prompt + output).decode("utf-8", "replace").removeprefix(prompt.decode("utf-8", "replace"))
    assert stream(decoder, [BYTE_IDS[byte] for byte in output]) == expected


def test_the_space_before_the_first_word_of_an_output_stays() -> None:
    tokenizer = tiny.load("llama")
    prompt, output = tokenizer.encode("the"), [tiny.llama().token_to_id("▁cat")]
    assert stream(tokenizer.decoder(prompt), output) == " cat"
    assert stream(tokenizer.decoder(), output) == "cat"


@pytest.mark.parametrize("skip", [True, False])
@given(token_ids=ids("word_piece"))
def test_a_decoder_that_looks_at_neighbours_is_followed_in_a_window(skip: bool, token_ids: list[int]) -> None:
    tokenizer = tiny.load("word_piece")
    expected = tiny.word_piece().decode(token_ids, skip_special_tokens=skip)
    assert stream(tokenizer.decoder(skip_special_tokens=skip), token_ids) == expected
    assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("after", ["[SEP]", None])
def test_an_output_goes_on_with_a_text_that_hidden_tokens_end(after: str | None) -> None:
    tokenizer = tiny.load("word_piece")
    word, hidden = (tiny.word_piece().token_to_id(token) if token else 10**6 for token in ("cat", after))
    prompt = [word, *[hidden] * (CONTEXT_TOKENS + 1)]
    assert stream(tokenizer.decoder(prompt), [word, word]) == " cat cat"


def test_spaces_between_special_tokens_are_left_out_on_request() -> None:
    tokenizer = tiny.load("word_piece")
    cls, sep, cat = (tiny.word_piece().token_to_id(token) for token in ("[CLS]", "[SEP]", "cat"))
    for spaces, expected in ((True, "cat [CLS] [SEP] cat"), (False, "cat [CLS][SEP] cat")):
        decoder = tokenizer.decoder(skip_special_tokens=False, spaces_between_special_tokens=spaces)
        assert stream(decoder, [cat, cls, sep, cat]) == expected


@given(token_ids=st.lists(st.integers(0, 14), min_size=50, max_size=200))
@settings(max_examples=20)
def test_the_window_decodes_a_bounded_number_of_tokens_however_long_the_output(token_ids: list[int]) -> None:
    class Counting(FastBackend):
        longest = 0

        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            self.longest = max(self.longest, len(token_ids))
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    backend = Counting(tiny.word_piece())
    stream(WindowDecoder(backend, skip_special_tokens=True, spaces_between_special_tokens=True), token_ids)
    assert backend.longest <= CONTEXT_TOKENS + MAX_PENDING_TOKENS


def test_ids_that_only_the_model_knows_have_no_text() -> None:
    for kind in tiny.KINDS:
        tokenizer = tiny.load(kind)
        assert stream(tokenizer.decoder(), [tokenizer.vocab_size, 10**6, tokenizer.vocab_size + 5]) == ""
