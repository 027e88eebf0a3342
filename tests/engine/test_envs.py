"""Environment variables are read when asked for; what cannot be read, is unknown or has no effect is told by name."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from vllm_engine import LLM, EngineArgs, SamplingParams, envs
from vllm_engine.core.clients.base import AsyncClient
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.metrics.batch_sizes import BatchSizeLog
from vllm_kernels import backend

# The names of the product's documentation.
DOCUMENTED = """
VLLM_TARGET_DEVICE MAX_JOBS NVCC_THREADS VLLM_USE_PRECOMPILED VLLM_TEST_USE_PRECOMPILED_NIGHTLY_WHEEL
CMAKE_BUILD_TYPE VERBOSE VLLM_CONFIG_ROOT VLLM_CACHE_ROOT VLLM_HOST_IP VLLM_PORT VLLM_RPC_BASE_PATH
VLLM_USE_MODELSCOPE VLLM_RINGBUFFER_WARNING_INTERVAL CUDA_HOME VLLM_NCCL_SO_PATH LD_LIBRARY_PATH
VLLM_USE_TRITON_FLASH_ATTN VLLM_FLASH_ATTN_VERSION VLLM_TEST_DYNAMO_FULLGRAPH_CAPTURE LOCAL_RANK
CUDA_VISIBLE_DEVICES VLLM_ENGINE_ITERATION_TIMEOUT_S VLLM_API_KEY S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY
S3_ENDPOINT_URL VLLM_USAGE_STATS_SERVER VLLM_NO_USAGE_STATS VLLM_DO_NOT_TRACK VLLM_USAGE_SOURCE
VLLM_CONFIGURE_LOGGING VLLM_LOGGING_CONFIG_PATH VLLM_LOGGING_LEVEL VLLM_LOGGING_PREFIX VLLM_LOGITS_PROCESSOR_THREADS
VLLM_TRACE_FUNCTION VLLM_ATTENTION_BACKEND VLLM_USE_FLASHINFER_SAMPLER VLLM_FLASHINFER_FORCE_TENSOR_CORES
VLLM_PP_LAYER_PARTITION VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND VLLM_CPU_MOE_PREPACK VLLM_OPENVINO_DEVICE
VLLM_OPENVINO_KVCACHE_SPACE VLLM_OPENVINO_CPU_KV_CACHE_PRECISION VLLM_OPENVINO_ENABLE_QUANTIZED_WEIGHTS
VLLM_USE_RAY_SPMD_WORKER VLLM_USE_RAY_COMPILED_DAG VLLM_USE_RAY_COMPILED_DAG_NCCL_CHANNEL
VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM VLLM_WORKER_MULTIPROC_METHOD VLLM_ASSETS_CACHE VLLM_IMAGE_FETCH_TIMEOUT
VLLM_VIDEO_FETCH_TIMEOUT VLLM_AUDIO_FETCH_TIMEOUT VLLM_MM_INPUT_CACHE_GIB VLLM_XLA_CACHE_PATH
VLLM_XLA_CHECK_RECOMPILATION VLLM_FUSED_MOE_CHUNK_SIZE VLLM_NO_DEPRECATION_WARNING VLLM_KEEP_ALIVE_ON_ENGINE_DEATH
VLLM_ALLOW_LONG_MAX_MODEL_LEN VLLM_TEST_FORCE_FP8_MARLIN VLLM_TEST_FORCE_LOAD_FORMAT VLLM_RPC_TIMEOUT VLLM_PLUGINS
VLLM_TORCH_PROFILER_DIR VLLM_USE_TRITON_AWQ VLLM_ALLOW_RUNTIME_LORA_UPDATING VLLM_SKIP_P2P_CHECK
VLLM_DISABLED_KERNELS VLLM_USE_V1 VLLM_ROCM_FP8_PADDING Q_SCALE_CONSTANT K_SCALE_CONSTANT V_SCALE_CONSTANT
VLLM_ENABLE_V1_MULTIPROCESSING VLLM_LOG_BATCHSIZE_INTERVAL VLLM_SERVER_DEV_MODE VLLM_V1_OUTPUT_PROC_CHUNK_SIZE
VLLM_MLA_DISABLE VLLM_ENABLE_MOE_ALIGN_BLOCK_SIZE_TRITON VLLM_RAY_PER_WORKER_GPUS VLLM_RAY_BUNDLE_INDICES
VLLM_CUDART_SO_PATH VLLM_USE_HPU_CONTIGUOUS_CACHE_FETCH VLLM_DP_RANK VLLM_DP_SIZE VLLM_DP_MASTER_IP
VLLM_DP_MASTER_PORT VLLM_CI_USE_S3 VLLM_MARLIN_USE_ATOMIC_ADD VLLM_V0_USE_OUTLINES_CACHE
VLLM_TPU_DISABLE_TOPK_TOPP_OPTIMIZATION HUGGING_FACE_HUB_TOKEN HF_TOKEN HF_HUB_OFFLINE
""".split()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VLLM_"):
            monkeypatch.delenv(name)


# ---- the table ----


def test_every_documented_variable_is_known() -> None:
    assert not set(DOCUMENTED) - envs.VARIABLES.keys()
    assert len(DOCUMENTED) == 96 + 3  # three that examples use, and the table does not list


def test_every_variable_has_a_meaning_and_one_state() -> None:
    for name, variable in envs.VARIABLES.items():
        assert variable.meaning and variable.kind.words, name
        assert not (variable.no_effect and variable.read_by), name


def test_every_variable_with_an_effect_is_read_somewhere() -> None:
    packages = Path(__file__).parents[2] / "packages"
    sources = "".join(
        path.read_text() for path in packages.rglob("*.py") if path.name not in ("env_table.py", "envs.py")
    )
    unread = [
        name
        for name, variable in envs.VARIABLES.items()
        if variable.no_effect is None and variable.read_by is None and f'"{name}"' not in sources
    ]
    assert unread == []


def test_the_faces_are_those_of_the_kernels() -> None:
    assert envs.VARIABLES["VLLM_KERNELS_FACE"].kind.words == " or ".join(backend.FACES)
    for face in backend.FACES:
        assert envs.VARIABLES["VLLM_KERNELS_FACE"].kind.parse(face) == face


# ---- reading ----


def test_an_unset_or_empty_variable_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (None, "", " "):
        for name, variable in envs.VARIABLES.items():
            if text is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, text)
            assert envs.get(name) == variable.default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("VLLM_LOGGING_LEVEL", "debug", "DEBUG"),
        ("VLLM_CPU_KVCACHE_SPACE", "1.5", 1.5),
        ("VLLM_CHECK_INVARIANTS", "1", True),
        ("VLLM_CHECK_INVARIANTS", "off", False),
        ("VLLM_LOG_BATCHSIZE_INTERVAL", "2.5", 2.5),
        ("VLLM_LOG_BATCHSIZE_INTERVAL", "-1", None),
        ("VLLM_RPC_TIMEOUT", "10000", 10000),
        ("VLLM_PLUGINS", "one, two,", ["one", "two"]),
        ("VLLM_LOGGING_PREFIX", "[engine] ", "[engine] "),
        ("VLLM_KERNELS_FACE", "reference", "reference"),
    ],
)
def test_a_set_variable_is_read_at_the_moment_of_asking(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert envs.get(name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_LOGGING_LEVEL", "loud"),
        ("VLLM_CPU_KVCACHE_SPACE", "much"),
        ("VLLM_CPU_KVCACHE_SPACE", "-1"),
        ("VLLM_CPU_KVCACHE_SPACE", "nan"),
        ("VLLM_CHECK_INVARIANTS", "maybe"),
        ("VLLM_RPC_TIMEOUT", "0"),
        ("VLLM_RPC_TIMEOUT", "1.5"),
        ("VLLM_LOG_BATCHSIZE_INTERVAL", "inf"),
        ("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "0"),
        ("VLLM_KERNELS_FACE", "fast"),
        ("VLLM_USE_V1", "x" * 5000),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_the_name(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    for reader in (lambda: envs.get(name), EngineArgs("demo").create_config):
        with pytest.raises(ConfigError, match=f"{name}=.* expected {envs.VARIABLES[name].kind.words}") as caught:
            reader()
        assert caught.value.field == name
        assert len(str(caught.value)) < 300


# ---- the look at the whole environment ----


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "VLLM_LOGING_LEVEL",
            "INFO",
            "unknown environment variable VLLM_LOGING_LEVEL; did you mean VLLM_LOGGING_LEVEL?",
        ),
        ("VLLM_QQQQQQQQ", "1", "unknown environment variable VLLM_QQQQQQQQ"),
        ("VLLM_FOO", "1", "unknown environment variable VLLM_FOO"),
        ("VLLM_USE_RAY_SPMD_WORKER", "1", "VLLM_USE_RAY_SPMD_WORKER has no effect: this version does not use Ray"),
        (
            "VLLM_USE_MODELSCOPE",
            "true",
            "VLLM_USE_MODELSCOPE has no effect: models come from a folder or from the Hug",
        ),
        ("VLLM_PORT", "5000", "VLLM_PORT has no effect: this version runs on one device"),
        ("K_SCALE_CONSTANT", "100", "K_SCALE_CONSTANT has no effect"),
    ],
)
def test_what_does_not_do_what_it_says_is_a_warning_or_an_error_as_asked(
    name: str, text: str, sentence: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, text)
    with caplog.at_level(logging.WARNING):
        EngineArgs("demo").create_config()
    (line,) = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert sentence in line
    assert ("did you mean" in line) == ("did you mean" in sentence)
    with pytest.raises(ConfigError, match="fail_on_environ_validation") as caught:
        EngineArgs("demo", fail_on_environ_validation=True).create_config()
    assert sentence in str(caught.value)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_LOGGING_LEVEL", "WARNING"),
        ("VLLM_USE_V1", "1"),
        ("VLLM_USE_MODELSCOPE", "0"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_DO_NOT_TRACK", "1"),
        ("VLLM_TARGET_DEVICE", "cpu"),
        ("VLLM_DP_SIZE", "1"),
        ("VLLM_CACHE_ROOT", ""),
        ("CUDA_HOME", "/opt/cuda"),
        ("VERBOSE", "maybe"),
        ("MY_VLLM_THING", "1"),
        # What Kubernetes sets in every container for services named "vllm" and "vllm-chat".
        ("VLLM_PORT", "tcp://10.0.0.7:80"),
        ("VLLM_SERVICE_HOST", "10.0.0.7"),
        ("VLLM_CHAT_SERVICE_PORT_HTTP", "80"),
        ("VLLM_CHAT_PORT", "tcp://10.0.0.8:80"),
        ("VLLM_CHAT_PORT_80_TCP_ADDR", "10.0.0.8"),
    ],
)
def test_what_is_so_anyway_or_belongs_to_others_is_no_problem(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert envs.validate() == []
    EngineArgs("demo", fail_on_environ_validation=True).create_config()


def test_the_command_line_ends_with_code_2_and_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGING_LEVEL", "INFO")
    done = subprocess.run(
        [sys.executable, "-m", "vllm_cli", "serve", "demo", "--fail-on-environ-validation", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--fail-on-environ-validation: unknown environment variable VLLM_LOGING_LEVEL" in done.stderr


# ---- effects ----


def test_the_load_format_of_tests_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_TEST_FORCE_LOAD_FORMAT", "dummy")
    assert EngineArgs("demo").create_config().load.load_format == "dummy"
    assert EngineArgs("demo", load_format="safetensors").create_config().load.load_format == "dummy"


def test_warnings_about_old_settings_can_be_silenced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for text, expected in (("0", ["--rope-theta"]), ("1", [])):
        monkeypatch.setenv("VLLM_NO_DEPRECATION_WARNING", text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            args = EngineArgs("demo", rope_theta=1e4)
        assert [record.getMessage().split()[0] for record in caplog.records] == expected
        assert args.options["hf_overrides"] == {"rope_theta": 1e4}


def test_batch_sizes_are_logged_after_each_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    log = BatchSizeLog(10.0, clock=lambda: now)
    with caplog.at_level(logging.INFO):
        for seconds, tokens in ((1, 8), (2, 1), (3, 1), (10, 2), (15, 4), (20, 4)):
            now = 100.0 + seconds
            log.on_step(tokens)
    assert [record.getMessage() for record in caplog.records] == [
        "batch sizes of 4 steps in 10.0 s, as tokens x steps: 1 x 2, 2 x 1, 8 x 1",
        "batch sizes of 2 steps in 10.0 s, as tokens x steps: 4 x 2",
    ]


class SilentClient(AsyncClient):
    """Takes everything and answers nothing."""

    def _send(self, message: Any) -> None:
        pass

    async def start(self) -> Any:
        raise NotImplementedError

    def cpu_seconds(self) -> None:
        pass

    async def stacks(self) -> str:
        return ""

    def _ask_to_end(self) -> None:
        pass

    def _wait_for_end(self) -> None:
        pass

    def _clean_up(self) -> None:
        pass


async def test_a_control_call_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RPC_TIMEOUT", "20")
    client = SilentClient(EngineArgs("demo").create_config(), Path("demo"))
    with pytest.raises(RuntimeError, match=r"no answer to reset_prefix_cache in 20 ms \(VLLM_RPC_TIMEOUT\)"):
        await client.call("reset_prefix_cache")


# ---- the engine of ``LLM`` in a process ----

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="rpc-") as folder:
        yield Path(folder)


def test_an_engine_in_a_process_gives_the_same_and_warns_once(
    tmp_path: Path,
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_tiny_model("qwen3", tmp_path)
    make_tiny_tokenizer(tmp_path)
    options = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 2**24, "use_tqdm_on_load": False}
    prompts = ["hello there", "once upon a time"]

    def texts(llm: LLM) -> list[str]:
        return [output.outputs[0].text for output in llm.generate(prompts, GREEDY, use_tqdm=False)]

    monkeypatch.setenv("VLLM_LOG_BATCHSIZE_INTERVAL", "0.0001")
    with LLM(str(tmp_path), **options) as llm, caplog.at_level(logging.INFO):
        expected = texts(llm)
    monkeypatch.delenv("VLLM_LOG_BATCHSIZE_INTERVAL")
    assert "as tokens x steps: 2 x 1" in caplog.text  # one token for each of two requests, after their prompts
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(short_folder))
    monkeypatch.setenv("VLLM_USE_RAY_SPMD_WORKER", "1")
    capfd.readouterr()
    llm = LLM(str(tmp_path), **options)
    try:
        (meeting_place,) = short_folder.iterdir()
        assert meeting_place.stat().st_mode & 0o777 == 0o700
        assert texts(llm) == expected
        assert texts(llm) == expected
    finally:
        llm.close()
    llm.close()
    assert list(short_folder.iterdir()) == []
    with pytest.raises(EngineDead):
        texts(llm)
    assert caplog.text.count("VLLM_USE_RAY_SPMD_WORKER has no effect") == 1
    log_of_the_process = capfd.readouterr().err
    assert "start-up: weights took" in log_of_the_process
    assert "VLLM_USE_RAY_SPMD_WORKER" not in log_of_the_process


def test_a_folder_that_is_not_there_is_told_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    for folder in (tmp_path / "missing", tmp_path / ("long" * 30)):
        monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(folder))
        if "long" in folder.name:
            folder.mkdir()
        with pytest.raises(ConfigError, match="set VLLM_RPC_BASE_PATH") as caught:
            LLM("demo")
        assert caught.value.field == "VLLM_RPC_BASE_PATH"
