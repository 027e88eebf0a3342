"""A workload as the engine's own requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_bench.workload.item import Messages, WorkItem
from vllm_cli.command import CommandError

if TYPE_CHECKING:
    from vllm_engine.frontend.prompts import Prompt
    from vllm_engine.params import SamplingParams

Conversation = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class OfflineRequests:
    """Requests that are given to the engine at once: ``prompts`` or else ``conversations``, and parameters of each."""

    prompts: "list[Prompt]"
    conversations: list[Conversation]
    params: "list[SamplingParams]"

    @property
    def wanted_lengths(self) -> list[int | None]:
        """Tokens of each answer; None where the dataset leaves it to the model."""
        return [params.max_tokens for params in self.params]


def check_items(items: Sequence[WorkItem]) -> None:
    """Raise ``CommandError`` (exit code 2) for what only a client of a server can do."""
    for item in items:
        if item.follow_up is not None:
            raise CommandError("conversations of several turns need a server: `vllm bench serve`", exit_code=2)
        if item.offset is not None:
            raise CommandError("requests with moments of their own need a server: `vllm bench serve`", exit_code=2)
        if item.extra:
            raise CommandError(f"requests with fields ({', '.join(item.extra)}) need `vllm bench serve`", exit_code=2)


def requests_of(
    items: Sequence[WorkItem],
    *,
    chat: bool,
    n: int,
    detokenize: bool,
    stream: bool,
    render: Callable[[Conversation], str],
) -> OfflineRequests:
    """The requests of ``items``; an answer has exactly as many tokens as its item says.

    Args:
        items: the workload.
        chat: as conversations, which the engine renders while the clock runs; else as prompts.
        n: answers to each.
        detokenize: turn tokens into text.
        stream: outputs hold what is new, else they come when all is there.
        render: makes the text of a conversation, for items that are one, where prompts are wanted.

    Raises:
        CommandError: (exit code 2) an item's prompt is none for generating, or token ids, of which ``chat`` takes none.
    """
    from vllm_engine.params import OutputKind, SamplingParams

    params = [
        SamplingParams(
            n=n,
            max_tokens=item.output_len,
            ignore_eos=item.output_len is not None,
            detokenize=detokenize,
            output_kind=OutputKind.DELTA if stream else OutputKind.FINAL_ONLY,
        )
        for item in items
    ]
    if chat:
        return OfflineRequests([], [_conversation(item) for item in items], params)
    return OfflineRequests([_prompt(item, render) for item in items], [], params)


def _prompt(item: WorkItem, render: Callable[[Conversation], str]) -> "Prompt":
    if isinstance(item.prompt, Messages):
        # The template has put the special tokens in already.
        return {"prompt": render(list(item.prompt)), "add_special_tokens": False}
    if isinstance(item.prompt, (str, list)):
        return item.prompt
    raise CommandError("texts to embed or to rank need a server: `vllm bench serve`", exit_code=2)


def _conversation(item: WorkItem) -> Conversation:
    if isinstance(item.prompt, Messages):
        return list(item.prompt)
    if isinstance(item.prompt, str):
        return [{"role": "user", "content": item.prompt}]
    raise CommandError("--backend vllm-chat takes conversations and texts; --backend vllm takes others", exit_code=2)
