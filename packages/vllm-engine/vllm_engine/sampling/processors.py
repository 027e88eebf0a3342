"""``LogitsProcessor``: code of the user's own that changes logits before a token is chosen.

The setting ``logits_processors`` names the classes. The process that takes requests imports them too, to check these:
so this module imports no torch, and a class need not either before it is asked to change logits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vllm_engine.config import EngineConfig
from vllm_engine.config.import_path import load_class
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_engine.params import SamplingParams

if TYPE_CHECKING:
    import torch

logger = get_logger(__name__)

RequestLogitsProcessor = Callable[[Sequence[int], "torch.Tensor"], "torch.Tensor | None"]
"""Changes the logits of one request before each of its tokens.

It is called with the ids of all output tokens so far (not to be changed) and the logits of the next one, fp32
``[vocab_size]``. It returns the new logits, of the same shape and type, or changes the given ones in place and returns
None. A token becomes impossible by -inf. What it raises, or a result that does not fit, ends the request with an error.
"""


class LogitsProcessor(ABC):
    """Base of the classes that ``logits_processors`` names. The engine makes one instance of each.

    Logits come to it after allowed tokens, bad words, ``min_tokens``, ``logit_bias`` and penalties, and go on from it
    to temperature, min_p, top_k and top_p. Several are applied in the order of the setting.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Set up for an engine; ``config.additional_config`` is the place for settings of its own."""
        self.config = config

    @classmethod  # noqa: B027 - one that takes nothing from requests has nothing to check
    def validate_params(cls, params: SamplingParams) -> None:
        """Check what a request gives in ``params.extra_args``; called where requests are taken, before it is queued.

        Raises:
            ValueError: (or ``InvalidRequest``) when the request is to be refused; the client reads the message.
        """

    @abstractmethod
    def new_req_logits_processor(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> RequestLogitsProcessor | None:
        """What changes the logits of a request; None where it wants nothing changed.

        A request that is computed again after a preemption asks again. Its result is the same if what this returns
        depends on the arguments alone: what it remembers must follow from the output tokens that it is given.

        Args:
            params: of the request, without ``stop`` and ``bad_words``, which are text, and with ``n`` 1: each of its
                completions asks for itself.
            prompt_token_ids: empty where the prompt was given as embeddings.
        """


def load_processor_classes(config: EngineConfig) -> list[type[LogitsProcessor]]:
    """The classes that the settings name, in order.

    Raises:
        ConfigError: a path leads to no class of that kind.
    """
    return [
        load_class("logits_processors", path, LogitsProcessor)  # type: ignore[type-abstract]
        for path in config.model.logits_processors or ()
    ]


def create_processors(config: EngineConfig) -> list[LogitsProcessor]:
    """An instance of each class that the settings name.

    Raises:
        ConfigError: a class cannot be found, or cannot be set up.
    """
    processors = []
    for kind in load_processor_classes(config):
        try:
            processors.append(kind(config))
        except (Exception, SystemExit) as error:  # a user's own code can raise anything
            logger.exception("a logits processor cannot be set up")
            raise ConfigError(
                f"logits_processors: {kind.__module__}:{kind.__qualname__} cannot be set up: "
                f"{type(error).__name__}: {error}",
                field="logits_processors",
            ) from error
    return processors
