"""The tiny material is fit for its purpose."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.engine.models.tiny import FAMILIES, SPECIAL_TOKENS, VOCAB_SIZE, make_tiny_model, make_tiny_tokenizer


def test_the_tokenizer_has_a_token_for_every_row_of_the_models_and_gives_any_text_back(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer(tmp_path)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    text = "the quick ümlaut 日本 \n\t🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_transformers_reads_the_tokenizer_and_its_chat_template(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_of_a_tiny_model_does_not_collapse(family: str, tmp_path: Path) -> None:
    model = make_tiny_model(family, tmp_path)
    ids = torch.randint(5, VOCAB_SIZE, (1, 20), generator=torch.Generator().manual_seed(1))
    options = {"do_sample": False, "min_new_tokens": 48, "max_new_tokens": 48, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 20:]
    assert len(set(tokens.tolist())) >= 8


def test_a_tiny_model_has_the_same_weights_every_time_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = make_tiny_model("llama", tmp_path / "a").state_dict()
    torch.manual_seed(6)
    state = torch.get_rng_state()
    second = make_tiny_model("llama", tmp_path / "b").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
