"""An engine that captures its steps as on a GPU, with Triton's interpreter and tensors on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine.fake_cuda import pretend_gpu
from tests.kernels.fake_graphs import FakeRecorder
from vllm_engine import LLM, SamplingParams
from vllm_engine.config.device import DeviceKind
from vllm_engine.execution import worker
from vllm_engine.execution.devices.cpu import CpuDevice
from vllm_engine.execution.graph_use import GraphUse
from vllm_kernels import graphs
from vllm_kernels.backend import choose_faces

FACES = dict.fromkeys(("activation", "add", "cache", "embedding", "linear", "norm", "sampling"), "eager")
FACES |= {"attention": "triton", "rotary": "triton"}
"""What depends on lengths and slots is as on a GPU, all else is torch's own, which takes less time."""

PROMPTS = [[7, 5], [12, 40, 3, 3, 8, 11, 5], [60]]
LENGTHS = [2, 4, 3]

Answers = list[tuple[list[int], list[float]]]
Steps = list[tuple[str, int, int]]


class GpuOfTensors(CpuDevice):
    """A CPU that says that it is a GPU."""

    kind: DeviceKind = "cuda"


def pretend_graphs(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Let engines find a GPU with graphs. Returns the steps that they will run: kind, tokens, padded size."""
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(worker, "device_for", lambda config: GpuOfTensors())
    monkeypatch.setattr(graphs, "recorder_for", lambda device: FakeRecorder())
    steps: Steps = []
    monkeypatch.setattr(GraphUse, "count", lambda self, *step: steps.append(step))
    return steps


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[LLM]:
    """On the GPU that is pretended."""
    settings: dict[str, Any] = {
        "device": "cuda",
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 64,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 2**20,
        "cudagraph_capture_sizes": [1, 4, 16],
    }
    with choose_faces(FACES), LLM(str(model), **settings | options) as llm:
        yield llm


def answers(llm: LLM) -> Answers:
    """Tokens and their log-probabilities: a step with prompts, then steps with a token of three, two and one."""
    params = [
        SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, logprobs=0, detokenize=False)
        for length in LENGTHS
    ]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    found = []
    for output in outputs:
        (answer,) = output.outputs
        chosen = zip(answer.token_ids, answer.logprobs or (), strict=True)
        found.append((list(answer.token_ids), [entry[token].logprob for token, entry in chosen]))
    return found


def same(one: Answers, other: Answers) -> bool:
    """Whether tokens are the same, and log-probabilities but for rounding: padding changes how sums are cut."""
    return all(
        tokens == others and logprobs == pytest.approx(their_logprobs, abs=1e-3)
        for (tokens, logprobs), (others, their_logprobs) in zip(one, other, strict=True)
    )
