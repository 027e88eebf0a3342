"""Everything of the frontend that belongs to one engine, built together. Both public faces stand on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.generation import GenerationConfig, load_generation_config
from vllm_engine.config.model_files import config_folder, resolve_model
from vllm_engine.config.model_plan import plan_model
from vllm_engine.frontend.input_processor import InputProcessor
from vllm_engine.frontend.output_processor import OutputProcessor
from vllm_engine.frontend.tokenizer import Tokenizer, load_tokenizer
from vllm_engine.loading.weight_files import find_weight_files
from vllm_engine.logging import get_logger, startup_phase
from vllm_engine.messages import EngineReady
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.processors import load_processor_classes

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFrontend:
    """What is read from a model's small files, before or while its weights load."""

    tokenizer: Tokenizer | None
    generation: GenerationConfig

    @classmethod
    def load(cls, config: EngineConfig, model_path: Path) -> "ModelFrontend":
        """Read tokenizer and generation defaults. Raises ``ConfigError`` for broken files."""
        with startup_phase(logger, "tokenizer", {}):
            config_path = config_folder(config, model_path)
            tokenizer = None
            if not config.model.skip_tokenizer_init:
                tokenizer = load_tokenizer(
                    config.model, model_path, download_dir=config.load.download_dir, config_path=config_path
                )
            return cls(tokenizer, load_generation_config(config.model, model_path, config_path))

    def processors(self, config: EngineConfig, ready: EngineReady) -> tuple[InputProcessor, OutputProcessor]:
        """The two processors, once the core has told its sizes."""
        inputs = InputProcessor(
            config,
            self.tokenizer,
            self.generation,
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
            prompt_embeds=ready.prompt_embeds,
        )
        return inputs, OutputProcessor(self.tokenizer, stream_interval=config.scheduler.stream_interval)

    def default_sampling_params(self) -> dict[str, Any]:
        """Fields of ``SamplingParams`` that hold where a request gives none."""
        return dict(self.generation.sampling)

    def default_params(self) -> SamplingParams:
        """The parameters of a request that gives none at all."""
        return SamplingParams(**self.generation.sampling)


def resolve_config(args: EngineArgs | EngineConfig) -> EngineConfig:
    """The configuration of either form of settings. Raises ``ConfigError``, also for classes that cannot be found."""
    config = args.create_config() if isinstance(args, EngineArgs) else args
    load_processor_classes(config)  # so that a wrong one is told before anything is fetched or loaded
    return config


def resolve_model_path(config: EngineConfig) -> Path:
    """Folder of the model, fetched if need be.

    Raises:
        ConfigError: when it cannot be had, and for all that its small files show to be wrong: no engine need be started
            to find that out.
    """
    with startup_phase(logger, "model files", {}):
        folder = resolve_model(
            config.model.model,
            revision=config.model.revision,
            download_dir=config.load.download_dir,
            ignore_patterns=config.load.ignore_patterns,
            token=config.model.hf_token,
            load_format=config.load.format,
        )
        plan_model(config, folder)
        if config.load.format != "dummy":
            find_weight_files(folder, config.load.format, config.load.ignore_patterns)
    return folder
