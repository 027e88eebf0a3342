"""Loading takes little more memory than the loaded weights: files are mapped, packed piece by piece, and let go."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, HEADS, HEAD_DIM, LAYERS, VOCABULARY = 1024, 3072, 8, 128, 4, 24_000
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_DIM,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def make_model(folder: Path) -> None:
    """A Qwen 3 of 150 MB in bf16."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    numbers = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16()

    def matrix(rows: int, columns: int) -> Tensor:
        return numbers.view(-1)[: rows * columns].view(rows, columns).clone()

    width = HEADS * HEAD_DIM
    tensors = {"model.embed_tokens.weight": numbers, "model.norm.weight": torch.ones(HIDDEN).bfloat16()}
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        shapes = {"self_attn.q_proj": (width, HIDDEN), "self_attn.k_proj": (width, HIDDEN)}
        shapes |= {"self_attn.v_proj": (width, HIDDEN), "self_attn.o_proj": (HIDDEN, width)}
        shapes |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
        tensors |= {f"{layer}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN}
        norms |= {"self_attn.q_norm": HEAD_DIM, "self_attn.k_norm": HEAD_DIM}
        tensors |= {f"{layer}.{name}.weight": torch.ones(size).bfloat16() for name, size in norms.items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_loading_takes_little_more_memory_than_the_packed_weights(tmp_path: Path) -> None:
    make_model(tmp_path)
    command = [sys.executable, "-m", "tests.engine.loading.peak_memory", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    results = json.loads(output.splitlines()[-1])
    plain = results["None"][0]
    for quantization, expected in (("None", 1.0), ("int8", 0.51), ("int4", 0.34)):
        packed, peak = results[quantization]
        assert packed == pytest.approx(expected * plain, rel=0.05), quantization
        assert peak <= 1.15 * packed, quantization
