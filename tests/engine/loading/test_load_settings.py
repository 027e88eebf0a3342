"""How weights and configuration are read follows the settings; what cannot be read is refused before any weight is."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.loading.test_weights import TOKENS, split
from tests.engine.models.paged import PagedRun
from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from vllm_engine.config import EngineArgs
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.config.model_plan import plan_model
from vllm_engine.errors import ConfigError
from vllm_engine.frontend.engine_frontend import ModelFrontend, resolve_model_path
from vllm_engine.loading import loader, prefetch, weight_reader
from vllm_engine.loading.loader import load_model
from vllm_engine.loading.prefetch import read_ahead
from vllm_engine.models.causal_lm import CausalLM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_model("llama", tmp_path / "model", num_hidden_layers=1)
    return tmp_path / "model"


def load(folder: Path, **options: Any) -> CausalLM:
    model_config = ModelConfig(model=str(folder), dtype="float32", max_model_len=64)
    config = LoadConfig(**({"use_tqdm_on_load": False} | options))
    return load_model(folder, load_decoder_config(folder), model_config, config, "cpu")


def logits(model: CausalLM) -> torch.Tensor:
    return PagedRun(model, 1, max_len=len(TOKENS)).step({0: TOKENS})[0]


def resolve(folder: Path, **options: Any) -> Path:
    return resolve_model_path(EngineArgs(str(folder), **options).create_config())


# ---- formats ----


@pytest.mark.parametrize("load_format", ["AUTO", "hf", "SafeTensors"])
def test_formats_are_taken_in_any_case(folder: Path, load_format: str) -> None:
    assert resolve(folder, load_format=load_format) == folder
    assert torch.equal(logits(load(folder, load_format=load_format)), logits(load(folder)))


DOCUMENTED = """
bitsandbytes fastsafetensors gguf instanttensor ipc_cache mistral modelexpress npcache runai_streamer
runai_streamer_sharded sharded_state tensorizer
""".split()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_format_that_is_not_read_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^load_format={name} cannot be honoured: .*; possible: auto, hf") as caught:
        EngineArgs("demo", load_format=name).create_config()
    assert caught.value.field == "load_format"


@pytest.mark.parametrize(
    ("name", "near"), [("safetensor", "safetensors"), ("PTH", "pt"), ("dumy", "dummy"), ("tensorize", "tensorizer")]
)
def test_an_unknown_format_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not known; possible: .*; did you mean {near}\?$"):
        EngineArgs("demo", load_format=name).create_config()


# ---- strategies ----


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """File, position and size of every read ahead."""
    found: list[tuple[str, int, int]] = []
    real = prefetch._read

    def record(file: Path, start: int, buffer: bytearray) -> None:
        found.append((file.name, start, len(buffer)))
        real(file, start, buffer)

    monkeypatch.setattr(prefetch, "_read", record)
    return found


def test_every_strategy_gives_the_same_model(folder: Path, reads: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(load(folder))
    split(folder, ".safetensors", save_file, "model.safetensors.index.json")
    mapped, whole = [], []
    monkeypatch.setattr(weight_reader, "safe_open", recorded(weight_reader.safe_open, mapped))
    monkeypatch.setattr(weight_reader, "load", recorded(weight_reader.load, whole))
    for strategy, how in ((None, mapped), ("lazy", mapped), ("eager", whole), ("prefetch", mapped)):
        mapped.clear()
        whole.clear()
        assert torch.equal(logits(load(folder, safetensors_load_strategy=strategy)), expected)
        assert len(how) == 2 and len(mapped) + len(whole) == 2
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.safetensors")}
    assert {name for name, _, _ in reads} <= sizes.keys()


def recorded(function: Any, calls: list[Any]) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return function(*args, **options)

    return call


@pytest.mark.parametrize(("num_threads", "block_size"), [(1, 1000), (3, 256), (2, 2**40)])
def test_reading_ahead_reads_all_of_every_file_in_blocks(
    tmp_path: Path, reads: list[tuple[str, int, int]], num_threads: int, block_size: int
) -> None:
    files = [tmp_path / name for name in ("a", "b", "empty")]
    for file, size in zip(files, (2500, 999, 0), strict=True):
        file.write_bytes(bytes(size))
    with read_ahead(files, num_threads=num_threads, block_size=block_size):
        while len(reads) < sum(-(-file.stat().st_size // block_size) for file in files):
            pass
    step = min(block_size, 2500)
    expected = {("a", start, step) for start in range(0, 2500, step)} | {
        ("b", start, step) for start in range(0, 999, step)
    }
    assert set(reads) == expected and len(reads) == len(expected)


def test_the_settings_reach_the_reader_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    settings = {"safetensors_prefetch_num_threads": 3, "safetensors_prefetch_block_size": 4096}

    def record(files: list[Path], **options: int) -> Any:
        calls.append(([file.name for file in files], options))
        return read_ahead(files, **options)

    monkeypatch.setattr(loader, "read_ahead", record)
    load(folder, safetensors_load_strategy="lazy", **settings)
    assert not calls
    load(folder, safetensors_load_strategy="prefetch", **settings)
    assert calls == [(["model.safetensors"], {"num_threads": 3, "block_size": 4096})]


def test_reading_ahead_ends_when_loading_fails(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged" * 1000)
    with pytest.raises(ConfigError, match="damaged or no safetensors file"):
        load(folder, safetensors_load_strategy="prefetch", safetensors_prefetch_block_size=1)
    with pytest.raises(ConfigError, match="damaged or no safetensors file"):
        load(folder, safetensors_load_strategy="eager")


def test_a_strategy_for_other_files_is_told_to_be_idle(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    load(folder, safetensors_load_strategy="prefetch")
    assert "safetensors_load_strategy=prefetch has no effect" in caplog.text


@pytest.mark.parametrize(("shown", "disable"), [(True, None), (False, True)])
def test_a_progress_bar_is_shown_or_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shown: bool, disable: bool | None
) -> None:
    bars: list[Any] = []

    def bar(files: list[Path], **options: Any) -> Iterator[Path]:
        bars.append((len(files), options["disable"]))
        return iter(files)

    monkeypatch.setattr(loader, "tqdm", bar)
    load(folder, use_tqdm_on_load=shown)
    assert bars == [(1, disable)]  # None lets tqdm see whether anyone looks


# ---- files ----


@pytest.mark.parametrize("pattern", ["*.safetensors", "model.safetensors", "model*"])
def test_weights_in_a_folder_that_fit_a_pattern_are_left_out(folder: Path, pattern: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert not torch.equal(logits(load(folder, ignore_patterns=[pattern])), logits(load(folder)))
    assert torch.equal(logits(load(folder, ignore_patterns=[pattern])), logits(load(folder, load_format="pt")))


def test_patterns_that_leave_nothing_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"beside those that ignore_patterns leaves out: \*\.safetensors") as caught:
        resolve(folder, ignore_patterns=["*.safetensors"])
    assert caught.value.field == "ignore_patterns"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: os.remove(folder / "model.safetensors"),
        lambda folder: os.remove(folder / "config.json"),
        lambda folder: change(folder, architectures=["MambaForCausalLM"]),
        lambda folder: change(folder, quantization_config={"quant_method": "gptq"}),
        lambda folder: (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}'),
        lambda folder: (folder / "quantize_config.json").write_text('{"bits": 4}'),
    ],
    ids=["no weights", "no configuration", "architecture", "quantised", "modelopt", "old gptq"],
)
def test_the_faults_of_a_folder_are_found_before_an_engine_starts(folder: Path, spoil: Any) -> None:
    spoil(folder)
    with pytest.raises(ConfigError):
        resolve(folder)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"hf_overrides": {"num_hidden_layers": -1}}, "hf_overrides"),
        ({"hf_overrides": {"colour": "red"}}, "hf_overrides"),
        ({"hf_config_path": "/nowhere/at/all"}, "hf_config_path"),
        ({"load_format": "pt"}, "load_format"),
    ],
)
def test_settings_that_a_model_cannot_meet_are_found_before_an_engine_starts(
    folder: Path, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(folder, **options)
    assert caught.value.field == field


def change(folder: Path, **values: Any) -> None:
    """Change keys of ``config.json``."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_a_file_of_a_quantiser_that_says_nothing_is_no_fault(folder: Path, name: str) -> None:
    (folder / name).write_text('{"quantization": {}}' if name.startswith("hf") else "{}")
    resolve(folder)


