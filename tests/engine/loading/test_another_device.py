"""Weights go to the device piece by piece and stay: on ``meta``, which computes nothing and mixes with no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config import EngineArgs
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.layers.weights import RowsSlot, TensorSlot
from vllm_engine.loading.loader import load_model
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.backend import use_face

FAMILIES = ["qwen3", "gemma3", "gpt2", "opt"]
"""With tied embeddings, several rotary tables, transposed weights, and learned positions."""


def loaded(family: str, path: Path, device: str, **options: Any) -> CausalLM:
    make_tiny_model(family, path)
    config = EngineArgs(str(path), **options).create_config()
    return load_model(path, load_decoder_config(path, {}), config.model, config.load, device)


def tensors_in(thing: object, seen: set[int], path: str = "model") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors that an object holds, with where."""
    if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type, torch.dtype, torch.device)):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield path, thing
        return
    held: dict[Any, object] = dict(thing) if isinstance(thing, dict) else dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, (list, tuple)):
        held = dict(enumerate(thing))
    for slot in getattr(thing, "__slots__", ()):
        held[slot] = getattr(thing, slot, None)
    for name, value in held.items():
        yield from tensors_in(value, seen, f"{path}.{name}")


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4", "fp8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_model_is_elsewhere(
    family: str, quantization: str | None, load_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    came: set[str] = set()
    for slot in (TensorSlot, RowsSlot):

        def fill(self: Any, rows: torch.Tensor, start: int = 0, real: Any = slot.fill) -> None:
            came.add(rows.device.type)
            real(self, rows, start)

        monkeypatch.setattr(slot, "fill", fill)
    with use_face("triton"):
        model = loaded(family, tmp_path, "meta", quantization=quantization, load_format=load_format)
    elsewhere = [path for path, tensor in tensors_in(model, set()) if tensor.device.type != "meta"]
    assert elsewhere == []
    assert came == (set() if load_format == "dummy" else {"meta"}), "pieces are converted on the device"


@pytest.mark.gpu
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4", "fp8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_holds_the_same_weights(family: str, quantization: str | None, load_format: str, tmp_path: Path) -> None:
    with use_face("triton" if quantization else "reference"):
        there = loaded(family, tmp_path, "cuda", quantization=quantization, load_format=load_format)
    with use_face("reference"):
        here = loaded(family, tmp_path, "cpu", quantization=quantization, load_format=load_format)
    pairs = zip(there.linear_weights(), here.linear_weights(), strict=True)
    for one, other in pairs:
        ids = torch.arange(one.out_features)
        torch.testing.assert_close(one.rows(ids.cuda()).cpu().float(), other.rows(ids).float(), rtol=0.02, atol=2e-3)
    for (name, one), (_, other) in zip(there.named_parameters(), here.named_parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other, msg=name)
