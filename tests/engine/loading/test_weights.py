"""Weights arrive in their places whatever file they come in; a file that does not fit is refused with its reason."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.engine.models.paged import PagedRun
from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.errors import ConfigError
from vllm_engine.layers.weights import WeightedModule
from vllm_engine.loading.loader import load_model
from vllm_engine.loading.weight_reader import read_tensors
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.linear_weight import LinearWeight

TOKENS = [5, 17, 250, 3, 99, 42]


def load(path: Path, load_format: Any = "auto", dtype: Any = "float32", seed: int = 0) -> CausalLM:
    model_config = ModelConfig(model=str(path), dtype=dtype, max_model_len=64, seed=seed)
    load_config = LoadConfig(load_format=load_format, use_tqdm_on_load=False)
    return load_model(path, load_decoder_config(path, {}), model_config, load_config, "cpu")


def logits(model: CausalLM) -> Tensor:
    return PagedRun(model, 1, max_len=len(TOKENS)).step({0: TOKENS})[0]


def values(model: CausalLM) -> dict[str, Tensor]:
    """All weights, by name: parameters as they are, projections row by row."""
    packed = {
        f"{name}.weight": module.weight.rows(torch.arange(module.weight.out_features))
        for name, module in model.named_modules()
        if isinstance(module, WeightedModule) and isinstance(module.weight, LinearWeight)
    }
    return packed | dict(model.named_parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_model("llama", tmp_path, num_hidden_layers=2)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of ``model.safetensors``."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def split(folder: Path, suffix: str, save: Callable[[dict[str, Tensor], Path], Any], index: str) -> None:
    """Replace ``model.safetensors`` by two shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {f"part-1{suffix}": names[::2], f"part-2{suffix}": names[1::2]}
    for file, part in shards.items():
        save({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_sharded_checkpoint_is_the_same_model_as_a_single_file(folder: Path) -> None:
    expected = logits(load(folder))
    split(folder, ".safetensors", save_file, "model.safetensors.index.json")
    assert torch.equal(logits(load(folder)), expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_is_the_same_model_as_a_safetensors_one(folder: Path, zipped: bool) -> None:
    expected = logits(load(folder))
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits(load(folder)), expected)
    assert torch.equal(logits(load(folder, "pt")), expected)


def test_a_sharded_pytorch_checkpoint_is_the_same_model(folder: Path) -> None:
    expected = logits(load(folder))
    split(folder, ".bin", torch.save, "pytorch_model.bin.index.json")
    assert torch.equal(logits(load(folder)), expected)


def test_safetensors_are_preferred_and_the_format_can_be_forced(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert logits(load(folder)).any()
    assert logits(load(folder, "safetensors")).any()
    assert not logits(load(folder, "pt")).any()


def test_files_beside_the_indexed_shards_are_not_read(folder: Path) -> None:
    expected = logits(load(folder))
    split(folder, ".safetensors", save_file, "model.safetensors.index.json")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights in another layout")
    assert torch.equal(logits(load(folder)), expected)


def test_without_index_all_files_of_the_format_are_read_except_those_of_training(folder: Path) -> None:
    expected = logits(load(folder))
    split(folder, ".bin", torch.save, "pytorch_model.bin.index.json")
    os.remove(folder / "pytorch_model.bin.index.json")
    (folder / "training_args.bin").write_bytes(b"not weights")
    assert torch.equal(logits(load(folder)), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_cast_to_the_chosen_data_type(folder: Path, dtype: str) -> None:
    stored = load_file(folder / "model.safetensors")
    model = load(folder, dtype=dtype)
    assert {str(value.dtype) for value in values(model).values()} == {f"torch.{dtype}"}
    assert str(model.dtype) == f"torch.{dtype}"
    norm = model.get_parameter("model.norm.weight")
    assert torch.equal(norm, stored["model.norm.weight"].to(getattr(torch, dtype)))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_tied_head_shares_the_memory_of_the_embedding_and_ignores_a_stored_copy(tmp_path: Path) -> None:
    make_tiny_model("qwen2", tmp_path)
    expected = logits(load(tmp_path))
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(293, 48)}))
    model = load(tmp_path)
    assert torch.equal(logits(model), expected)
    assert "lm_head.weight" not in values(model)


def test_buffers_that_old_checkpoints_carry_are_ignored(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(folder)


def test_gpt2_and_opt_are_read_with_and_without_the_prefix_of_their_names(tmp_path: Path) -> None:
    for family, prefix in (("gpt2", "transformer."), ("opt", "model.")):
        path = tmp_path / family
        make_tiny_model(family, path)
        expected = logits(load(path))
        tensors = load_file(path / "model.safetensors")
        bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        assert bare.keys() != tensors.keys()
        if family == "gpt2":
            bare |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        save_file(bare, path / "model.safetensors")
        assert torch.equal(logits(load(path)), expected)


@pytest.mark.parametrize("renamed", [False, True])
def test_the_language_model_of_a_multimodal_gemma3_is_loaded_without_its_eyes(tmp_path: Path, renamed: bool) -> None:
    text = make_tiny_model("gemma3", tmp_path / "text")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text.config.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    whole = Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    if renamed:  # as newer versions of transformers may write them
        tensors = load_file(tmp_path / "whole" / "model.safetensors")
        new = {
            "model.language_model." + name.removeprefix("language_model.model.")
            if name.startswith("language_model.model.")
            else name: tensor
            for name, tensor in tensors.items()
        }
        assert new.keys() != tensors.keys()
        save_file(new, tmp_path / "whole" / "model.safetensors")
    assert torch.equal(logits(load(tmp_path / "whole")), logits(load(tmp_path / "text")))


def test_dummy_weights_depend_on_the_seed_alone_and_give_finite_varied_logits(folder: Path) -> None:
    os.remove(folder / "model.safetensors")
    first, again, other = (load(folder, "dummy", seed=seed) for seed in (3, 3, 4))
    weights, others = values(first), values(other)
    for name, weight in values(again).items():
        assert torch.equal(weight, weights[name])
        assert torch.equal(weight, others[name]) == ("norm" in name)
    result = logits(first)
    assert result.isfinite().all()
    assert result.std() > 0.01
    assert weights["lm_head.weight"].abs().max() < 0.1


def test_rows_of_large_dummy_matrices_differ(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, vocab_size=60_000)
    weight = values(load(tmp_path, "dummy"))["lm_head.weight"]
    assert len({tuple(row) for row in weight[:, :2].tolist()}) > 59_000


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(("file", "file_format"), [("model.safetensors", "safetensors"), ("pytorch_model.bin", "pt")])
def test_tensors_are_mapped_from_the_file_instead_of_being_read_into_memory(
    folder: Path, file: str, file_format: Any
) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for stored in read_tensors(folder / file, file_format):
        maps = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split("-") for line in (entry.split()[0] for entry in maps if entry.endswith(file))]
        assert any(int(low, 16) <= stored.tensor.data_ptr() < int(high, 16) for low, high in ranges)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_large_tensor_comes_in_pieces_that_are_let_go_without_harm_to_the_others(tmp_path: Path, file: str) -> None:
    tensors = {"a": torch.randn(999), "b": torch.randn(3001, 1023), "c": torch.randn(7), "d": torch.randn(1001, 1024)}
    (save_file if file.endswith("safetensors") else torch.save)(tensors, tmp_path / file)
    for stored in read_tensors(tmp_path / file, "safetensors" if file.endswith("safetensors") else "pt"):
        pieces = [(start, rows.clone()) for start, rows in stored.pieces()]
        assert (len(pieces) > 1) == (stored.name == "b")
        assert [start for start, _ in pieces] == [sum(len(rows) for _, rows in pieces[:i]) for i in range(len(pieces))]
        assert torch.equal(torch.cat([rows for _, rows in pieces]), tensors[stored.name])
        assert torch.equal(next(stored.pieces(whole=True))[1], tensors[stored.name])  # read again from the file


# ---- files that do not fit ----


def refused(folder: Path, *parts: str, load_format: Any = "auto") -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, load_format)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    refused(folder, "missing model.layers.1.self_attn.k_proj.weight")


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.ones(2)}))
    refused(folder, "not part of the model: model.layers.0.extra.weight")


