"""The environment variables that this product knows: one entry each. ``envs`` reads them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_CORES = 65536
"""More than any machine has: a list of cores with a digit too many must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of value: what it takes in words, and how it is read (``ValueError`` for what it cannot read)."""

    words: str
    parse: Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One variable.

    ``default`` is what holds when it is unset; for a variable without effect, what this version does anyway.
    ``no_effect`` says why it changes nothing here, ``read_by`` which other program it belongs to; one that has
    neither takes effect.
    """

    kind: Kind
    default: Any
    meaning: str
    no_effect: str | None = None
    read_by: str | None = None


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError("neither yes nor no")


def _log_level(text: str) -> str:
    level = text.strip().upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise ValueError("no level")
    return level


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = text.strip()
        if word not in words:
            raise ValueError("no such word")
        return word

    return parse


def _at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < low:
            raise ValueError("too small")
        return number

    return parse


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("out of range")
    return number


def _seconds_or_off(text: str) -> float | None:
    number = float(text)
    if not -math.inf < number < math.inf:
        raise ValueError("out of range")
    return number if number > 0 else None


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _cores(text: str) -> str | list[list[int]]:
    """``auto``, ``nobind``, or the cores of each worker, in order."""
    word = text.strip()
    if word in ("auto", "nobind"):
        return word
    if word == "all":  # an earlier word for the same
        return "nobind"
    return [[core for part in cores.split(",") for core in _core_range(part)] for cores in word.split("|")]


def _core_range(text: str) -> range:
    low, dash, high = (part.strip() for part in text.partition("-"))
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise ValueError("no core")
    found = range(int(low), int(high or low) + 1)
    if not found or found[-1] >= _MOST_CORES:
        raise ValueError("no such cores")
    return found


YES_NO = Kind("0 or 1", _boolean)
TEXT = Kind("any text", str)
FOLDER = Kind("a path", str)
LEVEL = Kind("DEBUG, INFO, WARNING, ERROR or CRITICAL", _log_level)
FACE = Kind("reference or eager or cpu or triton", _one_of("reference", "eager", "cpu", "triton"))
CPU_LEVEL = Kind("avx2 or avx512 or avx512_bf16 or amx", _one_of("avx2", "avx512", "avx512_bf16", "amx"))
DEVICE = Kind("cpu or cuda", _one_of("cpu", "cuda"))
COUNT = Kind("a whole number of at least 1", _at_least(1))
NUMBER = Kind("a whole number of at least 0", _at_least(0))
AMOUNT = Kind("a number above 0", _positive)
INTERVAL = Kind("a number of seconds; 0 or less turns it off", _seconds_or_off)
CORES = Kind("auto, nobind, or cores such as 0-7 or 0,2,4-7, with | between workers", _cores)
NAMES = Kind("names with commas between", _names)

_BUILD = "the wheels are built without it"
_ONE_DEVICE = "this version runs on one device of one machine"
_ONE_PATH = "there is one engine, and it is neither V0 nor V1"
_OWN_KERNELS = "this version has kernels of its own for a GPU, and chooses among them"
_NO_RAY = "this version does not use Ray"
_NO_OPENVINO = "this version does not use OpenVINO"
_NO_XLA = "this version does not run on TPUs"
_NO_EXPERTS = "this version has no mixture-of-experts models"
_NO_MEDIA = "this version serves text models only"
_NO_QUANTIZED = "this version reads no quantized checkpoints"
_NO_SCALES = "an FP8 KV cache has no scales here, or finds one for each token and head"
_NO_USAGE = "usage statistics are never collected nor sent"

