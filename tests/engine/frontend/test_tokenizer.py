"""The tokenizer against transformers, and against broken or hostile files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.engine.frontend import tiny_tokenizers as tiny
from tests.engine.frontend.test_token_decoder import TEXTS
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.frontend.token_bytes import byte_level_alphabet
from vllm_engine.frontend.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module", params=["byte_level", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, object]:
    """Our tokenizer and that of transformers, from one folder."""
    from transformers import PreTrainedTokenizerFast

    folder = tiny.write_folder(tmp_path_factory.mktemp("tokenizers") / request.param, request.param)
    return Tokenizer.from_folder(folder), PreTrainedTokenizerFast.from_pretrained(str(folder))


@settings(max_examples=50)
@given(text=TEXTS)
def test_encoding_and_decoding_equal_transformers(pair, text: str) -> None:
    ours, theirs = pair
    for add_special_tokens in (True, False):
        token_ids = ours.encode(text, add_special_tokens=add_special_tokens)
        assert token_ids == theirs.encode(text, add_special_tokens=add_special_tokens)
        for skip in (True, False):
            assert ours.decode(token_ids, skip_special_tokens=skip) == theirs.decode(
                token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_special_tokens_equal_transformers(pair) -> None:
    ours, theirs = pair
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == (theirs.bos_token, theirs.eos_token, theirs.pad_token)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocab_size == len(theirs)
    assert ours.all_special_ids >= set(theirs.all_special_ids)
    ids = list(range(ours.vocab_size))
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


def test_many_texts_are_encoded_as_one_by_one(pair) -> None:
    ours, _ = pair
    texts = ["the cat", "", "你好 <|im_end|>", "the cat"]
    assert ours.encode_batch(texts) == [ours.encode(text) for text in texts]


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_level_alphabet()) == set(ByteLevel.alphabet())
    assert sorted(byte_level_alphabet().values()) == list(range(256))


def test_a_beginning_token_is_added_when_the_settings_ask_for_it_and_the_file_does_not(tmp_path: Path) -> None:
    bos = {"bos_token": "<|endoftext|>"}
    plain = Tokenizer.from_folder(tiny.write_folder(tmp_path / "plain", "byte_level", **bos))
    asked = Tokenizer.from_folder(tiny.write_folder(tmp_path / "asked", "byte_level", add_bos_token=True, **bos))
    assert asked.encode("the cat") == [asked.bos_token_id, *plain.encode("the cat")]
    assert asked.encode("the cat", add_special_tokens=False) == plain.encode("the cat")
    already = Tokenizer.from_folder(tiny.write_folder(tmp_path / "already", "llama", add_bos_token=True))
    assert already.encode("the cat").count(already.bos_token_id) == 1


def test_settings_of_the_training_do_not_cut_or_pad_prompts(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "cut", "byte_level")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    text = "the cat sat on the mat"
    assert Tokenizer.from_folder(folder).encode(text) == tiny.load("byte_level").encode(text)


def test_tokens_known_only_to_the_configuration_are_added_with_their_ids(tmp_path: Path) -> None:
    new_id = tiny.byte_level().get_vocab_size()
    added = {str(new_id): {"content": "<|extra|>", "special": True, "normalized": False}}
    tokenizer = Tokenizer.from_folder(tiny.write_folder(tmp_path / "t", "byte_level", added_tokens_decoder=added))
    assert tokenizer.encode("a<|extra|>")[-1] == new_id
    assert tokenizer.decode([new_id]) == ""
    assert tokenizer.decode([new_id], skip_special_tokens=False) == "<|extra|>"
    wrong = {str(new_id + 7): {"content": "<|extra|>", "special": True}}
    with pytest.raises(ConfigError, match="extra"):
        Tokenizer.from_folder(tiny.write_folder(tmp_path / "w", "byte_level", added_tokens_decoder=wrong))


def test_a_special_token_given_as_object_or_in_the_older_file_is_found(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "t", "byte_level", eos_token={"content": "<|im_end|>", "lstrip": False})
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}')
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.parametrize(
    "token_ids", [[-1], [10**6], [2**32], [2**70], [-(10**5000)], [True], ["1"], [1.0], [None]], ids=lambda value: ""
)
@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_ids_that_nobody_knows_are_refused(kind: str, token_ids: list) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tiny.load(kind).decode(token_ids)
    assert caught.value.field == "tokens"
    with pytest.raises(InvalidRequest):
        tiny.load(kind).convert_ids_to_tokens(token_ids)


def test_padding_rows_of_the_embedding_decode_to_nothing(tmp_path: Path) -> None:
    for kind in tiny.KINDS:
        tokenizer = Tokenizer.from_folder(tiny.write_folder(tmp_path / kind, kind), model_vocab_size=1000)
        assert tokenizer.decode([999]) == ""
        assert tokenizer.convert_ids_to_tokens([999]) == [""]


@pytest.mark.parametrize("text", ["\ud800", 5, None, ["a"]])
def test_what_is_no_valid_text_is_refused(text) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tiny.load("byte_level").encode(text)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Evil"}}'),
        ("tokenizer_config.json", "not json"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "\udcff".encode("utf-8", "surrogateescape")),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", "[" * 100_000),
        ("special_tokens_map.json", "5"),
        ("chat_template.json", "{"),
        ("chat_template.jinja", b"\xff\xfe\xff"),
    ],
)
def test_broken_files_are_refused_with_their_name(tmp_path: Path, name: str, content: str | bytes) -> None:
    folder = tiny.write_folder(tmp_path / "t", "byte_level")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=name.split(".")[0]):
        Tokenizer.from_folder(folder)


def test_strange_values_in_the_configuration_are_of_no_consequence(tmp_path: Path) -> None:
    strange = {"eos_token": 5, "bos_token": {"content": []}, "added_tokens_decoder": [1], "extra_special_tokens": 3}
    tokenizer = Tokenizer.from_folder(tiny.write_folder(tmp_path / "t", "byte_level", **strange))
    assert tokenizer.eos_token is None
    assert tokenizer.bos_token_id is None


def test_old_files_go_through_transformers(tmp_path: Path) -> None:
    vocab = tiny.byte_level().get_vocab()
    data = json.loads(tiny.byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps({k: v for k, v in vocab.items() if k in data["vocab"]}))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in data["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}'
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("the cat 你") == tiny.load("byte_level").encode("the cat 你")
    assert tokenizer.decode(tokenizer.encode("the cat 你")) == "the cat 你"


def test_a_folder_without_any_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer") as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.field == "tokenizer"


def test_code_in_a_tokenizer_folder_is_never_run(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('ran')")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}')
    with pytest.raises(ConfigError):
        Tokenizer.from_folder(tmp_path)


def test_single_tokens_show_as_people_can_read_them() -> None:
    tokenizer = tiny.load("byte_level")
    first = tokenizer.convert_tokens_to_ids("ð")  # the first byte of an emoji
    assert first is not None
    assert tokenizer.token_bytes(first) == b"\xf0"
    assert tokenizer.token_text(first) == "\\xf0"
    assert tokenizer.token_text(tokenizer.eos_token_id or 0) == "<|im_end|>"
    llama = tiny.load("llama")
    assert llama.token_text(llama.convert_tokens_to_ids("▁the") or 0) == " the"
    assert llama.token_bytes(llama.convert_tokens_to_ids("<0xF0>") or 0) == b"\xf0"
    assert llama.token_text(10**6) == ""


def test_the_longest_token_is_measured_in_characters() -> None:
    tokenizer = tiny.load("byte_level")
    tokens = tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size))
    assert tokenizer.longest_token == max(map(len, tokens))


def test_a_tokenizer_of_its_own_can_be_named(tmp_path: Path) -> None:
    other = tiny.write_folder(tmp_path / "other", "llama")
    model = tiny.write_folder(tmp_path / "model", "byte_level")
    (model / "config.json").write_text('{"text_config": {"vocab_size": 5000}}')
    config = EngineArgs(str(model), tokenizer=str(other)).create_config()
    tokenizer = load_tokenizer(config.model, model)
    assert tokenizer.bos_token == "<s>"
    assert tokenizer.decode([4999]) == ""


@pytest.mark.parametrize("mode", ["auto", "hf"])
def test_the_usual_modes_read_the_same_tokenizer(tmp_path: Path, mode: str) -> None:
    folder = tiny.write_folder(tmp_path, "byte_level")
    config = EngineArgs(str(folder), tokenizer_mode=mode).create_config()
    assert load_tokenizer(config.model, folder).encode("the quick") == Tokenizer.from_folder(folder).encode("the quick")


def test_a_slow_tokenizer_is_run_by_transformers(tmp_path: Path) -> None:
    from transformers import CTRLTokenizer

    tokens = ["<unk>", "h@@", "e@@", "l@@", "lo", "hel@@", "he@@", "a", "b"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: token_id for token_id, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl o</w>\nhe l\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer", "unk_token": "<unk>"}')
    (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
    config = EngineArgs(str(tmp_path), tokenizer_mode="slow").create_config()
    tokenizer = load_tokenizer(config.model, tmp_path)
    theirs = CTRLTokenizer.from_pretrained(str(tmp_path))
    assert not theirs.is_fast
    assert tokenizer.encode("hello a b") == theirs.encode("hello a b") == [5, 4, 7, 8]
    assert tokenizer.decode([5, 4, 7, 8]) == "hello a b"


def test_a_slow_tokenizer_that_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path, "byte_level")
    config = EngineArgs(str(folder), tokenizer_mode="slow").create_config()
    with pytest.raises(ConfigError, match="no slow tokenizer for this model; possible: auto, hf") as caught:
        load_tokenizer(config.model, folder)
    assert caught.value.field == "tokenizer_mode"


@pytest.mark.parametrize("mode", ["mistral", "deepseek_v32", "deepseek_v4", "fastokens"])
def test_a_mode_that_is_not_here_is_refused_with_those_that_are(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"^tokenizer_mode={mode} .*; possible: auto, hf, slow$") as caught:
        EngineArgs("demo", tokenizer_mode=mode).create_config()
    assert caught.value.field == "tokenizer_mode"