def test_an_untied_head_must_be_there(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, "missing lm_head.weight")


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(48, 80)}))
    refused(folder, name, "[48, 80]", "[80, 48]")


def test_a_shape_that_only_broadcasts_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(1)}))
    refused(folder, "model.norm.weight", "[1]", "[48]")


def test_integer_weights_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}))
    refused(folder, "model.norm.weight", "int8")


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    split(folder, ".safetensors", save_file, "model.safetensors.index.json")
    tensors = load_file(folder / "part-2.safetensors") | load_file(folder / "part-1.safetensors")
    save_file(tensors, folder / "part-2.safetensors")
    refused(folder, "there twice")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_safetensors_file_is_refused(folder: Path, keep: float) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    file.write_bytes(content[:end])
    refused(folder, "model.safetensors", "damaged")


@pytest.mark.parametrize(
    "offsets",
    [[0, 2**62], [-4, 188], [100, 4], [0, 191]],
    ids=["beyond the file", "negative", "backwards", "too short"],
)
def test_a_safetensors_header_that_lies_about_its_data_is_refused(folder: Path, offsets: list[int]) -> None:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [48], "data_offsets": offsets}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(192))
    refused(folder, "model.safetensors", "damaged")


def test_a_huge_header_length_is_refused_without_allocating_it(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(folder, "model.safetensors", "damaged")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b"])
def test_an_index_may_not_name_files_outside_the_folder(folder: Path, name: str) -> None:
    inside = folder / "model"
    inside.mkdir()
    for file in ("config.json", "model.safetensors"):
        os.rename(folder / file, inside / file)
    os.rename(inside / "model.safetensors", folder / "outside.safetensors")
    names = load_file(folder / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(names, name)}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(inside, "is not a file in the model's folder")


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 3}}']
)
def test_a_broken_index_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, "model.safetensors.index.json")


