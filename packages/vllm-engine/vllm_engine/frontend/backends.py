"""The two libraries that can hold a tokenizer, behind one small face."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vllm_engine.config.lfs_pointer import refuse_pointer
from vllm_engine.errors import ConfigError, InvalidRequest


class TokenizerBackend(Protocol):
    """What the engine needs of a tokenizer library."""

    num_ids: int
    """Highest token id plus one."""
    special_ids: frozenset[int]
    """Ids that ``skip_special_tokens`` leaves out."""
    added_ids: frozenset[int]
    """Ids of tokens added to the model's vocabulary, the special ones included."""
    decoder_json: bytes | None
    """The decoder as JSON of the ``tokenizers`` library, when there is one."""

    def encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, all of them below ``num_ids``."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an unknown id."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None for an unknown token."""
        ...


class FastBackend:
    """A tokenizer of the ``tokenizers`` library."""

    def __init__(
        self, tokenizer: Any, special_tokens: Sequence[str] = (), added_tokens: dict[int, Any] | None = None
    ) -> None:
        """Take over a ``tokenizers.Tokenizer``.

        Args:
            tokenizer: the library's object.
            special_tokens: tokens that must count as special (``eos_token`` and the like).
            added_tokens: id -> ``{"content": ..., "special": ...}`` from ``tokenizer_config.json``.
        """
        # A tokenizer.json may carry settings of its training: they would cut or pad prompts silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _add_missing(tokenizer, special_tokens, added_tokens or {})
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.num_ids = max(tokenizer.get_vocab_size(), max(added, default=-1) + 1)
        self.decoder_json: bytes | None = None if tokenizer.decoder is None else tokenizer.decoder.__getstate__()

    @classmethod
    def from_file(
        cls, path: Path, special_tokens: Sequence[str] = (), added_tokens: dict[int, Any] | None = None
    ) -> "FastBackend":
        """Read a ``tokenizer.json``. Raises ``ConfigError`` when the library cannot."""
        import tokenizers

        try:
            refuse_pointer(path, "tokenizer")
            return cls(tokenizers.Tokenizer.from_file(str(path)), special_tokens, added_tokens)
        except ConfigError:
            raise
        except BaseException as error:  # the library panics on some broken files, outside of Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ConfigError(f"{path.name} is not a tokenizer that can be read: {error}", field="tokenizer") from error

    def encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text. Other Python threads run meanwhile."""
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except Exception as error:
            raise InvalidRequest("the text cannot be tokenized: it is no valid Unicode", field="prompt") from error
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids; unknown ids are left out."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an unknown id."""
        token: str | None = self._tokenizer.id_to_token(token_id) if 0 <= token_id < self.num_ids else None
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token; None for an unknown one."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id


def _add_missing(tokenizer: Any, special_tokens: Sequence[str], added_tokens: dict[int, Any]) -> None:
    """Tell the library of tokens that only the configuration files know, and which tokens are special."""
    from tokenizers import AddedToken

    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token_id, entry in sorted(added_tokens.items()):
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or content in known:
            continue
        options = {
            name: entry[name]
            for name in ("lstrip", "rstrip", "single_word", "normalized")
            if isinstance(entry.get(name), bool)
        }
        token = AddedToken(content, special=bool(entry.get("special")), **options)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(content) != token_id:
            raise ConfigError(
                f"tokenizer_config.json gives token {content!r} the id {token_id}, "
                f"but in tokenizer.json it is {tokenizer.token_to_id(content)}",
                field="tokenizer",
            )
        known[content] = token
    missing = [token for token in special_tokens if token not in known or not known[token].special]
    if missing:
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(missing)]
        )


class SlowBackend:
    """A tokenizer that ``transformers`` runs in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.added_ids = frozenset(tokenizer.added_tokens_decoder)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.num_ids = max(len(tokenizer), max(self.added_ids, default=-1) + 1)
        self.decoder_json: bytes | None = None

    def encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""
        try:
            return [self._tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        except Exception as error:
            raise InvalidRequest("the text cannot be tokenized: it is no valid Unicode", field="prompt") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids; unknown ids are left out."""
        known = [token_id for token_id in token_ids if self.id_to_token(token_id) is not None]
        text: str = self._tokenizer.decode(
            known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an unknown id."""
        if not 0 <= token_id < self.num_ids:
            return None
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token; None for an unknown one."""
        token_id: int | None = self._tokenizer.convert_tokens_to_ids(token)
        return None if token_id is None or self._tokenizer.convert_ids_to_tokens(token_id) != token else token_id
