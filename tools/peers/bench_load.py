"""One load for two benchmark tools: the same prompts in the same order, and the same options."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy

from vllm_bench.workload.tokenizer_text import TokenizerText


@dataclass(frozen=True)
class BenchLoad:
    """A closed loop of ``streams`` requests at a time; every answer has ``output_len`` tokens."""

    requests: int
    input_len: int
    output_len: int
    streams: int

    def write_prompts(self, tokenizer: Path, path: Path, seed: int) -> None:
        """Write random prompts of ``input_len`` tokens in ShareGPT's form, which both tools read without more packages.

        Args:
            tokenizer: folder of the model's tokenizer.
            path: file to write.
            seed: other prompts for another one.
        """
        text, rng = TokenizerText(tokenizer), numpy.random.default_rng(seed)
        prompts = [text.make(self.input_len, rng).text for _ in range(self.requests)]
        answer = {"from": "gpt", "value": "Both tools leave out a conversation whose answer is short."}
        content = [{"conversations": [{"from": "human", "value": prompt}, answer]} for prompt in prompts]
        path.write_text(json.dumps(content), encoding="utf-8")

    def options(self, url: str, model: str, tokenizer: Path, prompts: Path, result: Path) -> list[str]:
        """The options of ``vllm bench serve``, which are the same words for both tools."""
        return [
            *("--backend", "openai", "--base-url", url, "--model", model, "--tokenizer", str(tokenizer)),
            *("--dataset-name", "sharegpt", "--dataset-path", str(prompts), "--disable-shuffle"),
            *("--sharegpt-output-len", str(self.output_len), "--ignore-eos", "--temperature", "0"),
            # Past its natural end a model makes tokens without text, which one tool counts and the other does not.
            *("--extra-body", json.dumps({"min_tokens": self.output_len})),
            *("--num-prompts", str(self.requests), "--max-concurrency", str(self.streams)),
            *("--num-warmups", str(self.streams), "--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--disable-tqdm", "--save-result"),
            *("--result-dir", str(result.parent), "--result-filename", result.name),
        ]