@pytest.mark.parametrize("method", ["fp8_e5m2", "awq", "bitsandbytes", "never-heard-of"])
def test_a_quantisation_method_is_refused(method: str) -> None:
    message = rf"^quantization={method} cannot be honoured: .*; possible: unset, int8, int4, fp8$"
    with pytest.raises(ConfigError, match=message) as caught:
        EngineArgs("demo", quantization=method).create_config()
    assert caught.value.field == "quantization"


def test_what_is_quantised_already_is_not_quantised_again(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "awq"})
    with pytest.raises(ConfigError, match=r"quantised with awq.*possible: .*--quantization int8, int4 or fp8"):
        resolve(folder, quantization="int8")


# ---- the configuration of another place ----


def test_another_config_json_describes_the_model(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(folder / "config.json", other / "config.json")
    os.remove(folder / "generation_config.json")
    change(other, rms_norm_eps=0.5, eos_token_id=[7, 9], vocab_size=500)
    make_tiny_tokenizer(folder)
    config = EngineArgs(str(folder), hf_config_path=str(other), load_format="dummy").create_config()
    assert resolve_model_path(config) == folder
    plan = plan_model(config, folder)
    assert (plan.decoder.norm_eps, plan.decoder.vocab_size) == (0.5, 500)
    frontend = ModelFrontend.load(config, folder)
    assert frontend.generation.eos_token_ids == (7, 9)
    assert frontend.tokenizer is not None and frontend.tokenizer.decode([499]) == ""


def test_a_config_path_without_config_json_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^hf_config_path .* has no config\.json") as caught:
        resolve(folder, hf_config_path=str(tmp_path))
    assert caught.value.field == "hf_config_path"


def test_an_overridden_end_of_sequence_counts_where_no_generation_config_has_one(folder: Path) -> None:
    def ends(**options: Any) -> tuple[int, ...]:
        config = EngineArgs(str(folder), skip_tokenizer_init=True, **options).create_config()
        return ModelFrontend.load(config, folder).generation.eos_token_ids

    assert ends(hf_overrides={"eos_token_id": 7}) == (2,)  # the model's generation_config.json has one
    os.remove(folder / "generation_config.json")
    assert ends(hf_overrides={"eos_token_id": 7}) == (7,)
    assert ends() == (2,)


# ---- the hub ----


class Hub:
    """Stands in for ``snapshot_download``: every name is a folder beside the others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, **settings: Any) -> str:
        self.asked.setdefault(name, settings)
        return str(self.root / name.split("/")[1])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    double = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", double)
    return double


def test_everything_from_the_hub_comes_with_its_revision_cache_and_token(folder: Path, hub: Hub) -> None:
    make_tiny_tokenizer(hub.root / "words")
    shutil.copytree(folder, hub.root / "shape")
    config = EngineArgs(
        "our/model",
        revision="v1",
        tokenizer="our/words",
        tokenizer_revision="v2",
        hf_config_path="our/shape",
        download_dir="/cache",
        hf_token=True,
    ).create_config()
    path = resolve_model_path(config)
    ModelFrontend.load(config, path)
    assert {name: asked["revision"] for name, asked in hub.asked.items()} == {
        "our/model": "v1",
        "our/words": "v2",
        "our/shape": None,
    }
    assert all(asked["cache_dir"] == "/cache" and asked["token"] is True for asked in hub.asked.values())


@pytest.mark.parametrize(
    ("options", "revision"),
    [
        ({"tokenizer_revision": "v2"}, "v2"),
        ({"tokenizer": "our/model", "revision": "v1"}, "v1"),
        ({"tokenizer": "our/model", "revision": "v1", "tokenizer_revision": "v2"}, "v2"),
    ],
)
def test_a_tokenizer_of_the_models_repository_has_its_revision_or_its_own(
    folder: Path, hub: Hub, options: dict[str, Any], revision: str
) -> None:
    make_tiny_tokenizer(folder)
    ModelFrontend.load(EngineArgs("our/model", **options).create_config(), folder)
    assert hub.asked["our/model"]["revision"] == revision


def test_a_revision_of_a_folder_is_told_to_be_idle(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolve(folder, revision="main")
    assert f"revision main has no effect: model {folder} is a folder" in caplog.text


def test_a_tokenizer_that_is_not_there_is_named(folder: Path) -> None:
    config = EngineArgs(str(folder), tokenizer="/nowhere/at/all").create_config()
    with pytest.raises(ConfigError, match=r"^tokenizer folder /nowhere/at/all does not exist") as caught:
        ModelFrontend.load(config, folder)
    assert caught.value.field == "tokenizer"
