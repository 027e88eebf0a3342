"""Streams that are read when the load is over come to the same records as those that are read as they come."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bench.endpoints.chat import Chat
from vllm_bench.endpoints.completions import Completions
from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.endpoints.responses import Responses
from vllm_bench.load.answers import Stream, Unread
from vllm_bench.records import RequestRecord

DONE = "[DONE]"
ERROR = {"error": {"message": "the engine stumbled"}}


def event(content: object) -> bytes:
    return b"data: " + (content if isinstance(content, str) else json.dumps(content)).encode() + b"\n\n"


def token(text: str, finish: str | None = None) -> dict:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": None}


def usage(tokens: int) -> dict:
    return {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


def completion(*texts: str) -> list[bytes]:
    """Pieces of a whole answer, each with one event."""
    return [*(event(token(text)) for text in texts), event(usage(len(texts))), event(DONE)]


def read(pieces: Sequence[bytes], unread: Unread | None, *, endpoint: Endpoint | None = None) -> RequestRecord:
    """The record of a stream whose ``pieces`` came a second apart."""
    record = RequestRecord(0.0, 0.0)
    stream = Stream(endpoint or Completions(), record, unread)
    for number, data in enumerate(pieces):
        stream.on_data(200, float(number), data)
    stream.end()
    return record


def at_its_end(pieces: Sequence[bytes], *, limit: int = 10**6) -> tuple[RequestRecord, RequestRecord]:
    """What is known of it then, and all of it: the first has what the second has."""
    unread = Unread(limit)
    early = read(pieces, unread)
    known = RequestRecord(0.0, 0.0, text_times=[*early.text_times], announced_tokens=early.announced_tokens)
    known.error = early.error
    unread.read()
    assert unread.size == 0
    assert not early.unread
    return known, early


PIECES = st.lists(
    st.one_of(
        st.text(max_size=4).map(lambda text: event(token(text))),
        st.sampled_from([event(ERROR), event(DONE), event(usage(4)), event("no JSON"), event({}), b": kept alive\n\n"]),
        st.sampled_from([b"da", b"data: {", b"\r\n\r\n", b"data:\n"]),
    ),
    max_size=8,
)
ENDS = st.sampled_from([[], [event(DONE)], [event(usage(4)), event(DONE)], [event(usage(0)) + event(DONE)]])


@given(pieces=PIECES, ends=ENDS, limit=st.sampled_from([0, 100, 10**6]), cut=st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_the_moment_of_reading_changes_nothing(pieces: list[bytes], ends: list[bytes], limit: int, cut: int):
    whole = pieces + ends
    joined = b"".join(whole)
    for parts in (whole, [joined[begin : begin + cut] for begin in range(0, len(joined), cut)]):
        assert at_its_end(parts, limit=limit)[1] == read(parts, None)


def test_of_a_complete_answer_only_the_end_is_read_at_once():
    known, record = at_its_end(completion("a", "b", "c", "d"))
    assert (known.text_times, known.announced_tokens, known.error) == ([], 4, None)
    assert (record.text_times, record.texts) == ([0.0, 1.0, 2.0, 3.0], ["a", "b", "c", "d"])
    assert (record.prompt_tokens, record.completion_tokens, record.finished) == (3, 4, True)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([*completion("a", "b", "c")[:-2], event(ERROR), event(DONE)], "the engine stumbled"),
        ([*completion("a", "b", "c")[:-2], event(ERROR) + event(DONE)], "the engine stumbled"),
        (completion("a", "b", "c")[:-1], "without [DONE]"),
        ([event("{"), event(DONE)], "not what /v1/completions answers"),
        (completion(), "no text"),
    ],
    ids=["error", "error in one piece", "cut off", "nonsense", "nothing"],
)
def test_what_is_wrong_with_an_answer_is_known_at_its_end(pieces: list[bytes], said: str):
    known, record = at_its_end(pieces)
    assert said in known.error
    assert record.error == known.error


def test_what_is_wrong_in_the_middle_is_found_in_the_end():
    known, record = at_its_end([event(token("a")), event({"choices": 1}), *completion("b")])
    assert known.error is None
    assert "TypeError" in record.error
    assert record.text_times == [0.0]


def test_a_response_has_its_count_in_its_last_event():
    ends = {"response": {"usage": {"input_tokens": 3, "output_tokens": 5}}, "type": "response.completed"}
    events = [{"type": "response.output_text.delta", "delta": "x"}] * 5
    unread = Unread()
    record = read([event(each) for each in (*events, ends)], unread, endpoint=Responses())
    assert (record.announced_tokens, record.text_times) == (5, [])
    unread.read()
    assert (record.prompt_tokens, record.text_times, record.error) == (3, [0.0, 1.0, 2.0, 3.0, 4.0], None)


def test_a_chat_without_usage_is_counted_by_its_chunks():
    unread = Unread()
    events = [{"choices": [{"delta": {"content": "x"}, "finish_reason": None}]}] * 5
    record = read([*map(event, events), event(DONE)], unread, endpoint=Chat())
    assert record.announced_tokens is None
    unread.read()
    assert record.output_tokens == 5


def test_beyond_the_limit_pieces_are_read_as_they_come_and_earlier_ones_beside_them():
    pieces = completion(*"abcdefghij")
    unread = Unread(limit=sum(map(len, pieces[:6])))
    record = RequestRecord(0.0, 0.0)
    stream = Stream(Completions(), record, unread)
    waiting = []
    for number, data in enumerate(pieces):
        stream.on_data(200, float(number), data)
        waiting.append(len(record.unread))
        assert unread.size == sum(len(data) for _, data in record.unread) <= unread.limit
    assert max(waiting) == 6
    stream.end()
    unread.read()
    assert record == read(pieces, None)


def test_what_came_of_a_broken_answer_is_read():
    unread = Unread()
    record = RequestRecord(0.0, 0.0)
    stream = Stream(Completions(), record, unread)
    for number, data in enumerate(completion("a", "b", "c", "d")[:4]):
        stream.on_data(200, float(number), data)
    stream.break_off("the connection broke")
    assert (record.text_times, record.error) == ([0.0, 1.0, 2.0, 3.0], "the connection broke")


def test_an_error_in_a_broken_answer_is_the_one_that_counts():
    record = RequestRecord(0.0, 0.0)
    stream = Stream(Completions(), record, Unread())
    stream.on_data(200, 0.0, event(ERROR))
    stream.break_off("the connection broke")
    assert "the engine stumbled" in record.error
