"""The model that everyone runs: a Qwen3 with random weights, made on the spot."""

import itertools
import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .shape import Shape

END, START = "<|endoftext|>", "<|im_start|>"
SMALLEST_VOCABULARY = 512


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Write config, weights and tokenizer to ``folder``, unless it is complete already.

    Raises:
        ValueError: the vocabulary has no room for the tokenizer's bytes.
    """
    if (folder / "model.safetensors").exists():
        return
    write_description(shape, folder)
    unfinished = folder / "model.unfinished"
    save_file(_random_weights(shape), unfinished, metadata={"format": "pt"})
    unfinished.rename(folder / "model.safetensors")


def write_description(shape: Shape, folder: Path) -> None:
    """Write all but the weights.

    Raises:
        ValueError: the vocabulary has no room for the tokenizer's bytes.
    """
    if shape.vocabulary < SMALLEST_VOCABULARY:
        raise ValueError(f"the vocabulary must have at least {SMALLEST_VOCABULARY} entries, got {shape.vocabulary}")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "generation_config.json", {**_special_ids(shape), "do_sample": False})
    _write_tokenizer(shape, folder)


def _random_weights(shape: Shape) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, size in shape.tensors().items():
        if len(size) == 1:
            weights[name] = torch.ones(size, dtype=torch.bfloat16)
        else:
            weights[name] = torch.empty(size, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
    return weights


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "max_position_embeddings": 40_960,
        "attention_bias": False,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        **_special_ids(shape),
    }


def _special_ids(shape: Shape) -> dict[str, int]:
    return {"eos_token_id": shape.vocabulary - 2, "bos_token_id": shape.vocabulary - 1}


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    """A byte-level BPE that covers the whole vocabulary: loading it takes as long as loading a real one.

    Its merges are of two, then three plain characters, so that nearly every random token is text at once.
    """
    room = shape.vocabulary - 2
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = string.ascii_letters + string.digits + string.punctuation
    pairs = [(first, second) for first in plain for second in plain]
    merges = list(itertools.islice(itertools.chain(pairs, _triples(pairs, plain)), room - len(words)))
    if len(words) + len(merges) < room:
        raise ValueError(f"a vocabulary of {shape.vocabulary} is larger than the tokenizer can be")
    words += ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(START, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": END,
            "bos_token": START,
            "model_max_length": 40_960,
            "clean_up_tokenization_spaces": False,
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        },
    )


def _triples(pairs: list[tuple[str, str]], plain: str) -> itertools.chain[tuple[str, str]]:
    return itertools.chain.from_iterable(((first + second, third) for third in plain) for first, second in pairs)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
