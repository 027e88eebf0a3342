"""Runs OpenVINO GenAI: its pipeline for many requests, which it also uses for a single one."""

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from command_loop import check_lengths, serve


class Engine:
    """One model and the commands about it."""

    def __init__(self) -> None:
        self._pipeline: Any = None

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Load a converted model with these attributes of ``SchedulerConfig``."""
        start = time.perf_counter()
        scheduler = openvino_genai.SchedulerConfig()
        for name, value in options.items():
            setattr(scheduler, name, value)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
        return {"seconds": time.perf_counter() - start}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        """Greedy tokens for prompts of token ids, all requests at once; seconds of the whole."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        tensors = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        start = time.perf_counter()
        results = self._pipeline.generate(tensors, [config] * len(prompts))
        seconds = time.perf_counter() - start
        check_lengths([len(result.m_generation_ids[0]) for result in results], len(prompts), output_len)
        return {"seconds": seconds}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "generate": engine.generate})
