"""What is known of a model before its weights are read: where it lies, what its sequences may be, its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_bench.workload.text import TextSource
from vllm_bench.workload.tokenizer_text import TokenizerText
from vllm_cli.command import CommandError


@dataclass(frozen=True, slots=True)
class OfflineModel:
    """A model as the settings of the engine name it."""

    name: str
    max_model_len: int
    vocab_size: int
    seed: int
    """``--seed`` of the engine; it makes the workload, too."""
    tokenizer_folder: Path | None
    """None: the engine runs without a tokenizer."""

    def check_length(self, prompt_len: int, output_len: int) -> None:
        """Raise ``CommandError`` (exit code 2) for a request that is longer than a sequence may be."""
        if prompt_len + output_len > self.max_model_len:
            raise CommandError(
                f"a prompt of {prompt_len} tokens and an answer of {output_len} do not fit into --max-model-len "
                f"{self.max_model_len}; choose shorter ones, as with --input-len and --output-len",
                exit_code=2,
            )

    def text_source(self) -> TextSource:
        """Texts by the model's tokenizer.

        Raises:
            CommandError: (exit code 2) it has none, or none that can be read here.
        """
        if self.tokenizer_folder is None:
            raise CommandError(
                "prompts are made with the tokenizer, which --skip-tokenizer-init leaves out", exit_code=2
            )
        return TokenizerText(self.tokenizer_folder)


def look_up(engine: dict[str, Any]) -> OfflineModel:
    """The model that the settings name; fetched if need be.

    Raises:
        ConfigError: a setting that cannot be honoured, or that the model cannot meet.
    """
    from vllm_engine.config import EngineArgs
    from vllm_engine.config.model_files import resolve_model
    from vllm_engine.config.model_plan import plan_model
    from vllm_engine.frontend.engine_frontend import resolve_config, resolve_model_path

    config = resolve_config(EngineArgs(**engine))
    folder = resolve_model_path(config)
    plan = plan_model(config, folder)
    settings = config.model
    tokenizer_folder: Path | None = folder
    if settings.skip_tokenizer_init:
        tokenizer_folder = None
    elif settings.tokenizer is not None:
        tokenizer_folder = resolve_model(
            settings.tokenizer,
            revision=settings.tokenizer_revision,
            download_dir=config.load.download_dir,
            token=settings.hf_token,
            load_format="dummy",  # a tokenizer has no weights
            setting="tokenizer",
        )
    return OfflineModel(settings.model, plan.max_model_len, plan.decoder.vocab_size, settings.seed, tokenizer_folder)
