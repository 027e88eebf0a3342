"""Names for the content of KV blocks: sha256 over the block's tokens and the name of the block before it.

The chain makes a block's name depend on every token before it and on the request's cache salt, so that two
prompts share blocks only where they agree from the very first token, under the same salt.
"""

import hashlib
from array import array
from collections.abc import Sequence

BlockHash = bytes

_ROOT = b"vllm-engine kv block v1"


def root_hash(cache_salt: str | None) -> BlockHash:
    """Start of a request's chain. Requests with different salts share nothing; no salt is a salt of its own."""
    digest = hashlib.sha256(_ROOT)
    if cache_salt is not None:
        digest.update(b"salt:" + cache_salt.encode("utf-8", "surrogatepass"))
    return digest.digest()


def chain_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Name of a full block: sha256(parent name, token ids as 64-bit integers)."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


class BlockHashes:
    """The names of a request's full blocks, computed once each as the request grows."""

    def __init__(self, block_size: int, cache_salt: str | None) -> None:
        self._block_size = block_size
        self._root = root_hash(cache_salt)
        self._names: list[BlockHash] = []

    def upto(self, token_ids: Sequence[int], num_blocks: int) -> list[BlockHash]:
        """Names of at least the first ``num_blocks`` blocks of ``token_ids``, which only ever grows."""
        size = self._block_size
        for index in range(len(self._names), num_blocks):
            parent = self._names[-1] if self._names else self._root
            self._names.append(chain_hash(parent, token_ids[index * size : (index + 1) * size]))
        return self._names
