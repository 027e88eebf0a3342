"""Names for the content of KV blocks: a hash over the block's tokens and the name of the block before it.

The chain makes a block's name depend on every token before it and on the request's cache salt, so that two
prompts share blocks only where they agree from the very first token, under the same salt.

``prefix_caching_hash_algo`` chooses the hash and what is hashed:

=============== ============= ===============================================================
algorithm       name          hashed bytes
=============== ============= ===============================================================
``sha256``      32 bytes      the name of the block before it, then its token ids, each as a
                              signed 64-bit integer in the machine's byte order
``sha256_cbor`` 32 bytes      canonical CBOR, below
``xxhash``      16 bytes      as ``sha256``
``xxhash_cbor`` 16 bytes      canonical CBOR, below
=============== ============= ===============================================================

The name that a chain of ``sha256`` or ``xxhash`` starts from is the hash of ``vllm-engine kv block v1``, followed by
``salt:`` and the UTF-8 bytes of the salt for a request that has one. This is an affair of one process.

The ``cbor`` names can be computed by any program in any language. What is hashed is one item of RFC 8949 in its core
deterministic encoding (definite lengths, each integer and each length in its shortest form): an array of three,

1. the name of the block before it, a byte string; empty for the first block of a prompt;
2. the block's token ids, an array of ``block_size`` unsigned integers;
3. for the first block of a request with a cache salt, an array of one byte string, the salt in UTF-8; else null.

Tokens 1, 2, 300 without a salt are ``83 40 83 01 02 19 01 2c f6``. ``xxhash`` is XXH3 of 128 bits with seed 0; its
name is the canonical, big-endian form of the value.

XXH3 is made for speed. It is not collision-resistant: who can choose prompts may be able to construct two that share a
name, and a request that meets a foreign block computes with another prompt's keys and values. Where users do not trust
one another, take sha256, or give each of them a secret ``cache_salt``, which keeps the names that others use unknown.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_engine.errors import ConfigError

BlockHash = bytes

_ROOT = b"vllm-engine kv block v1"

Digest = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class BlockHasher:
    """Names blocks. ``first(salt, token_ids)`` is the name of a prompt's first block, ``following(parent, token_ids)``
    of any other one; ``token_ids`` are those of the block.
    """

    first: Callable[[str | None, Sequence[int]], BlockHash]
    following: Callable[[BlockHash, Sequence[int]], BlockHash]


def block_hasher(algorithm: str) -> BlockHasher:
    """The hasher of a value of ``prefix_caching_hash_algo``.

    Raises:
        ConfigError: when a library that it needs is not installed.
    """
    digest = _xxh3_128() if algorithm.startswith("xxhash") else _sha256
    return _cbor_hasher(digest) if algorithm.endswith("_cbor") else _plain_hasher(digest)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _xxh3_128() -> Digest:
    try:
        from xxhash import xxh3_128_digest
    except ImportError as error:
        raise _missing("xxhash") from error
    return xxh3_128_digest


def _plain_hasher(digest: Digest) -> BlockHasher:
    def following(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
        return digest(parent + array("q", token_ids).tobytes())

    def first(salt: str | None, token_ids: Sequence[int]) -> BlockHash:
        return following(digest(_ROOT if salt is None else _ROOT + b"salt:" + _salt_bytes(salt)), token_ids)

    return BlockHasher(first, following)


def _cbor_hasher(digest: Digest) -> BlockHasher:
    try:
        from cbor2 import dumps
    except ImportError as error:
        raise _missing("cbor2") from error

    def name(parent: BlockHash, token_ids: Sequence[int], extra: Any) -> BlockHash:
        return digest(dumps([parent, list(token_ids), extra], canonical=True))

    return BlockHasher(
        first=lambda salt, token_ids: name(b"", token_ids, None if salt is None else [_salt_bytes(salt)]),
        following=lambda parent, token_ids: name(parent, token_ids, None),
    )


def _salt_bytes(salt: str) -> bytes:
    return salt.encode("utf-8", "surrogatepass")


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"this prefix_caching_hash_algo needs the package {package}, which is not installed; sha256 needs none",
        field="prefix_caching_hash_algo",
    )


class BlockHashes:
    """The names of a request's full blocks, computed once each as the request grows."""

    __slots__ = ("_block_size", "_hasher", "_names", "_salt")

    def __init__(self, hasher: BlockHasher, block_size: int, cache_salt: str | None) -> None:
        self._hasher = hasher
        self._block_size = block_size
        self._salt = cache_salt
        self._names: list[BlockHash] = []

    def upto(self, token_ids: Sequence[int], num_blocks: int) -> list[BlockHash]:
        """Names of at least the first ``num_blocks`` blocks of ``token_ids``, which only ever grows."""
        size = self._block_size
        for index in range(len(self._names), num_blocks):
            block = token_ids[index * size : (index + 1) * size]
            name = self._hasher.following(self._names[-1], block) if index else self._hasher.first(self._salt, block)
            self._names.append(name)
        return self._names
