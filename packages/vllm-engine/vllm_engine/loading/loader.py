"""From a model folder to a model that can run."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm

from vllm_engine import envs
from vllm_engine.config.decoder import DecoderConfig, resolve_dtype
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.errors import ConfigError
from vllm_engine.layers.weights import Quantization, Slot, WeightFormat
from vllm_engine.loading.dummy import fill_with_random_weights
from vllm_engine.loading.prefetch import read_ahead
from vllm_engine.loading.stored_tensor import StoredTensor
from vllm_engine.loading.weight_files import find_weight_files
from vllm_engine.loading.weight_reader import read_tensors
from vllm_engine.logging import get_logger
from vllm_engine.models.causal_lm import CausalLM
from vllm_engine.models.registry import build_model
from vllm_kernels.transfers import upload

logger = get_logger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_NAMES_SHOWN = 8


def load_model(
    path: Path,
    decoder_config: DecoderConfig,
    model_config: ModelConfig,
    load_config: LoadConfig,
    device: torch.device | str,
) -> CausalLM:
    """Build the model and fill it from the weight files in ``path``, cast to the chosen data type or quantised.

    ``model_config`` decides the data type (``dtype``), the ``quantization``, the longest sequence (``max_model_len``)
    and the ``seed`` of dummy weights. Weights go from the files to their final layout piece by piece, so memory stays
    near the size of the model.

    Raises:
        ConfigError: weights that are missing, damaged, of the wrong shape, there twice, or not part of the model; the
            message names tensor and file.
    """
    device = torch.device(device)
    weight_format = WeightFormat(
        _DTYPES[resolve_dtype(model_config.dtype, decoder_config)],
        device,
        quantization=cast(Quantization | None, model_config.quantization),
        int4_activation_bits=8 if device.type == "cpu" and envs.get("VLLM_CPU_INT4_W4A8") else None,
    )
    model = build_model(decoder_config, weight_format, max_len=model_config.max_model_len)
    fill_weights(model, path, model_config, load_config)
    return model


def fill_weights(model: CausalLM, path: Path, model_config: ModelConfig, load_config: LoadConfig) -> None:
    """Fill every weight of ``model``, whatever it held. Arguments and errors: ``load_model``."""
    if load_config.format == "dummy":
        fill_with_random_weights(model, model_config.seed)
    else:
        load_weights(model, path, load_config)


def load_weights(model: CausalLM, path: Path, config: LoadConfig) -> None:
    """Fill every weight of ``model`` exactly once from the weight files in ``path``. Errors: ``load_model``."""
    file_format, files = find_weight_files(path, config.format, config.ignore_patterns)
    strategy = config.safetensors_load_strategy
    if strategy is not None and file_format != "safetensors":
        logger.warning("safetensors_load_strategy=%s has no effect: the weights are PyTorch files", strategy)
        strategy = None
    ahead: AbstractContextManager[None] = nullcontext()
    if strategy == "prefetch":
        ahead = read_ahead(
            files,
            num_threads=config.safetensors_prefetch_num_threads,
            block_size=config.safetensors_prefetch_block_size,
        )
    shown = tqdm(files, desc="Loading weights", unit="file", disable=None if config.use_tqdm_on_load else True)
    with ahead:
        _fill(model, path, ((file, read_tensors(file, file_format, eager=strategy == "eager")) for file in shown))


@torch.no_grad()
def _fill(model: CausalLM, path: Path, contents: Iterable[tuple[Path, Iterable[StoredTensor]]]) -> None:
    slots = model.checkpoint_slots()
    device = model.device
    missing = dict.fromkeys(slots)
    unexpected: list[str] = []
    for file, tensors in contents:
        for stored in tensors:
            name = model.checkpoint_name(stored.name)
            slot = slots.get(name)
            if slot is None:
                if not model.ignores(name):
                    unexpected.append(stored.name)
                continue
            if name not in missing:
                raise ConfigError(f"{file}: tensor {stored.name} is there twice", field="model")
            _check(stored, slot, file)
            for start, rows in stored.pieces(whole=not slot.divisible):
                slot.fill(upload(rows, device), start)  # first: what becomes of it there is the device's work
            del missing[name]
    if missing or unexpected:
        complaints = [f"missing {_some(list(missing))}"] if missing else []
        complaints += [f"not part of the model: {_some(unexpected)}"] if unexpected else []
        raise ConfigError(
            f"the weights in {path} do not fit {model.config.architecture}: {'; '.join(complaints)}", field="model"
        )


def _check(stored: StoredTensor, slot: Slot, file: Path) -> None:
    shape, dtype = stored.tensor.shape, stored.tensor.dtype
    if shape != slot.shape:
        raise ConfigError(
            f"{file}: tensor {stored.name} has shape {list(shape)}, but config.json asks for {list(slot.shape)}",
            field="model",
        )
    if not dtype.is_floating_point:
        raise ConfigError(f"{file}: tensor {stored.name} is {dtype}, not floating point", field="model")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
