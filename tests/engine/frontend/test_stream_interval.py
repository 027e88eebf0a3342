"""``stream_interval``: fewer parts of a stream, the same text."""

import pytest

from vllm_engine.frontend.output_processor import OutputProcessor
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind

from .test_output_processor import EOS, TOKENIZER, Run, ids

STREAMS = [OutputKind.DELTA, OutputKind.CUMULATIVE]


def stream(interval: int, **params: object) -> Run:
    run = Run(**params)
    run.outputs = OutputProcessor(TOKENIZER, stream_interval=interval)
    run.outputs.add(run.prepared)
    return run


def sizes(outputs: list[RequestOutput], kind: OutputKind) -> list[int]:
    """New tokens of each part."""
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    if kind is OutputKind.DELTA:
        return lengths
    return [length - before for length, before in zip(lengths, [0, *lengths], strict=False)]


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(
    ("interval", "expected"), [(1, [1] * 12), (3, [1, 3, 3, 3, 2]), (5, [1, 5, 5, 1]), (99, [1, 11])]
)
def test_the_first_token_and_the_end_come_at_once_and_the_rest_in_parts(
    kind: OutputKind, interval: int, expected: list[int]
) -> None:
    run = stream(interval, output_kind=kind, logprobs=None)
    tokens = ids("the cat 😀 sat 你好 on the mat")[:11]
    tokens += [tokens[0]] * (11 - len(tokens))
    for token in tokens:
        run.feed(token)
    run.feed(EOS, finish_reason="stop")
    assert sizes(run.seen, kind) == expected
    assert run.token_ids() == [*tokens, EOS]
    assert run.text() == TOKENIZER.decode(tokens)
    assert [output.finished for output in run.seen] == [False] * (len(expected) - 1) + [True]


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_stream_at_once_with_the_text_of_an_unthrottled_one(
    kind: OutputKind, include: bool
) -> None:
    runs = [stream(n, output_kind=kind, stop=["sat on"], include_stop_str_in_output=include) for n in (1, 4)]
    for run in runs:
        for token in ids("the cat sat on the mat"):
            if run.aborts:
                break
            run.feed(token)
        assert run.seen[-1].finished and run.seen[-1].outputs[0].stop_reason == "sat on"
    assert runs[0].text() == runs[1].text() and runs[0].token_ids() == runs[1].token_ids()
    assert len(runs[0].seen) > len(runs[1].seen)


def test_each_completion_of_a_request_has_its_own_count() -> None:
    run = stream(3, output_kind=OutputKind.DELTA, n=2)
    cat = ids("the cat sat on the mat")
    for position in range(4):
        run.feed(cat[position])
        run.feed(cat[position], index=1)
    run.feed(cat[4], index=1)
    parts = [(completion.index, len(completion.token_ids)) for output in run.seen for completion in output.outputs]
    assert parts == [(0, 1), (1, 1), (0, 3), (1, 3)]
    run.feed(EOS, index=1, finish_reason="stop")
    run.feed(EOS, finish_reason="stop")
    assert run.token_ids(1) == [*cat[:5], EOS] and run.token_ids(0) == [*cat[:4], EOS]


def test_an_abort_gives_out_what_was_held_back() -> None:
    run = stream(50, output_kind=OutputKind.DELTA)
    tokens = ids("the cat sat on the mat")
    for token in tokens:
        run.feed(token)
    _, result = run.outputs.abort(["r"])
    run.seen += result.outputs
    assert run.token_ids() == tokens and run.seen[-1].outputs[0].finish_reason == "abort"


def test_the_statistics_do_not_wait_for_the_parts() -> None:
    run = stream(50, output_kind=OutputKind.DELTA)
    counted = 0
    for token in ids("the cat sat on the mat"):
        run.feed(token)
        counted += run.last.totals.num_generation_tokens
    assert counted == len(ids("the cat sat on the mat"))


def test_a_final_output_is_the_same() -> None:
    run = stream(4, output_kind=OutputKind.FINAL_ONLY)
    tokens = ids("the cat sat on the mat")
    for token in tokens:
        run.feed(token)
    assert run.seen == []
    run.feed(EOS, finish_reason="stop")
    assert run.token_ids() == [*tokens, EOS]
