"""Loads a model several times and says how much memory that took at its peak: a process of its own for the tests.

``python -m tests.engine.loading.peak_memory FOLDER`` prints a JSON object: quantization -> bytes of the packed weights,
and by how much the resident memory (pages of mapped files included) rose above what it was before.
"""

import json
import re
import sys
from pathlib import Path

from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.loading.loader import load_model
from vllm_engine.models.causal_lm import CausalLM

loaded: list[CausalLM] = []
"""Kept, so that none gets the memory of the one before."""


def resident(line: str) -> int:
    """Bytes in a line of the process's status: ``VmRSS`` is now, ``VmHWM`` the peak."""
    found = re.search(rf"^{line}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(line)
    return int(found[1]) * 1024


def load(folder: Path, quantization: str | None) -> tuple[int, int]:
    """Packed bytes, and bytes that loading took at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = resident("VmRSS")
    config = ModelConfig(model=str(folder), max_model_len=64, quantization=quantization)
    model = load_model(folder, load_decoder_config(folder, {}), config, LoadConfig(use_tqdm_on_load=False), "cpu")
    loaded.append(model)
    return model.weight_bytes(), resident("VmHWM") - before


def main(folder: Path) -> None:
    """Load ``folder`` in every way, and once before, to have all libraries in memory."""
    load(folder, "int4")
    results = {str(quantization): load(folder, quantization) for quantization in (None, "int8", "int4")}
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