VARIABLES: dict[str, EnvVar] = {
    # ---- logging ----
    "VLLM_CONFIGURE_LOGGING": EnvVar(YES_NO, True, "set up the log of programs; 0 leaves Python's logging alone"),
    "VLLM_LOGGING_CONFIG_PATH": EnvVar(FOLDER, None, "JSON file with a configuration of Python's logging"),
    "VLLM_LOGGING_LEVEL": EnvVar(LEVEL, "INFO", "lowest level that the log shows"),
    "VLLM_LOGGING_PREFIX": EnvVar(TEXT, "", "text before every line of the log"),
    "VLLM_NO_DEPRECATION_WARNING": EnvVar(YES_NO, False, "no warnings about settings of earlier versions"),
    "VLLM_LOG_BATCHSIZE_INTERVAL": EnvVar(
        INTERVAL, None, "log how many tokens the steps have every so many seconds; unset: never"
    ),
    "VLLM_TRACE_FUNCTION": EnvVar(
        YES_NO, False, "log every call of a function", "this version has no tracer; use a profiler of Python"
    ),
    # ---- server ----
    "VLLM_API_KEY": EnvVar(TEXT, None, "key that requests must carry, and that our clients send"),
    "VLLM_ADMIN_API_KEY": EnvVar(TEXT, None, "key that opens the server's routes for operators too"),
    "VLLM_SERVER_DEV_MODE": EnvVar(YES_NO, False, "serve routes for development, such as POST /reset_prefix_cache"),
    "VLLM_ENABLE_RESPONSES_API_STORE": EnvVar(
        YES_NO, True, "keep responses of /v1/responses, within bounds, for those who ask for them again"
    ),
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": EnvVar(
        YES_NO, False, "keep the server up after its engine has died; it answers 503"
    ),
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": EnvVar(
        COUNT, 128, "outputs of a step that are processed before other tasks get their turn"
    ),
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": EnvVar(
        YES_NO, False, "load and unload adapters while serving", "this version serves no LoRA adapters"
    ),
    # ---- engine and its process ----
    "VLLM_RPC_BASE_PATH": EnvVar(
        FOLDER, None, "folder in which server and engine process meet; unset: that of temporary files"
    ),
    "VLLM_RPC_TIMEOUT": EnvVar(
        COUNT, None, "milliseconds to wait for the answer to a control call of the engine; unset: for ever"
    ),
    "VLLM_ENGINE_ITERATION_TIMEOUT_S": EnvVar(
        AMOUNT, None, "seconds that a step may take before the engine counts as dead; unset: any time"
    ),
    "VLLM_ENABLE_V1_MULTIPROCESSING": EnvVar(YES_NO, False, "run the engine of the LLM class in a process of its own"),
    "VLLM_WORKER_MULTIPROC_METHOD": EnvVar(
        TEXT, "spawn", "how processes are started", "the engine process is always a fresh one"
    ),
    "VLLM_USE_V1": EnvVar(YES_NO, True, "run engine V1", _ONE_PATH),
    "VLLM_LOGITS_PROCESSOR_THREADS": EnvVar(
        NUMBER, None, "threads for custom logits processors", "logits processors run in the thread of the step"
    ),
    "VLLM_PLUGINS": EnvVar(NAMES, None, "plugins to load, with commas between", "this version loads no plugins"),
    "VLLM_TORCH_PROFILER_DIR": EnvVar(
        FOLDER, None, "folder for traces of torch's profiler, where --profiler-config says nothing"
    ),
    "VLLM_CHECK_INVARIANTS": EnvVar(YES_NO, False, "check the KV block accounting after every step (for tests)"),
    # ---- model ----
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": EnvVar(YES_NO, False, "let max_model_len exceed what the model was made for"),
    "VLLM_TEST_FORCE_LOAD_FORMAT": EnvVar(TEXT, None, "load format that wins over the setting (for tests)"),
    "VLLM_USE_MODELSCOPE": EnvVar(
        YES_NO, False, "fetch models from ModelScope", "models come from a folder or from the Hugging Face hub"
    ),
    "VLLM_CI_USE_S3": EnvVar(YES_NO, False, "load the models of tests from S3", "this version does not load from S3"),
    # ---- attention ----
    "VLLM_ATTENTION_BACKEND": EnvVar(TEXT, None, "attention backend where --attention-backend gives none"),
    "VLLM_MLA_DISABLE": EnvVar(
        YES_NO, False, "compute latent attention as ordinary attention", "no model of this version has latent attention"
    ),
    "Q_SCALE_CONSTANT": EnvVar(NUMBER, None, "divisor of the query scale of an FP8 KV cache", _NO_SCALES),
    "K_SCALE_CONSTANT": EnvVar(NUMBER, None, "divisor of the key scale of an FP8 KV cache", _NO_SCALES),
    "V_SCALE_CONSTANT": EnvVar(NUMBER, None, "divisor of the value scale of an FP8 KV cache", _NO_SCALES),
    # ---- device ----
    "VLLM_TARGET_DEVICE": EnvVar(
        DEVICE,
        None,
        "device to run on where --device does not say; unset: an NVIDIA GPU where there is one, else the CPU",
    ),
    # ---- CPU ----
    "VLLM_CPU_KVCACHE_SPACE": EnvVar(AMOUNT, None, "GiB for the KV cache on a CPU; unset: a share of what is free"),
    "VLLM_KERNELS_CPU_LEVEL": EnvVar(
        CPU_LEVEL, None, "instructions that the native CPU kernels may use; unset: all that the machine has"
    ),
    "VLLM_BATCH_INVARIANT": EnvVar(
        YES_NO, False, "compute each request to the same bits, alone or in any batch; costs some speed"
    ),
    "VLLM_KERNELS_TUNING": EnvVar(
        FOLDER, None, "folder of tables that `python -m vllm_kernels.tune` wrote; they win over those of the wheel"
    ),
    "VLLM_KERNELS_PDL": EnvVar(
        YES_NO,
        True,
        "start a kernel while the one before it still runs (programmatic dependent launches), on GPUs since Hopper",
    ),
    "VLLM_KERNELS_FACE": EnvVar(FACE, None, "implementation that serves every kernel; unset: the device's own"),
    "VLLM_CPU_OMP_THREADS_BIND": EnvVar(
        CORES,
        "auto",
        "cores for the threads that compute: auto takes those of one NUMA node, a list has one thread on each of its "
        "cores, nobind leaves it to the system",
    ),
    "VLLM_CPU_NUM_OF_RESERVED_CPU": EnvVar(
        NUMBER, 0, "cores to leave to other work, where VLLM_CPU_OMP_THREADS_BIND lists none"
    ),
    "VLLM_CPU_MOE_PREPACK": EnvVar(YES_NO, None, "repack the weights of experts when loading", _NO_EXPERTS),
    "VLLM_CPU_INT4_W4A8": EnvVar(YES_NO, True, "compute 4-bit weights with 8-bit activations"),
    "VLLM_CPU_ATTN_SPLIT_KV": EnvVar(
        YES_NO, None, "split long keys over threads in attention", "the attention kernel decides by itself"
    ),
    "VLLM_CPU_SIM_MULTI_NUMA": EnvVar(
        YES_NO, False, "play several NUMA nodes (for tests)", "this version runs one worker, whatever the nodes"
    ),
    "VLLM_CPU_CI_ENV": EnvVar(
        YES_NO, False, "save time in tests on a CPU", "no kernels are compiled when the engine starts"
    ),
    "VLLM_ZENTORCH_WEIGHT_PREPACK": EnvVar(
        YES_NO, None, "let zentorch repack weights", "this version does not use zentorch"
    ),
    # ---- files ----
    "VLLM_CONFIG_ROOT": EnvVar(
        FOLDER, None, "folder of configuration files", "no file is read but those that are named"
    ),
    "VLLM_CACHE_ROOT": EnvVar(
        FOLDER, None, "folder of what is kept from one start to the next: compiled GPU kernels; unset: ~/.cache/vllm"
    ),
    "VLLM_ASSETS_CACHE": EnvVar(FOLDER, None, "folder of downloaded media", _NO_MEDIA),
    # ---- several devices and machines ----
    "VLLM_HOST_IP": EnvVar(TEXT, None, "this machine's address for other workers; not that of the API", _ONE_DEVICE),
    "VLLM_PORT": EnvVar(TEXT, None, "first port between workers; not that of the API (--port)", _ONE_DEVICE),
    "VLLM_RINGBUFFER_WARNING_INTERVAL": EnvVar(
        AMOUNT, None, "seconds between warnings of a full ring buffer", "messages go over a socket, not a ring buffer"
    ),
    "VLLM_PP_LAYER_PARTITION": EnvVar(TEXT, None, "layers of each pipeline stage", _ONE_DEVICE),
    "VLLM_DP_RANK": EnvVar(NUMBER, 0, "rank among data-parallel engines", _ONE_DEVICE),
    "VLLM_DP_SIZE": EnvVar(COUNT, 1, "number of data-parallel engines", _ONE_DEVICE),
    "VLLM_DP_MASTER_IP": EnvVar(TEXT, None, "address of the first data-parallel engine", _ONE_DEVICE),
    "VLLM_DP_MASTER_PORT": EnvVar(NUMBER, None, "port of the first data-parallel engine", _ONE_DEVICE),
    "VLLM_SKIP_P2P_CHECK": EnvVar(YES_NO, False, "trust that devices can copy to each other", _ONE_DEVICE),
    "VLLM_NCCL_SO_PATH": EnvVar(FOLDER, None, "path of the NCCL library", _ONE_DEVICE),
    "VLLM_USE_RAY_SPMD_WORKER": EnvVar(YES_NO, False, "let Ray's workers schedule for themselves", _NO_RAY),
    "VLLM_USE_RAY_COMPILED_DAG": EnvVar(YES_NO, False, "call Ray's workers through a compiled graph", _NO_RAY),
    "VLLM_USE_RAY_COMPILED_DAG_NCCL_CHANNEL": EnvVar(YES_NO, None, "NCCL channels in Ray's compiled graph", _NO_RAY),
    "VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM": EnvVar(
        YES_NO, False, "communication beside computation in Ray's compiled graph", _NO_RAY
    ),
    "VLLM_RAY_PER_WORKER_GPUS": EnvVar(AMOUNT, None, "GPUs of each Ray worker; may be a fraction", _NO_RAY),
    "VLLM_RAY_BUNDLE_INDICES": EnvVar(TEXT, None, "Ray bundle of each worker, with commas between", _NO_RAY),
    # ---- GPUs and other devices ----
    "VLLM_CUDAGRAPH_CAPTURE_AFTER_READY": EnvVar(
        YES_NO,
        False,
        "capture CUDA graphs while the engine has nothing to do, or when a step first needs one, instead of at start",
    ),
    "VLLM_USE_TRITON_FLASH_ATTN": EnvVar(YES_NO, None, "flash attention written in Triton", _OWN_KERNELS),
    "VLLM_FLASH_ATTN_VERSION": EnvVar(COUNT, None, "version of flash attention, 2 or 3", _OWN_KERNELS),
    "VLLM_USE_FLASHINFER_SAMPLER": EnvVar(YES_NO, False, "sample with FlashInfer", _OWN_KERNELS),
    "VLLM_FLASHINFER_FORCE_TENSOR_CORES": EnvVar(YES_NO, False, "FlashInfer: tensor cores at every size", _OWN_KERNELS),
    "VLLM_CUDART_SO_PATH": EnvVar(FOLDER, None, "path of the CUDA runtime library", "torch finds and loads it"),
    "VLLM_USE_TRITON_AWQ": EnvVar(YES_NO, False, "AWQ kernels written in Triton", _NO_QUANTIZED),
    "VLLM_DISABLED_KERNELS": EnvVar(NAMES, None, "kernels for quantized layers to leave out", _NO_QUANTIZED),
    "VLLM_MARLIN_USE_ATOMIC_ADD": EnvVar(YES_NO, False, "Marlin kernels: sum with atomic additions", _NO_QUANTIZED),
    "VLLM_TEST_FORCE_FP8_MARLIN": EnvVar(YES_NO, False, "Marlin for every FP8 layer (for tests)", _NO_QUANTIZED),
    "VLLM_FUSED_MOE_CHUNK_SIZE": EnvVar(COUNT, None, "tokens that the expert kernel takes at once", _NO_EXPERTS),
    "VLLM_ENABLE_MOE_ALIGN_BLOCK_SIZE_TRITON": EnvVar(YES_NO, False, "group tokens by expert with Triton", _NO_EXPERTS),
    "VLLM_TEST_DYNAMO_FULLGRAPH_CAPTURE": EnvVar(
        YES_NO, None, "insist on whole graphs when compiling (for tests)", "this version does not compile models"
    ),
    "VLLM_ROCM_FP8_PADDING": EnvVar(
        YES_NO, None, "ROCm: pad FP8 weights to 256 bytes", "this version does not run on AMD GPUs"
    ),
    "VLLM_USE_HPU_CONTIGUOUS_CACHE_FETCH": EnvVar(
        YES_NO, None, "Gaudi: read the cache in one piece", "this version does not run on Gaudi"
    ),
    "VLLM_XLA_CACHE_PATH": EnvVar(FOLDER, None, "folder of programs that XLA compiled", _NO_XLA),
    "VLLM_XLA_CHECK_RECOMPILATION": EnvVar(YES_NO, False, "fail when XLA compiles in a step", _NO_XLA),
    "VLLM_TPU_DISABLE_TOPK_TOPP_OPTIMIZATION": EnvVar(YES_NO, None, "TPU: plain top-k and top-p", _NO_XLA),
    "VLLM_OPENVINO_DEVICE": EnvVar(TEXT, None, "device of OpenVINO", _NO_OPENVINO),
    "VLLM_OPENVINO_KVCACHE_SPACE": EnvVar(NUMBER, None, "GiB for OpenVINO's KV cache", _NO_OPENVINO),
    "VLLM_OPENVINO_CPU_KV_CACHE_PRECISION": EnvVar(TEXT, None, "data type of OpenVINO's KV cache", _NO_OPENVINO),
    "VLLM_OPENVINO_ENABLE_QUANTIZED_WEIGHTS": EnvVar(YES_NO, False, "compress weights for OpenVINO", _NO_OPENVINO),
    # ---- media and guided output ----
    "VLLM_IMAGE_FETCH_TIMEOUT": EnvVar(AMOUNT, None, "seconds to download an image", _NO_MEDIA),
    "VLLM_VIDEO_FETCH_TIMEOUT": EnvVar(AMOUNT, None, "seconds to download a video", _NO_MEDIA),
    "VLLM_AUDIO_FETCH_TIMEOUT": EnvVar(AMOUNT, None, "seconds to download a recording", _NO_MEDIA),
    "VLLM_MM_INPUT_CACHE_GIB": EnvVar(NUMBER, None, "GiB for prepared media", _NO_MEDIA),
    "VLLM_V0_USE_OUTLINES_CACHE": EnvVar(
        YES_NO, False, "V0: keep compiled grammars of Outlines on disk", "this version keeps no grammars on disk"
    ),
    # ---- usage statistics: none, so asking for none gives no warning ----
    "VLLM_NO_USAGE_STATS": EnvVar(YES_NO, True, "collect no usage statistics", _NO_USAGE),
    "VLLM_DO_NOT_TRACK": EnvVar(YES_NO, True, "send no usage statistics", _NO_USAGE),
    "VLLM_USAGE_STATS_SERVER": EnvVar(TEXT, None, "where usage statistics are sent", _NO_USAGE),
    "VLLM_USAGE_SOURCE": EnvVar(TEXT, None, "label of usage statistics", _NO_USAGE),
    # ---- building ----
    "VLLM_USE_PRECOMPILED": EnvVar(YES_NO, None, "install ready-made binaries", _BUILD),
    "VLLM_TEST_USE_PRECOMPILED_NIGHTLY_WHEEL": EnvVar(YES_NO, None, "build on last night's wheel (for tests)", _BUILD),
    # ---- of other programs: theirs to read, and never a reason for a warning ----
    "MAX_JOBS": EnvVar(TEXT, None, "compilers that run side by side", read_by="builds of C++ extensions"),
    "NVCC_THREADS": EnvVar(TEXT, None, "threads of nvcc", read_by="builds of CUDA extensions"),
    "CMAKE_BUILD_TYPE": EnvVar(TEXT, None, "Debug, Release or RelWithDebInfo", read_by="CMake"),
    "VERBOSE": EnvVar(TEXT, None, "show the commands of a build", read_by="CMake and make"),
    "CUDA_HOME": EnvVar(FOLDER, None, "folder of the CUDA toolkit", read_by="builds of CUDA extensions"),
    "LD_LIBRARY_PATH": EnvVar(TEXT, None, "folders of shared libraries", read_by="the dynamic linker"),
    "CUDA_VISIBLE_DEVICES": EnvVar(TEXT, None, "GPUs that programs may see", read_by="CUDA"),
    "LOCAL_RANK": EnvVar(TEXT, None, "number of a process on its machine", read_by="torchrun and its programs"),
    "S3_ACCESS_KEY_ID": EnvVar(TEXT, None, "name of an S3 key", read_by="tensorizer, which this version does not use"),
    "S3_SECRET_ACCESS_KEY": EnvVar(TEXT, None, "S3 key", read_by="tensorizer, which this version does not use"),
    "S3_ENDPOINT_URL": EnvVar(
        TEXT, None, "address of an S3 service", read_by="tensorizer, which this version does not use"
    ),
    "HF_TOKEN": EnvVar(
        TEXT, None, "token for the Hugging Face hub, where --hf-token gives none", read_by="huggingface_hub"
    ),
    "HUGGING_FACE_HUB_TOKEN": EnvVar(TEXT, None, "older name of HF_TOKEN", read_by="huggingface_hub"),
    "HF_HUB_OFFLINE": EnvVar(TEXT, None, "1 fetches nothing from the Hugging Face hub", read_by="huggingface_hub"),
}
