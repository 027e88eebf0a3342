"""Finding stop strings in text that comes in pieces, without letting any part of one out too early."""

from collections.abc import Sequence


class StopStrings:
    """The text of one completion on its way out.

    Text goes out as soon as it cannot belong to a stop string any more; the end that is the beginning of one waits.
    Each character costs one step per stop string (Knuth, Morris, Pratt 1977), however long the strings are.
    """

    __slots__ = ("_held", "_include", "_matchers")

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        """``include``: the stop string itself stays at the end of the text."""
        self._matchers = [_Matcher(stop) for stop in dict.fromkeys(stops)]
        self._include = include
        self._held = ""

    def feed(self, text: str, *, active: bool = True) -> tuple[str, str | None]:
        """Add text; returns the text that may go out, and the stop string that ended it.

        The stop string that begins first wins; of two that begin together, the shorter. With ``active=False``
        a stop string that ends in ``text`` does not count; one that only begins there can still end later.
        """
        if not self._matchers:
            return text, None
        if not text:
            return "", None
        begin = len(self._held)
        buffer = self._held + text
        best: tuple[int, int, str] | None = None
        for matcher in self._matchers:
            end = matcher.feed(text, stop_at_match=active)
            if end is not None:
                found = (begin + end - len(matcher.stop), len(matcher.stop), matcher.stop)
                best = found if best is None else min(best, found)
        if best is not None:
            start, length, stop = best
            self._held = ""
            return buffer[: start + length if self._include else start], stop
        released = len(buffer) - max(matcher.depth for matcher in self._matchers)
        self._held = buffer[released:]
        return buffer[:released], None

    def flush(self) -> str:
        """The text that still waits, when no more comes."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """One stop string. ``depth`` is the length of its longest beginning that the text so far ends with."""

    __slots__ = ("_borders", "depth", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.depth = 0
        # _borders[i]: length of the longest proper prefix of stop[:i+1] that is its suffix too. It grows only as deep
        # as the text matches, so that a long stop string costs nothing up front.
        self._borders = [0]

    def feed(self, text: str, *, stop_at_match: bool) -> int | None:
        """Go through text; the end of the first match in it, if matches count, else None."""
        stop, borders, depth = self.stop, self._borders, self.depth
        position = 0
        while position < len(text):
            if depth == 0:
                position = text.find(stop[0], position)
                if position < 0:
                    break
            char = text[position]
            while depth and stop[depth] != char:
                depth = borders[depth - 1]
            if stop[depth] == char:
                depth += 1
                if depth > len(borders):
                    self._extend()
            position += 1
            if depth == len(stop):
                if stop_at_match:
                    return position
                depth = borders[depth - 1]
        self.depth = depth
        return None

    def _extend(self) -> None:
        """The next entry of the border table."""
        stop, borders = self.stop, self._borders
        char = stop[len(borders)]
        border = borders[-1]
        while border and stop[border] != char:
            border = borders[border - 1]
        borders.append(border + 1 if stop[border] == char else 0)
