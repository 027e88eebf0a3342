"""One load for two benchmark tools: the same prompts in the same order, and the same options."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy

from vllm_bench.workload.tokenizer_text import TokenizerText


@dataclass(frozen=True)
class BenchLoad:
    """A closed loop of ``streams`` requests at a time.

    Lengths are uniform within half and one and a half times the means: with equal ones the streams keep in step, and
    what one finds then depends on which step that is.
    """

    requests: int
    input_len: int
    output_len: int
    streams: int

    def write_prompts(self, tokenizer: Path, path: Path, seed: int) -> None:
        """Write random prompts and answers in ShareGPT's form, which both tools read without more packages.

        Of an answer they take the number of its tokens.

        Args:
            tokenizer: folder of the model's tokenizer.
            path: file to write.
            seed: other prompts for another one.
        """
        text, rng = TokenizerText(tokenizer), numpy.random.default_rng(seed)

        def say(who: str, mean: int) -> dict[str, str]:
            return {"from": who, "value": text.make(int(rng.integers(mean // 2, mean + mean // 2 + 1)), rng).text}

        turns = [[say("human", self.input_len), say("gpt", self.output_len)] for _ in range(self.requests)]
        content = [{"conversations": each} for each in turns]
        path.write_text(json.dumps(content), encoding="utf-8")

    def options(self, url: str, model: str, tokenizer: Path, prompts: Path, result: Path) -> list[str]:
        """The options of ``vllm bench serve``, which are the same words for both tools."""
        return [
            *("--backend", "openai", "--base-url", url, "--model", model, "--tokenizer", str(tokenizer)),
            *("--dataset-name", "sharegpt", "--dataset-path", str(prompts), "--disable-shuffle"),
            *("--ignore-eos", "--temperature", "0"),
            *("--num-prompts", str(self.requests), "--max-concurrency", str(self.streams)),
            *("--num-warmups", str(self.streams), "--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--disable-tqdm", "--save-result"),
            *("--result-dir", str(result.parent), "--result-filename", result.name),
        ]
