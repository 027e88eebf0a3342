"""The environment variables that a bug report shows, without what must stay secret."""

import os
import re

SET = "(set, not shown)"

_SHOWN = re.compile(
    r"(VLLM|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR|DNNL|ONEDNN|PYTORCH|TRITON|CUDA|NVIDIA|NCCL|GLOO|HIP|ROCR|HF|HUGGING|"
    r"TRANSFORMERS|TOKENIZERS|SAFETENSORS|OPENAI|S3|NVCC)_.*|(TORCH|PYTHON|HUGGING).*|(HTTPS?|NO|ALL)_PROXY|"
    r"LD_PRELOAD|LD_LIBRARY_PATH|MALLOC_.*|MAX_JOBS|CMAKE_BUILD_TYPE|VERBOSE|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|"
    r"[QKV]_SCALE_CONSTANT|CPU_VISIBLE_MEMORY_NODES|TMPDIR|LANG|LC_ALL",
    re.IGNORECASE,
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
# TOKENIZERS_PARALLELISM and the like hold no token.
_NO_SECRET = re.compile(r"TOKENIZERS_(?!.*(KEY|TOKEN|SECRET|PASSW))", re.IGNORECASE)
# Up to the last @ of a word: a password may hold slashes and more of them.
_USER = re.compile(r"((?<=://)|(?<!\S)(?!\S*://))\S+(?=@)")
_QUERY_OF_URL = re.compile(r"(://[^\s?]*\?)\S+")
# Keys of well-known services betray themselves wherever they stand.
_TOKEN = re.compile(r"\b(hf_|sk-|gh[opsru]_|github_pat_|xox[abprs]-|AKIA|ey[IJ])[A-Za-z0-9_./+=-]{12,}")


def variables() -> dict[str, str]:
    """The environment variables that change how the program runs; secrets are only said to be set."""
    return {name: masked(name, value) for name, value in sorted(os.environ.items()) if _SHOWN.fullmatch(name)}


def masked(name: str, value: str) -> str:
    """``value`` without its secrets: all of it where the name speaks of one, else users, queries of URLs and keys."""
    if value and _SECRET.search(name) and not _NO_SECRET.match(name):
        return SET
    return _TOKEN.sub("***", _QUERY_OF_URL.sub(r"\1***", _USER.sub("***", value)))
