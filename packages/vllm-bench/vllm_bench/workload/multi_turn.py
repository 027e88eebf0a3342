"""``--dataset-name multi_turn``: what people asked in a file's conversations, turn by turn, with the server's answers.

Each request holds the conversation so far: the file's questions and what the server under test said to them, so that
the prompt of a turn begins with that of the turn before, as in a real chat.
"""

import itertools
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_bench import option_types
from vllm_bench.workload import file_options
from vllm_bench.workload.conversations import Turn, read_conversations
from vllm_bench.workload.item import Messages, WorkItem
from vllm_bench.workload.text import TextSource
from vllm_cli.commands.connection import positive_integer

if TYPE_CHECKING:
    import numpy

_FRAME_TOKENS = 8
"""Roughly what a chat template adds to a message."""


class _Question(NamedTuple):
    """One turn of the user."""

    text: str
    output_len: int
    """Most tokens of its answer."""


class MultiTurn:
    """See ``Dataset``. An item is a conversation."""

    def add_arguments(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """``--multi-turn-...``."""
        parser.add_argument(
            "--multi-turn-max-turns",
            type=positive_integer,
            metavar="N",
            help="multi_turn: most questions of a conversation (default: all in the file). The file is as for "
            "sharegpt, an answer may be as long as the file's, and --num-prompts counts conversations",
        )
        parser.add_argument(
            "--multi-turn-delay-ms",
            type=option_types.count,
            default=0,
            metavar="MS",
            help="multi_turn: the user's time to think between an answer and the next question; a place among "
            "--max-concurrency is kept meanwhile (default: %(default)s)",
        )
        parser.add_argument(
            "--multi-turn-max-tokens",
            type=positive_integer,
            default=2048,
            metavar="TOKENS",
            help="multi_turn: a conversation ends before a turn that could become longer than this with all that went "
            "before (default: %(default)s)",
        )

    def items(self, options: Namespace, text: TextSource, rng: "numpy.random.Generator") -> Iterator[WorkItem]:
        """See ``Dataset``."""
        conversations = list(read_conversations(file_options.dataset_file(options)))
        items = (_conversation(turns, options, text) for turns in file_options.ordered(conversations, options, rng))
        return file_options.oversampled((item for item in items if item is not None), options)


def _conversation(turns: list[Turn], options: Namespace, text: TextSource) -> WorkItem | None:
    """Its first question, from which the others follow; None where nothing of it fits."""
    begin = [{"role": "system", "content": turn.text} for turn in turns[:1] if turn.role == "system"]
    room = options.multi_turn_max_tokens - sum(_tokens(message["content"], text) for message in begin)
    questions: list[_Question] = []
    for turn, answer in itertools.pairwise(turns):
        if turn.role != "user" or answer.role != "assistant" or not turn.text:
            continue
        if len(questions) == options.multi_turn_max_turns:
            break
        question = _Question(turn.text, options.output_len or max(1, _tokens(answer.text, text) - _FRAME_TOKENS))
        room -= _tokens(turn.text, text) + question.output_len + _FRAME_TOKENS
        if room < 0:
            break
        questions.append(question)
    if not questions:
        return None
    return _ask(begin, questions, 0, options.multi_turn_delay_ms / 1e3, None)


def _ask(
    said: list[dict[str, Any]], questions: list[_Question], number: int, delay: float, offset: float | None
) -> WorkItem:
    """Question ``number`` after all that was said, and what follows from its answer."""
    question = questions[number]
    messages = Messages([*said, {"role": "user", "content": question.text}])
    if number + 1 == len(questions):
        return WorkItem(messages, output_len=question.output_len, offset=offset)

    def follow_up(answer: str) -> WorkItem:
        return _ask([*messages, {"role": "assistant", "content": answer}], questions, number + 1, delay, delay)

    return WorkItem(messages, output_len=question.output_len, offset=offset, follow_up=follow_up)


def _tokens(content: str, text: TextSource) -> int:
    """Of a message with its frame; without a counter, a word stands for a token."""
    count = text.count(content)
    return (len(content.split()) if count is None else count) + _FRAME_TOKENS


DATASET = MultiTurn()
