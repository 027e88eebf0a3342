"""Small tokenizers of every kind that matters, made with the ``tokenizers`` library, and folders to load them from."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from vllm_engine.frontend import tokenizer as engine_tokenizer

CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "hello hello world world, thinking of things",
    "emoji 😀😀 and 👩‍👩‍👧 and 🇩🇪, accents éàü, e\u0301",
    "你好，世界。你好吗？ مرحبا بالعالم नमस्ते ไทย",
]
ENDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE as in GPT-2 and Qwen: all 256 bytes, some merges, special and other added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=340, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ENDS])
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("é!", normalized=False)])
    return tokenizer


@cache
def llama() -> Tokenizer:
    """SentencePiece style with byte tokens, as in Llama 2 and Mistral: a space in front of every text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for char in "▁abcdefghijklmnopqrstuvwxyzABC.,!?你é":
        vocab[char] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("a", "t"), ("▁c", "at"), ("▁", "▁"), ("o", "n")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    """SentencePiece style without byte tokens, as in T5: the Metaspace decoder."""
    pieces = ["<unk>", "</s>", "▁", "▁the", "▁cat", "s", "a", "t", "at", "▁a", "你", "好", "é", "."]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return tokenizer


@cache
def word_piece() -> Tokenizer:
    """WordPiece as in BERT, whose decoder looks at a token's place."""
    words = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "sat", "##ting", "on", ".", ",", "'", "s", "do", "not"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("[CLS]", "[SEP]")])
    return tokenizer


KINDS = {"byte_level": byte_level, "llama": llama, "metaspace": metaspace, "word_piece": word_piece}

SPECIAL_TOKENS = {
    "byte_level": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "metaspace": {"eos_token": "</s>"},
    "word_piece": {"cls_token": "[CLS]", "sep_token": "[SEP]"},
}


def write_folder(folder: Path, kind: str, **config: Any) -> Path:
    """A tokenizer's folder: ``tokenizer.json`` and a ``tokenizer_config.json`` with special tokens and ``config``."""
    folder.mkdir(exist_ok=True)
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL_TOKENS[kind] | config), encoding="utf-8")
    return folder


@cache
def load(kind: str) -> engine_tokenizer.Tokenizer:
    """Our tokenizer of a kind, shared by all tests: it does not change."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return engine_tokenizer.Tokenizer.from_folder(write_folder(Path(folder) / kind, kind))
