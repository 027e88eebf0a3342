"""What every model offers to the engine and to the loader."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm_engine.config.decoder import DecoderConfig
from vllm_engine.kv_layout import LayerKVSpec
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.layers.embedding import Embedding, GivenEmbeds, LMHead
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.rotary import Rotary
from vllm_engine.layers.weights import Slot, TensorSlot, WeightedModule, WeightFormat
from vllm_engine.messages import EmbedsDtype, EmbedsSpec
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.linear_weight import LinearWeight

_DTYPES: dict[torch.dtype, EmbedsDtype] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}


class CausalLM(TensorModule):
    """A decoder-only language model.

    Modules are named as in the checkpoints of the family. Where those names vary, ``renamed_prefixes`` maps an old
    beginning of a name to ours; ``ignored_weights`` are patterns of tensors that a checkpoint may hold and the model
    does not use.
    """

    renamed_prefixes: ClassVar[dict[str, str]] = {}
    ignored_weights: ClassVar[tuple[str, ...]] = ()

    lm_head: LMHead
    dtype: torch.dtype
    """Of parameters and activations; known once they are allocated."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def embedding(self) -> Embedding:
        """The token embedding."""

    @abstractmethod
    def decode(self, x: Tensor, positions: Tensor, ctx: AttentionContext) -> Tensor:
        """From the output of the token embedding ``[T, embedding size]`` to what ``forward`` returns."""

    def forward(
        self, input_ids: Tensor, positions: Tensor, ctx: AttentionContext, given: GivenEmbeds | None = None
    ) -> Tensor:
        """One step over the tokens of all sequences, side by side without padding.

        Args:
            input_ids: int64 ``[T]``.
            positions: int64 ``[T]``, the place of each token in its sequence.
            ctx: where the tokens' keys and values are; the step's own are written there.
            given: embeddings that stand in for those of some tokens, whose ids are mere placeholders.

        Returns:
            Hidden states after the last norm, ``[T, H]`` in the weights' data type.
        """
        return self.decode(self.embed(input_ids, given), positions, ctx)

    def embed(self, input_ids: Tensor, given: GivenEmbeds | None = None) -> Tensor:
        """What ``forward`` begins with: int64 ``[T]`` -> ``[T, embedding size]``, a new tensor."""
        x = self.embedding(input_ids)
        if given is not None:
            x[given.places] = given.rows
        return x

    def embeds_spec(self) -> EmbedsSpec:
        """What a row of ``GivenEmbeds`` is. It is the output of the embedding: where that is scaled, so is the row."""
        return EmbedsSpec(self.embedding.size, _DTYPES[self.dtype])

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[R, H]`` of the rows that need logits -> float32 logits ``[R, vocab_size]``."""
        return self.lm_head(hidden)

    def fit_positions(self, max_len: int) -> None:
        """Serve sequences of at most ``max_len`` tokens from now on, as if the model had been built for that."""
        for module in self.modules():
            if isinstance(module, Rotary):
                module.fit(max_len)

    def kv_specs(self, cache_formats: Sequence[CacheFormat]) -> list[LayerKVSpec]:
        """What each layer keeps in the KV cache, in the order of the layers, as are the formats."""
        config = self.config
        return [
            LayerKVSpec(config.num_kv_heads, config.head_dim, cache_format, config.layer_window(index))
            for index, cache_format in enumerate(cache_formats)
        ]

    def allocate(self, weight_format: WeightFormat) -> None:
        """Make all weights, which have only had their shapes so far. They are filled through ``checkpoint_slots``."""
        self.dtype = weight_format.dtype
        for module in self.modules():
            if isinstance(module, WeightedModule):
                module.allocate(weight_format)
            for name, parameter in module.named_parameters(recurse=False):
                real = torch.empty(parameter.shape, dtype=weight_format.dtype, device=weight_format.device)
                setattr(module, name, nn.Parameter(real, requires_grad=False))

    def linear_weights(self) -> list[LinearWeight]:
        """The weights that are no parameters."""
        weights = (module.weight for module in self.modules() if isinstance(module, WeightedModule))
        return [weight for weight in weights if isinstance(weight, LinearWeight)]

    def weight_tensors(self) -> list[Tensor]:
        """The memory of all weights, each tensor once."""
        tensors = [tensor for weight in self.linear_weights() for tensor in weight.tensors()]
        return tensors + [parameter.data for parameter in self.parameters()]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight_tensors()[0].device

    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.weight_tensors())

    def checkpoint_slots(self) -> dict[str, Slot]:
        """Every tensor that a checkpoint must hold, by its name there, with the place that it fills."""
        slots: dict[str, Slot] = {}
        for name, module in self.named_modules():
            if isinstance(module, WeightedModule):
                slots.update(module.slots(name))
            else:
                own = module.named_parameters(prefix=name, recurse=False)
                slots.update((key, TensorSlot(parameter.data)) for key, parameter in own)
        return slots

    def checkpoint_name(self, name: str) -> str:
        """Our name of a tensor that a checkpoint calls ``name``."""
        for old, new in self.renamed_prefixes.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def ignores(self, name: str) -> bool:
        """Whether a tensor that is not in ``checkpoint_slots`` may stand in a checkpoint all the same."""
        tied_head = self.config.tie_word_embeddings and name == "lm_head.weight"
        return tied_head or any(re.search(pattern, name) for pattern in self.ignored_weights)
