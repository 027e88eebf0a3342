"""The tokenizer: text to ids and back, from a model's own files, without torch and (nearly always) transformers."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_engine.config import ModelConfig
from vllm_engine.errors import ConfigError, InvalidRequest, shown
from vllm_engine.frontend.backends import FastBackend, SlowBackend, TokenizerBackend
from vllm_engine.frontend.chat_template import render_chat
from vllm_engine.frontend.token_bytes import rules_of
from vllm_engine.frontend.token_decoder import ByteDecoder, ByteTable, TokenDecoder, WindowDecoder
from vllm_engine.frontend.tokenizer_files import TokenizerFiles, read_json_object, read_tokenizer_files
from vllm_engine.logging import get_logger

logger = get_logger(__name__)


def load_tokenizer(
    config: ModelConfig, path: Path, *, download_dir: str | None = None, config_path: Path | None = None
) -> "Tokenizer":
    """The tokenizer that goes with a model.

    Args:
        config: ``tokenizer`` and ``tokenizer_revision`` name another one than the model's; ``tokenizer_mode`` its kind.
        path: folder of the model.
        download_dir: where files from the hub are kept.
        config_path: folder of the ``config.json``, when it is not the model's.

    Raises:
        ConfigError: when there is no tokenizer of that kind, or its files are broken.
    """
    folder = path
    if config.tokenizer is not None or config.tokenizer_revision is not None:
        from vllm_engine.config.model_files import resolve_model

        name = config.model if config.tokenizer is None else config.tokenizer
        folder = resolve_model(
            name,
            revision=config.tokenizer_revision or (config.revision if name == config.model else None),
            download_dir=download_dir,
            token=config.hf_token,
            load_format="dummy",  # a tokenizer has no weights
            setting="tokenizer",
        )
    return Tokenizer.from_folder(
        folder, model_vocab_size=_model_vocab_size(config_path or path), slow=config.tokenizer_mode == "slow"
    )


def _model_vocab_size(path: Path) -> int:
    """Rows of the model's embedding, often more than the tokenizer has tokens; 0 when config.json does not tell."""
    config = read_json_object(path / "config.json")
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        size = part.get("vocab_size")
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**31:
            return size
    return 0


class Tokenizer:
    """Text to token ids and back.

    ``decode`` and ``decoder`` make the same text of the same ids, whole or piece by piece. That text is what the
    tokenizer's own decoder makes of them, with one difference: SentencePiece's byte tokens are read as UTF-8 character
    by character, so that a broken character costs itself and not all other bytes beside it.
    """

    def __init__(self, backend: TokenizerBackend, files: TokenizerFiles, *, model_vocab_size: int = 0) -> None:
        """Use ``Tokenizer.from_folder``. ``model_vocab_size``: ids below it are known to the model at least."""
        self._backend = backend
        self._num_known_ids = max(backend.num_ids, model_vocab_size)
        self.special_tokens_map: Mapping[str, str] = files.special_tokens
        """Name (``eos_token``) -> token, for chat templates."""
        self.chat_templates: Mapping[str, str] = files.chat_templates
        """Chat templates by name; the usual one is ``default``."""
        self._rules = rules_of(backend.decoder_json)
        self._tables: dict[bool, ByteTable] = {}
        self._extra_bos = self._missing_bos() if files.add_bos_token else []

    @classmethod
    def from_folder(cls, folder: Path, *, model_vocab_size: int = 0, slow: bool = False) -> "Tokenizer":
        """Read a tokenizer's folder.

        Without a ``tokenizer.json``, transformers builds the tokenizer from the older files; it runs no code of the
        folder. With ``slow`` it does so in any case, and the tokenizer must be one that transformers runs in Python.

        Raises:
            ConfigError: when the files are broken, there are none, or there is no slow tokenizer.
        """
        files = read_tokenizer_files(folder)
        special = [*files.special_tokens.values(), *files.extra_special_tokens]
        path = folder / "tokenizer.json"
        backend: TokenizerBackend
        if path.is_file() and not slow:
            backend = FastBackend.from_file(path, special, files.added_tokens)
        else:
            backend = _from_transformers(folder)
        if slow and isinstance(backend, FastBackend):
            raise ConfigError(
                "tokenizer_mode=slow cannot be honoured: transformers has no slow tokenizer for this model; possible: "
                "auto, hf",
                field="tokenizer_mode",
            )
        if not backend.encode(["a"], add_special_tokens=False)[0]:
            # transformers makes a tokenizer without a vocabulary of a folder without tokenizer files.
            raise ConfigError(f"{folder} has no tokenizer: a text has no tokens there", field="tokenizer")
        return cls(backend, files, model_vocab_size=model_vocab_size)

    def _missing_bos(self) -> list[int]:
        """The beginning-of-sequence id, when the tokenizer is told to put it in front but its own rules do not."""
        bos = self.bos_token_id
        return [] if bos is None or bos in self._backend.encode(["a"], add_special_tokens=True)[0] else [bos]

    # ---- vocabulary ----

    @property
    def vocab_size(self) -> int:
        """Highest token id plus one, added tokens included."""
        return self._backend.num_ids

    def __len__(self) -> int:
        return self._backend.num_ids

    @property
    def all_special_ids(self) -> frozenset[int]:
        """Ids that ``skip_special_tokens`` leaves out."""
        return self._backend.special_ids

    @property
    def bos_token(self) -> str | None:
        """The beginning-of-sequence token."""
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The end-of-sequence token."""
        return self.special_tokens_map.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        """The padding token."""
        return self.special_tokens_map.get("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token."""
        return self._id_of(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token."""
        return self._id_of(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token."""
        return self._id_of(self.pad_token)

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it; None for an unknown one."""
        return self._backend.token_to_id(token)

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them (``Ġhello``, ``▁hello``); empty for ids that only the model has.

        Raises:
            InvalidRequest: for ids that nobody knows.
        """
        self._check_ids(token_ids)
        return [self._backend.id_to_token(token_id) or "" for token_id in token_ids]

    # ---- text to ids ----

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Other threads run meanwhile.

        Raises:
            InvalidRequest: for what is no valid text.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text, on all cores."""
        for text in texts:
            if not isinstance(text, str):
                raise InvalidRequest(f"a text is expected, got a {type(text).__name__}", field="prompt")
        batch = self._backend.encode(texts, add_special_tokens=add_special_tokens)
        if self._extra_bos and add_special_tokens:
            return [self._extra_bos + token_ids for token_ids in batch]
        return batch

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text of ``n`` characters has at least ``n / longest_token`` tokens."""
        tokens = (self._backend.id_to_token(token_id) for token_id in range(self._backend.num_ids))
        return max((len(token) for token in tokens if token is not None), default=1)

    # ---- ids to text ----

    def decode(self, token_ids: Sequence[int] | int, skip_special_tokens: bool = True) -> str:
        """Text of ids, read from the beginning of a text.

        Raises:
            InvalidRequest: for ids that neither the tokenizer nor the model knows.
        """
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        self._check_ids(ids)
        table = self._table(skip_special_tokens)
        if table is not None:
            return table.decode(ids)
        known = [token_id for token_id in ids if token_id < self._backend.num_ids]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def decoder(
        self,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> TokenDecoder:
        """A decoder for the ids that follow a prompt, one at a time. Unknown ids have no text.

        ``spaces_between_special_tokens=False`` leaves out the spaces that some tokenizers' decoders (WordPiece) put
        between neighbouring special tokens; byte-level and SentencePiece decoders put none.
        """
        table = self._table(skip_special_tokens)
        if table is not None:
            return ByteDecoder(table, prompt_token_ids)
        return WindowDecoder(
            self._backend,
            prompt_token_ids,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token by itself, perhaps only a part of a character; empty for an unknown id."""
        table = self._table(False)
        if table is not None:
            return table[token_id]
        if self._backend.id_to_token(token_id) is None:
            return b""
        return self._backend.decode([token_id], skip_special_tokens=False).encode()

    def token_text(self, token_id: int) -> str:
        r"""One token as text for people: special tokens by their name, bytes of a part of a character as ``\xe2``."""
        return self.token_bytes(token_id).decode("utf-8", "backslashreplace")

    def _table(self, skip_special_tokens: bool) -> ByteTable | None:
        if self._rules is None:
            return None
        table = self._tables.get(skip_special_tokens)
        if table is None:
            table = ByteTable(self._backend, self._rules, skip_special_tokens=skip_special_tokens)
            self._tables[skip_special_tokens] = table
        return table

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < self._num_known_ids:
                raise InvalidRequest(
                    f"token ids are integers from 0 to {self._num_known_ids - 1}, got {shown(token_id)}",
                    field="tokens",
                )

    # ---- chat ----

    @property
    def chat_template(self) -> str | None:
        """The usual chat template."""
        return self.chat_templates.get("default")

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **kwargs: Any,
    ) -> list[int] | str:
        """The conversation as the model was trained to read it: ids, or the text with ``tokenize=False``.

        See ``frontend.chat_template.render_chat``.
        """
        text = render_chat(
            self,
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            **kwargs,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text


def _from_transformers(folder: Path) -> TokenizerBackend:
    """A tokenizer that transformers makes, from files older than ``tokenizer.json`` too."""
    logger.info("loading the tokenizer through transformers")
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ConfigError(
            f"no tokenizer in {folder.name}: transformers cannot make one from its files ({type(error).__name__})",
            field="tokenizer",
        ) from error
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return SlowBackend(tokenizer) if fast is None else FastBackend(fast, tokenizer.all_special_tokens)
