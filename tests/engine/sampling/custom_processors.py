"""Logits processors as a user writes them: some that work, and some that fail in every way."""

from collections.abc import Sequence

import torch

from vllm_engine.config import EngineConfig
from vllm_engine.errors import InvalidRequest
from vllm_engine.params import SamplingParams
from vllm_engine.sampling.processors import LogitsProcessor, RequestLogitsProcessor


class Steer(LogitsProcessor):
    """``extra_args={"steer": strength}``: makes a token likelier that follows from everything that it is told."""

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        steer = (params.extra_args or {}).get("steer", 0)
        if not isinstance(steer, (int, float)):
            raise ValueError("extra_args.steer must be a number")
        if steer < 0:
            raise InvalidRequest("extra_args.steer must be at least 0", field="extra_args.steer")
        if steer > 1000:
            raise KeyError("steer")

    def new_req_logits_processor(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> RequestLogitsProcessor | None:
        strength = (params.extra_args or {}).get("steer")
        if not strength:
            return None
        start = sum(prompt_token_ids)

        def steer(output_token_ids: Sequence[int], logits: torch.Tensor) -> None:
            logits[(start + 31 * len(output_token_ids) + 7 * sum(output_token_ids)) % len(logits)] += strength

        return steer


class Double(LogitsProcessor):
    """Doubles the logits of all requests, or multiplies them by the ``factor`` of ``additional_config``."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._factor = float(config.additional_config.get("factor", 2.0))

    def new_req_logits_processor(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> RequestLogitsProcessor:
        return lambda output_token_ids, logits: logits * self._factor


class Break(LogitsProcessor):
    """``extra_args={"break": how}``: fails at the third token; ``"at once"`` when the request begins."""

    def new_req_logits_processor(
        self, params: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> RequestLogitsProcessor | None:
        how = (params.extra_args or {}).get("break")
        if how == "at once":
            raise ZeroDivisionError("no such request")

        def spoil(output_token_ids: Sequence[int], logits: torch.Tensor) -> object:
            if len(output_token_ids) < 2:
                return logits
            match how:
                case "raise":
                    logits.fill_(torch.nan)
                    raise RuntimeError("lost my way")
                case "exit":
                    raise SystemExit(3)
                case "shape":
                    return logits[None]
                case "length":
                    return logits[:-1]
                case "dtype":
                    return logits.double()
                case "type":
                    return logits.tolist()
                case "nan":
                    logits[1] = torch.nan
                case "infinity":
                    logits[1] = torch.inf
                case "huge":
                    logits[1] = 3e38
                case "nothing":
                    return torch.full_like(logits, -torch.inf)
            return None

        return spoil if how else None  # type: ignore[return-value]


class NeedsFactor(Double):
    """Cannot be set up without ``additional_config``."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        if "factor" not in config.additional_config:
            raise LookupError("additional_config has no factor")
