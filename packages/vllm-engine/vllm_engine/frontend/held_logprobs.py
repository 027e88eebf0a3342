"""How many log-probabilities are held for answers that their clients have not got yet, by all requests together."""

from vllm_engine.errors import InvalidRequest, Overloaded


class HeldLogprobs:
    """A bound for all: one takes some 400 bytes, so that one request for whole answers could take all memory.

    Where too many are held, who holds more than an even share of the bound gets no more: so a small request need not
    fear a large one.
    """

    def __init__(self, most: int | None) -> None:
        """``most``: the bound; None is none."""
        self._most = most
        self._total = 0
        self._num_holding = 0

    def hold(self) -> "Holding":
        """The share of one answer, empty at first."""
        return Holding(self)

    def _change(self, before: int, after: int) -> None:
        self._total += after - before
        self._num_holding += (after > 0) - (before > 0)

    def _check(self, own: int, field: str) -> None:
        most = self._most
        if most is None or self._total <= most or own * self._num_holding <= most:
            return
        if own > most:
            raise InvalidRequest(
                f"{field}: an answer may hold {most} log-probabilities until it is sent, and this one has more: ask "
                "for fewer of them, for a shorter answer, or for a stream",
                field=field,
            )
        raise Overloaded(f"more than {most} log-probabilities are held for answers that are not sent yet")


class Holding:
    """What one answer holds."""

    __slots__ = ("_all", "_count")

    def __init__(self, held: HeldLogprobs) -> None:
        self._all = held
        self._count = 0

    @property
    def count(self) -> int:
        """How many."""
        return self._count

    def add(self, count: int, field: str = "logprobs") -> None:
        """Hold so many more, which ``field`` of the request asked for.

        Raises:
            InvalidRequest: when these are too many for one.
            Overloaded: when all hold too many, and this one more than an even share. They are held all the same.
        """
        self._set(self._count + count)
        self._all._check(self._count, field)

    def clear(self) -> None:
        """Hold nothing any more. Called for each output of a stream, most of which have none."""
        if self._count:
            self._set(0)

    def _set(self, count: int) -> None:
        self._all._change(self._count, count)
        self._count = count
