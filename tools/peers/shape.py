"""The sizes of the model that everyone runs."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model with tied embeddings; the defaults are those of the 0.6B one."""

    layers: int = 28
    hidden: int = 1024
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    ffn: int = 3072
    vocabulary: int = 151_936

    @property
    def name(self) -> str:
        """For folders: two shapes never share one."""
        return f"qwen3-{self.layers}x{self.hidden}-{self.vocabulary}"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name in the checkpoint -> shape."""
        tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            tensors |= {
                f"model.layers.{layer}.{name}.weight": shape
                for name, shape in (
                    ("input_layernorm", (self.hidden,)),
                    ("self_attn.q_proj", (query, self.hidden)),
                    ("self_attn.k_proj", (key, self.hidden)),
                    ("self_attn.v_proj", (key, self.hidden)),
                    ("self_attn.q_norm", (self.head_dim,)),
                    ("self_attn.k_norm", (self.head_dim,)),
                    ("self_attn.o_proj", (self.hidden, query)),
                    ("post_attention_layernorm", (self.hidden,)),
                    ("mlp.gate_proj", (self.ffn, self.hidden)),
                    ("mlp.up_proj", (self.ffn, self.hidden)),
                    ("mlp.down_proj", (self.hidden, self.ffn)),
                )
            }
        return {**tensors, "model.norm.weight": (self.hidden,)}

    @property
    def weight_bytes(self) -> int:
        """Of all weights in bf16: what a decode step reads, as the embedding is the LM head too."""
        return 2 * sum(math.prod(shape) for shape in self.tensors().values())

    @property
    def kv_bytes_per_token(self) -> int:
        """Of keys and values of all layers in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim
