"""``extra_args`` of a request: checked by the logits processors that they are for."""

from collections.abc import Sequence

from vllm_engine.errors import InvalidRequest, RequestFailed
from vllm_engine.logging import get_logger
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.processors import LogitsProcessor

logger = get_logger(__name__)


def check_extra_args(params: SamplingParams, processors: Sequence[type[LogitsProcessor]]) -> None:
    """Let every logits processor look at the parameters of a request.

    Raises:
        InvalidRequest: a processor refuses them, or there is none for which ``extra_args`` could be.
        RequestFailed: a processor fails in another way than by refusing.
    """
    if params.extra_args and not processors:
        raise InvalidRequest(
            "extra_args is for logits processors, and this engine runs without any (logits_processors)",
            field="extra_args",
        )
    for kind in processors:
        try:
            kind.validate_params(params)
        except InvalidRequest:
            raise
        except ValueError as error:
            raise InvalidRequest(str(error), field="extra_args") from error
        except (Exception, SystemExit) as error:  # a user's own code can raise anything
            logger.exception("logits processor %s failed to check a request", kind.__name__)
            raise RequestFailed(f"logits processor {kind.__name__} failed to check the request") from error
