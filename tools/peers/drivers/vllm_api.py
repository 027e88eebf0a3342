"""Runs a program with the class ``LLM`` of vLLM's Python API: ``python vllm_api.py vllm_engine`` is ours."""

import importlib
import sys
import time
from typing import Any

from command_loop import check_lengths, serve


class Engine:
    """One model and the commands about it."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._llm: Any = None

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Import the program and load a checkpoint with these options of ``LLM``."""
        start = time.perf_counter()
        self._llm = importlib.import_module(self._module).LLM(model=model, **options)
        return {"seconds": time.perf_counter() - start}

    def generate(self, prompts: list[list[int]], output_len: int) -> dict[str, Any]:
        """Greedy tokens for prompts of token ids, all requests at once; seconds of the whole."""
        sampling = importlib.import_module(self._module).SamplingParams(
            temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False
        )
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        start = time.perf_counter()
        results = self._llm.generate(requests, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        check_lengths([len(result.outputs[0].token_ids) for result in results], len(prompts), output_len)
        return {"seconds": seconds}


if __name__ == "__main__":
    engine = Engine(sys.argv[1])
    serve({"load": engine.load, "generate": engine.generate})
