"""The settings that choose kernels: what is there, what is not, and what is not known."""

from typing import Any

import pytest

from tests.engine.fake_cuda import pretend_gpu
from vllm_engine.config import EngineArgs
from vllm_engine.config.kernel_choices import kernel_faces
from vllm_engine.errors import ConfigError

pytestmark = pytest.mark.cpu_only

DOCUMENTED = """
AMX_MLA B12X CPU_MLA CUSTOM CUTLASS_MLA CUTLASS_MSA FLASHINFER FLASHINFER_MLA FLASHINFER_MLA_SPARSE
FLASHINFER_MLA_SPARSE_DSV4 FLASHINFER_MLA_SPARSE_DSV41 FLASHINFER_MLA_SPARSE_SM120 FLASHINFER_MLA_SPARSE_SM90 FLASHMLA
FLASHMLA_MEGA_ATTN_DSV41 FLASHMLA_SPARSE FLASHMLA_SPARSE_DSV4 FLASHMLA_SPARSE_DSV41 FLASH_ATTN FLASH_ATTN_DIFFKV
FLASH_ATTN_MLA FLASH_ATTN_MLA_SPARSE FLASH_ATTN_MLA_SPARSE_FA4 FLEX_ATTENTION GDN_ATTN HPC_ATTN LINEAR MAMBA1 MAMBA2
MINIMAX_M3_SPARSE NO_ATTENTION ROCM_AITER_FA ROCM_AITER_MLA ROCM_AITER_MLA_SPARSE ROCM_AITER_TRITON_MLA
ROCM_AITER_UNIFIED_ATTN ROCM_ATTN ROCM_FLASHMLA_SPARSE_DSV4 ROCM_FLASHMLA_SPARSE_DSV41 ROCM_OCTAVE ROCM_SEGMENTED_ATTN
SHORT_CONV STEP5_DSA TOKENSPEED_MLA TRITON_ATTN_DIFFKV TRITON_FLASHINFER TRITON_FLASH_ATTN TRITON_MLA
TRITON_MSA TURBOQUANT ULTRAQUANT XFORMERS XPU_MLA_SPARSE
""".split()
"""Attention backends of the documentation that this version does not have."""


def faces(**options: Any) -> dict[str, str]:
    return kernel_faces(EngineArgs("demo", **options).create_config())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_backend_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        faces(attention_backend=name)
    message = str(caught.value)
    assert message.startswith(f"attention_backend={name} cannot be honoured: ")
    assert "; possible: CPU_ATTN, TRITON_ATTN, TORCH_SDPA, REFERENCE" in message
    assert caught.value.field == "attention_backend"


@pytest.mark.parametrize(
    ("name", "near"), [("cpu_atn", "CPU_ATTN"), ("flash-attn", "FLASH_ATTN"), ("torch-spda", "TORCH_SDPA")]
)
def test_an_unknown_backend_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"attention_backend={name} is not known; .* did you mean {near}\?$"):
        faces(attention_backend=name)


def test_a_wrong_variable_is_blamed_and_only_where_no_flag_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "XFORMERS")
    with pytest.raises(ConfigError, match=r"^VLLM_ATTENTION_BACKEND=XFORMERS cannot be honoured") as caught:
        faces()
    assert caught.value.field == "VLLM_ATTENTION_BACKEND"
    assert faces(attention_backend="CPU_ATTN") == {"attention": "cpu"}


@pytest.mark.parametrize("function", ["rms_norm", "fused_add_rms_norm"])
@pytest.mark.parametrize("names", [["vllm_c"], ["cpu", "vllm_c"], [""]])
def test_an_unknown_implementation_of_a_norm_is_refused(function: str, names: list[str]) -> None:
    words = f"^ir_op_priority.{function}=.* is not known; possible: cpu, triton, eager, ref"
    with pytest.raises(ConfigError, match=words) as caught:
        faces(ir_op_priority={function: names})
    assert caught.value.field == f"ir_op_priority.{function}"


def test_kernels_of_another_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    for device, backend, norm, there in (
        ("cuda", "CPU_ATTN", "cpu", "a CPU"),
        ("cpu", "triton_attn", "triton", "a GPU"),
    ):
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        words = f"={backend} cannot be honoured: these kernels are for {there}"
        with pytest.raises(ConfigError, match=words) as caught:
            faces(device=device, attention_backend=backend)
        assert caught.value.field == "attention_backend"
        with pytest.raises(ConfigError, match=rf"ir_op_priority\.rms_norm={norm} cannot be honoured"):
            faces(device=device, ir_op_priority={"rms_norm": [norm]})
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("TRITON_INTERPRET", "1" if device == "cpu" else "0")
        chosen = faces(device=device, attention_backend="TRITON_ATTN", ir_op_priority={"rms_norm": ["triton"]})
        assert chosen == {"attention": "triton", "norm.rms_norm": "triton"}


def test_without_a_word_the_machine_decides() -> None:
    assert faces() == {}
    assert faces(ir_op_priority={"rms_norm": [], "fused_add_rms_norm": ["native"]}) == {
        "norm.fused_add_rms_norm": "reference"
    }
