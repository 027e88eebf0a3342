"""How weights get from disk into memory."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_engine.config.groups.types import Positive
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How weights get from disk into memory."""

    load_format: str = option(
        "auto",
        help="file format of the weights: safetensors, pt (PyTorch), auto or hf (what there is), dummy (random ones)",
        metavar="FORMAT",
        common=True,
    )
    download_dir: str | None = option(None, help="where files from the hub are kept")
    safetensors_load_strategy: Literal["lazy", "eager", "prefetch", "torchao"] | None = option(
        None,
        help="how safetensors files are read: lazy (mapped), eager (whole files first), prefetch (read ahead)",
        unsupported="this version reads no torchao checkpoints",
        possible=("lazy", "eager", "prefetch"),
    )
    safetensors_prefetch_num_threads: Positive = option(8, help="threads that read ahead with strategy prefetch")
    safetensors_prefetch_block_size: Positive = option(16777216, help="bytes of one read with strategy prefetch")
    model_loader_extra_config: dict[str, Any] = option(
        {}, help="settings of special loaders", unsupported="none of the load formats of this version has any"
    )
    ignore_patterns: list[str] = option(
        ["original/**/*"],
        help="files of the model's repository, and weights of its folder, to leave out",
        metavar="PATTERN",
    )
    use_tqdm_on_load: bool = option(True, help="show a progress bar while loading weights")
    pt_load_map_location: str | dict[str, str] = option(
        "cpu",
        help="device onto which PyTorch checkpoints are read",
        unsupported="they are read into main memory, and go to the device piece by piece",
        possible=({"": "cpu"}, {"cpu": "cpu"}),
    )

    @property
    def format(self) -> str:
        """``load_format`` as the code spells it: any case of letters is taken."""
        return self.load_format.lower()
