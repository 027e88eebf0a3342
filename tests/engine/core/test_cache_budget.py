"""How many bytes the KV cache gets: by settings, environment and the memory of the machine."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config import EngineArgs
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.core.kv_cache.budget import CacheBudget, cache_budget
from vllm_engine.core.limits import EngineLimits, resolve_limits
from vllm_engine.errors import ConfigError
from vllm_engine.execution.executor import LoadedModel
from vllm_engine.execution.memory import DeviceMemory, main_memory
from vllm_engine.kv_layout import LayerKVSpec

pytestmark = pytest.mark.cpu_only

GIB = 2**30
SPEC = LayerKVSpec(2, 16, "bfloat16")
TOKEN = SPEC.bytes_per_token


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def budget(memory: DeviceMemory, needed: int = 0, **options: Any) -> CacheBudget:
    return cache_budget(EngineArgs("demo", **options).create_config().cache, memory, needed=needed)


@pytest.mark.parametrize(
    ("utilization", "expected", "setting"),
    [
        (0.92, 4 * GIB, "kv_cache_memory_bytes"),  # half of the free 8, as 0.92 * 16 - 8 is more
        (0.75, 4 * GIB, "kv_cache_memory_bytes"),  # 12 - 8: as much
        (0.625, 2 * GIB, "gpu_memory_utilization"),  # 10 - 8
    ],
)
def test_utilization_bounds_what_is_in_use_with_the_cache_full(utilization: float, expected: int, setting: str) -> None:
    found = budget(DeviceMemory(16 * GIB, 8 * GIB), gpu_memory_utilization=utilization)
    assert (found.num_bytes, found.setting) == (expected, setting)


def test_bytes_win_over_the_environment_and_that_over_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    full = DeviceMemory(16 * GIB, GIB)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.5")
    found = budget(full, gpu_memory_utilization=0.1)
    assert (found.num_bytes, found.setting) == (GIB // 2, "VLLM_CPU_KVCACHE_SPACE")
    found = budget(full, gpu_memory_utilization=0.1, kv_cache_memory_bytes=12345)
    assert (found.num_bytes, found.setting) == (12345, "kv_cache_memory_bytes")


def test_a_number_of_blocks_wins_over_utilization() -> None:
    budget(DeviceMemory(16 * GIB, GIB), gpu_memory_utilization=0.1, num_gpu_blocks_override=16)


def test_where_nothing_is_left_the_error_adds_up_and_names_a_value_that_works() -> None:
    memory = DeviceMemory(16 * GIB, 8 * GIB, weights=3 * GIB)
    with pytest.raises(ConfigError) as caught:
        budget(memory, needed=GIB, gpu_memory_utilization=0.5)
    assert caught.value.field == "gpu_memory_utilization"
    message = str(caught.value)
    assert "8.00 GiB of 16.00 GiB" in message
    assert "8.00 GiB are in use, 3.00 GiB of them by the weights" in message
    assert "; 0.57 is enough for one request" in message
    assert budget(memory, gpu_memory_utilization=0.57).num_bytes >= GIB
    with pytest.raises(ConfigError):
        budget(memory, needed=GIB, gpu_memory_utilization=0.49)


@pytest.mark.parametrize(
    ("needed", "way_out"), [(5 * GIB, f"kv_cache_memory_bytes={5 * GIB} is enough"), (9 * GIB, "lower max_model_len")]
)
def test_where_no_utilization_is_enough_another_way_is_named(needed: int, way_out: str) -> None:
    with pytest.raises(ConfigError, match=way_out):
        budget(DeviceMemory(16 * GIB, 8 * GIB), needed=needed, gpu_memory_utilization=0.5)


def limits(memory: DeviceMemory, longest: int = 64, **options: Any) -> EngineLimits:
    config = EngineArgs("demo", **options).create_config()
    return resolve_limits(config, LoadedModel(vocab_size=10, max_model_len=longest, kv_specs=[SPEC]), memory)


def test_the_log_says_how_the_size_came_about(caplog: pytest.LogCaptureFixture) -> None:
    memory = DeviceMemory(16 * GIB, 8 * GIB)
    with caplog.at_level(logging.INFO, logger="vllm_engine"):
        limits(memory, 10**6)
        limits(memory, 10**6, gpu_memory_utilization=0.625)
        limits(memory)
        limits(memory, num_gpu_blocks_override=7)
        limits(memory, kv_cache_memory_bytes=16 * TOKEN * 10)
    sizes = [message for message in caplog.messages if message.startswith("KV cache: ") and "blocks of" not in message]
    for message, part in zip(
        sizes,
        [
            "4.00 GiB (half of the 8.00 GiB that are free)",
            "2.00 GiB (gpu_memory_utilization 0.625 of 16.00 GiB, less the 8.00 GiB that are in use)",
            "all that 256 requests of full length can use",
            "as num_gpu_blocks_override says",
            "as kv_cache_memory_bytes says",
        ],
        strict=True,
    ):
        assert part in message


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"gpu_memory_utilization": 0.50001}, "gpu_memory_utilization"),
        ({"kv_cache_memory_bytes": 17 * 16 * TOKEN}, "kv_cache_memory_bytes"),
    ],
)
def test_a_cache_too_small_names_the_setting_that_made_it_so(options: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"\(or to auto\), or raise {setting}") as caught:
        limits(DeviceMemory(16 * GIB, 8 * GIB), 10**6, **options)
    assert caught.value.field == setting


def test_an_automatic_length_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise kv_cache_memory_bytes"):
        limits(DeviceMemory(16 * GIB, 8 * GIB), max_model_len=-1, kv_cache_memory_bytes=1)


def test_an_engine_takes_its_share_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    machine = SimpleNamespace(total=4 * GIB, available=2 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)

    def core(**options: Any) -> EngineCore:
        return EngineCore(EngineArgs(str(tmp_path), max_num_seqs=2**14, **options).create_config(), tmp_path)

    block_bytes = 16 * LayerKVSpec(3, 8, "bfloat16").bytes_per_token
    used = 4 * GIB - main_memory().free
    assert core(gpu_memory_utilization=0.501).ready.num_kv_blocks == (int(0.501 * 4 * GIB) - used) // block_bytes
    with pytest.raises(ConfigError, match="leaves nothing for the KV cache") as caught:
        core(gpu_memory_utilization=0.4)
    enough = float(str(caught.value).split("; ")[1].split()[0])
    assert core(gpu_memory_utilization=enough).ready.num_kv_blocks > 512 // 16


def test_a_container_has_its_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8000, available=7000))
    assert main_memory(cgroup=tmp_path) == DeviceMemory(8000, 7000)
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory(cgroup=tmp_path) == DeviceMemory(8000, 7000)
    (tmp_path / "memory.max").write_text("1000\n")
    assert main_memory(cgroup=tmp_path) == DeviceMemory(1000, 100)
    (tmp_path / "memory.stat").write_text("anon 300\nfile 600\ninactive_file 500\nactive_file 100\n")
    assert main_memory(cgroup=tmp_path, weights=5) == DeviceMemory(1000, 600, 5)
    assert main_memory(cgroup=tmp_path).used == 400
