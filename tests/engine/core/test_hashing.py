"""Names of KV blocks: the documented bytes, written down here by other means, and what sharing follows from them."""

import hashlib
import struct

import pytest

from vllm_engine.config import EngineArgs
from vllm_engine.core.kv_cache.hashing import BlockHashes, block_hasher

from .harness import Harness, engine_request, expected_output

ALGORITHMS = ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"]


def head(major: int, value: int) -> bytes:
    """The head of a CBOR item: RFC 8949, section 3, shortest form."""
    for limit, info, form in (
        (24, value, ""),
        (2**8, 24, ">B"),
        (2**16, 25, ">H"),
        (2**32, 26, ">I"),
        (2**64, 27, ">Q"),
    ):
        if value < limit:
            return bytes([major << 5 | info]) + (struct.pack(form, value) if form else b"")
    raise ValueError(value)


def documented_bytes(parent: bytes, token_ids: list[int], salt: str | None) -> bytes:
    """What the documentation says is hashed."""
    item = head(4, 3) + head(2, len(parent)) + parent
    item += head(4, len(token_ids)) + b"".join(head(0, token_id) for token_id in token_ids)
    if salt is None:
        return item + b"\xf6"
    return item + head(4, 1) + head(2, len(salt.encode())) + salt.encode()


def names(algorithm: str, token_ids: list[int], salt: str | None = None, block_size: int = 4) -> list[bytes]:
    return BlockHashes(block_hasher(algorithm), block_size, salt).upto(token_ids, len(token_ids) // block_size)


@pytest.mark.parametrize("salt", [None, "", "salt", "ключ" * 100])
def test_the_cbor_names_are_the_documented_ones(salt: str | None) -> None:
    tokens = [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 1, 2, 3] + [7] * 300
    for block_size in (1, 4, 300):
        parent, expected = b"", []
        for start in range(0, len(tokens) // block_size * block_size, block_size):
            block = tokens[start : start + block_size]
            parent = hashlib.sha256(documented_bytes(parent, block, None if start else salt)).digest()
            expected.append(parent)
        assert names("sha256_cbor", tokens, salt, block_size) == expected


def test_the_plain_names_hash_the_name_before_and_64_bit_ids() -> None:
    root = hashlib.sha256(b"vllm-engine kv block v1").digest()
    first = hashlib.sha256(root + struct.pack("=4q", 1, 2, 300, 2**40)).digest()
    assert names("sha256", [1, 2, 300, 2**40, 5, 6, 7, 8]) == [
        first,
        hashlib.sha256(first + struct.pack("=4q", 5, 6, 7, 8)).digest(),
    ]


def test_xxhash_is_xxh3_of_128_bits_in_its_canonical_form() -> None:
    """Of the reference implementation's own check: no bytes, seed 0."""
    from vllm_engine.core.kv_cache import hashing

    assert hashing._xxh3_128()(b"").hex() == "99aa06d3014798d86001c324468d497f"
    (name,) = names("xxhash_cbor", [1, 2, 3, 300])
    assert name == hashing._xxh3_128()(documented_bytes(b"", [1, 2, 3, 300], None)) and len(name) == 16


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_name_depends_on_every_token_before_it_and_on_the_salt(algorithm: str) -> None:
    base = names(algorithm, [*range(12)])
    for position in range(12):
        other = names(algorithm, [99 if i == position else i for i in range(12)])
        assert [a == b for a, b in zip(base, other, strict=True)] == [block < position // 4 for block in range(3)]
    for salt in ("", "a", "b"):
        assert not set(base) & set(names(algorithm, [*range(12)], salt))
    assert not set(names(algorithm, [*range(12)], "a")) & set(names(algorithm, [*range(12)], "b"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_prefixes_are_found_by_every_algorithm_and_never_under_another_salt(algorithm: str) -> None:
    harness = Harness(hash_algo=algorithm)
    for name, salt in (("a1", "a"), ("b", "b"), ("none", None), ("a2", "a")):
        harness.scheduler.add(engine_request(name, [*range(17)], 3, salt=salt))
        harness.run()
    cached = {name: updates[0].num_cached_tokens for name, updates in harness.updates.items()}
    assert cached == {"a1": 0, "b": 0, "none": 0, "a2": 16}
    assert harness.output("a2") == expected_output([*range(17)], 3)


def test_the_old_name_of_the_default_is_still_understood() -> None:
    assert EngineArgs(prefix_caching_hash_algo="builtin").create_config().cache.prefix_caching_hash_algo == "sha256"
