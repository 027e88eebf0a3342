"""Compilation and CUDA graphs."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_engine.config.groups.reasons import NO_COMPILER, NO_GRAPHS, NO_LORA, NO_MEDIA
from vllm_engine.config.groups.types import NonNegative, Positive
from vllm_engine.config.option import HONOURED, key, option


@dataclass(frozen=True, kw_only=True)
class CompilationConfig:
    """What is compiled, and which step sizes are captured as CUDA graphs."""

    mode: Literal[0, 1, 2, 3] | None = key(
        None,
        help="how models are compiled. 0: not at all; 1: torch.compile gets what lies between kernels, which is "
        "little; unset: 1 on a GPU with optimization level 3",
        unsupported="a graph of the whole model would need kernels that a compiler sees into",
        possible=(0, 1),
    )
    debug_dump_path: str | None = key(None, help="folder for what the compiler made", unsupported=NO_COMPILER)
    cache_dir: str = key("", help="folder for what inductor compiled")
    compile_cache_save_format: Literal["binary", "unpacked"] = key(
        "binary", help="format of compiled code on disk", unsupported=NO_COMPILER
    )
    backend: str = key(
        "inductor",
        help="what compiles in mode 1; eager: graphs run as they were traced",
        unsupported="this version knows no other compiler",
        possible=("eager",),
    )
    custom_ops: list[str] = key([], help="operations kept out of the compiler", unsupported=NO_COMPILER)
    ir_enable_torch_wrap: bool | None = key(None, help="wrap operations for the compiler", unsupported=NO_COMPILER)
    splitting_ops: list[str] | None = key(None, help="operations that split the graph", unsupported=NO_COMPILER)
    compile_mm_encoder: bool = key(False, help="compile the media encoder", unsupported=NO_MEDIA)
    cudagraph_mm_encoder: bool = key(False, help="capture the media encoder", unsupported=NO_MEDIA)
    encoder_cudagraph_token_budgets: list[int] = key([], help="sizes of captured encoders", unsupported=NO_MEDIA)
    encoder_cudagraph_max_vision_items_per_batch: NonNegative = key(
        0, help="most images in a captured encoder", unsupported=NO_MEDIA
    )
    encoder_cudagraph_max_frames_per_batch: Positive | None = key(
        None, help="most frames in a captured encoder", unsupported=NO_MEDIA
    )
    compile_sizes: list[int | str] | None = key(None, help="step sizes compiled one by one", unsupported=NO_COMPILER)
    compile_ranges_endpoints: list[int] | None = key(
        None, help="ends of the ranges of step sizes compiled together", unsupported=NO_COMPILER
    )
    inductor_compile_config: dict[str, Any] = key(
        {"enable_auto_functionalized_v2": False, "combo_kernels": True, "benchmark_combo_kernel": True},
        help="settings of torch's compiler",
        unsupported=NO_COMPILER,
    )
    inductor_passes: dict[str, str] = key({}, help="more passes of the compiler", unsupported=NO_COMPILER)
    cudagraph_mode: Literal["NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"] | None = key(
        None,
        help="what is captured as CUDA graphs: PIECEWISE, all but attention; FULL_DECODE_ONLY, whole steps with one "
        "token of each request; FULL_AND_PIECEWISE, both, which is what FULL becomes; unset: as the optimization "
        "level says",
        unsupported=NO_GRAPHS,
        possible=("NONE",),
        cuda=HONOURED,
    )
    cudagraph_num_of_warmups: NonNegative = key(
        0, help="runs before a capture, beside the one that compiles kernels", unsupported=NO_GRAPHS, cuda=HONOURED
    )
    cudagraph_capture_sizes: list[int] | None = option(
        None,
        help="step sizes to capture as CUDA graphs; steps are padded up to the next. Unset: 1, 2, 4, and every eighth",
        unsupported=NO_GRAPHS,
        possible=([],),
        cuda=HONOURED,
        metavar="SIZE",
    )
    cudagraph_copy_inputs: bool = key(
        False, help="copy inputs into captured buffers", no_effect="inputs of a captured step are always copied"
    )
    cudagraph_specialize_lora: bool = key(True, help="separate graphs with and without adapters", unsupported=NO_LORA)
    use_inductor_graph_partition: bool | None = key(
        None, help="let the compiler split the graph", unsupported=NO_COMPILER, possible=(False,)
    )
    pass_config: dict[str, Any] = key({}, help="passes of the compiler that fuse operations", unsupported=NO_COMPILER)
    max_cudagraph_capture_size: NonNegative | None = option(
        None,
        help="largest step size to capture as a CUDA graph; unset: twice max_num_seqs, and 512 at most",
        unsupported=NO_GRAPHS,
        possible=(0,),
        cuda=HONOURED,
    )
    dynamic_shapes_config: dict[str, Any] = key(
        {"type": "backed", "evaluate_guards": False, "assume_32_bit_indexing": False},
        help="how the compiler treats sizes",
        unsupported=NO_COMPILER,
    )
    local_cache_dir: str | None = key(None, help="folder of this process's compiled code", unsupported=NO_COMPILER)
    fast_moe_cold_start: bool | None = key(None, help="quicker first start of expert models", unsupported=NO_COMPILER)
    static_all_moe_layers: list[str] = key([], help="expert layers of the graph", unsupported=NO_COMPILER)