@pytest.mark.parametrize("file_format", ["safetensors", "pt"])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, file_format: Any) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read .*/gone: No such file or directory$"):
        list(read_tensors(tmp_path / "gone", file_format))


def test_a_missing_shard_is_named(folder: Path) -> None:
    split(folder, ".safetensors", save_file, "model.safetensors.index.json")
    os.remove(folder / "part-2.safetensors")
    refused(folder, "part-2.safetensors, which is missing")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_function_is_refused_and_not_run(folder: Path, zipped: bool) -> None:
    os.remove(folder / "model.safetensors")
    content = {"model.norm.weight": torch.ones(48), "bomb": Bomb(folder / "ran")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(folder, "pytorch_model.bin", "refused", "could run code")
    assert not (folder / "ran").exists()
    # The bomb itself works: the test would notice.
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (folder / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        {"model.norm.weight": [1.0]},
        {"model.norm.weight": torch.ones(48).to_sparse()},
        {3: torch.ones(2)},
    ],
    ids=["a list", "a list of numbers", "a sparse tensor", "a nameless tensor"],
)
def test_a_pytorch_file_of_something_else_is_refused(folder: Path, content: Any) -> None:
    os.remove(folder / "model.safetensors")
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin")


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_truncated_pytorch_file_is_refused(folder: Path, keep: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    refused(folder, "pytorch_model.bin")


@pytest.mark.parametrize(("load_format", "pattern"), [("auto", "*.safetensors or"), ("pt", "*.bin")])
def test_a_folder_without_weights_is_refused_with_what_was_looked_for(
    folder: Path, load_format: str, pattern: str
) -> None:
    os.remove(folder / "model.safetensors")
    refused(folder, "no weight files", pattern, load_format=load_format)


def test_more_positions_than_were_learned_are_refused(tmp_path: Path) -> None:
    make_tiny_model("gpt2", tmp_path, n_positions=32)
    with pytest.raises(ConfigError, match="32 positions") as caught:
        load(tmp_path)
    assert caught.value.field == "max_model_len"
