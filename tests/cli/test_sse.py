import itertools

from hypothesis import given
from hypothesis import strategies as st

from vllm_cli.sse import ServerSentEvent, SSEDecoder


def decode(*chunks: bytes) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def test_an_event_is_given_out_when_its_empty_line_arrives():
    decoder = SSEDecoder()
    assert decoder.feed(b"data: one\n") == []
    assert decoder.feed(b"\n") == [ServerSentEvent("one")]


def test_data_lines_of_one_event_are_joined_by_newlines():
    assert decode(b"data: a\ndata:\ndata: b\n\n") == [ServerSentEvent("a\n\nb")]


def test_only_one_space_after_the_colon_belongs_to_the_syntax():
    assert decode(b"data:  two spaces\n\ndata:none\n\n") == [ServerSentEvent(" two spaces"), ServerSentEvent("none")]


def test_comments_and_unknown_fields_are_skipped():
    assert decode(b": ping\n\nid: 3\nretry: 10\nfoo: bar\ndata: x\n: pong\n\n") == [ServerSentEvent("x")]


def test_the_event_name_holds_for_one_event_only():
    assert decode(b"event: error\ndata: x\n\ndata: y\n\n") == [ServerSentEvent("x", "error"), ServerSentEvent("y")]


def test_a_named_event_without_data_is_dropped_with_its_name():
    assert decode(b"event: error\n\ndata: y\n\n") == [ServerSentEvent("y")]


def test_an_event_that_is_not_closed_is_never_given_out():
    assert decode(b"data: x\n\ndata: unfinished\n") == [ServerSentEvent("x")]


def test_a_byte_order_mark_at_the_start_is_skipped():
    assert decode(b"\xef\xbb\xbfdata: x\n\n") == [ServerSentEvent("x")]


def test_a_line_ends_at_cr_lf_or_both():
    assert decode(b"data: a\r\n\r\ndata: b\r\rdata: c\n\n") == [ServerSentEvent(text) for text in "abc"]


def test_a_crlf_cut_between_its_bytes_ends_one_line():
    assert decode(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [ServerSentEvent("a\nb")]


STREAM = ": hi\r\ndata: grün\r\ndata: 漢字\r\n\r\nevent: e\ndata: x\n\ndata: [DONE]\r\r".encode()


@given(st.sets(st.integers(0, len(STREAM))))
def test_events_do_not_depend_on_where_the_network_cuts(cuts: set[int]):
    borders = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in itertools.pairwise(borders)]
    assert decode(*chunks) == [
        ServerSentEvent("grün\n漢字"),
        ServerSentEvent("x", "e"),
        ServerSentEvent("[DONE]"),
    ]
