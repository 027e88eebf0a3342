"""Stop strings against a plain search in the whole text."""

from hypothesis import example, given
from hypothesis import strategies as st

from vllm_engine.frontend.stop_strings import StopStrings

PIECES = st.lists(st.text(alphabet="ab", max_size=4), max_size=14)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=4)


def search(pieces: list[str], stops: list[str], inactive: int = 0) -> tuple[int, str, int] | None:
    """Start, string and number of pieces read of the first stop, by looking at the whole text after each piece."""
    text = ""
    for count, piece in enumerate(pieces, start=1):
        before, text = len(text), text + piece
        if count <= inactive:
            continue
        found = [
            (start, len(stop), stop)
            for stop in stops
            for start in range(len(text))
            if text.startswith(stop, start) and start + len(stop) > before
        ]
        if found:
            start, _, stop = min(found)
            return start, stop, count
    return None


@given(PIECES, STOPS, st.booleans())
@example(["aab", "ab"], ["abab", "b"], False)
def test_the_text_ends_where_a_search_in_all_of_it_finds_the_earliest_stop(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    matcher = StopStrings(stops, include=include)
    expected = search(pieces, stops)
    text = ""
    for count, piece in enumerate(pieces, start=1):
        released, stop = matcher.feed(piece)
        text += released
        if stop is not None:
            assert expected is not None
            start, expected_stop, expected_count = expected
            assert (stop, count) == (expected_stop, expected_count)
            assert text == "".join(pieces)[: start + (len(stop) if include else 0)]
            return
    assert expected is None
    assert text + matcher.flush() == "".join(pieces)


@given(PIECES, STOPS)
def test_exactly_the_text_that_may_begin_a_stop_string_waits(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops, include=False)
    text = released = ""
    for piece in pieces:
        new, stop = matcher.feed(piece)
        if stop is not None:
            return
        text, released = text + piece, released + new
        waits = max(
            length for stop in stops for length in range(len(stop)) if text.endswith(stop[:length])
        )  # an empty beginning always fits
        assert released == text[: len(text) - waits]


@given(PIECES, STOPS, st.integers(0, 8))
def test_a_stop_string_that_ends_while_inactive_does_not_count_later(
    pieces: list[str], stops: list[str], inactive: int
) -> None:
    matcher = StopStrings(stops, include=True)
    expected = search(pieces, stops, inactive)
    for count, piece in enumerate(pieces, start=1):
        _, stop = matcher.feed(piece, active=count > inactive)
        if stop is not None:
            assert expected is not None
            assert (stop, count) == expected[1:]
            return
    assert expected is None


def test_of_two_stops_that_begin_together_the_shorter_one_is_reported() -> None:
    assert StopStrings(["abc", "ab"], include=True).feed("xabcd") == ("xab", "ab")


def test_without_stop_strings_all_text_goes_out_at_once() -> None:
    stops = StopStrings([], include=False)
    assert stops.feed("abc") == ("abc", None)
    assert stops.flush() == ""
