"""The metrics of one moment as plain data: they cross processes, are added up, and become the metrics page.

A server of several processes answers ``/metrics`` with the sum of all: each sends ``encode(registry.snapshot())``, and
the one that was asked sends ``render(merge([decode(data) for data in ...]))``. What each process counts for itself is
added; of what all of them hear from the engine, the newest counts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram", "summary", "untyped"]
Combine = Literal["sum", "max", "latest"]
"""How the values of several processes become one: ``latest`` takes those of the snapshot with the last ``moment``."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of the page."""


class Family(msgspec.Struct, array_like=True):
    """One metric with all its series.

    ``name`` is the one on the page: that of a counter ends in ``_total``. ``series`` holds values by the text that
    stands before them on the page, labels included: ``vllm:request_success_total{engine="0",...}``. Buckets of
    histograms are series, too, cumulative as on the page, so that they add up like everything else.
    """

    name: str
    kind: Kind
    help: str
    combine: Combine
    series: dict[str, float]


class Snapshot(msgspec.Struct, array_like=True):
    """All metrics of a process. ``moment``: when it last heard from the engine, in seconds of the monotonic clock, that
    is the same in all processes of a machine; 0 for never.
    """

    moment: float
    families: list[Family]


_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as msgpack, for another process."""
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """What ``encode`` made. Raises ``msgspec.DecodeError`` or ``msgspec.ValidationError`` for anything else."""
    return _decoder.decode(data)


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of several processes of one server. The given ones stay as they are.

    Families stand in the order in which they are met first. A series that only some have is taken from those.
    """
    # The newest last, so that what it says of the engine wins.
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.moment)
    merged: dict[str, Family] = {}
    for snapshot in ordered:
        for family in snapshot.families:
            known = merged.get(family.name)
            if known is None:
                merged[family.name] = msgspec.structs.replace(family, series=dict(family.series))
            else:
                _combine(known.series, family.series, known.combine)
    return Snapshot(ordered[-1].moment if ordered else 0.0, list(merged.values()))


def _combine(into: dict[str, float], series: Mapping[str, float], how: Combine) -> None:
    if how == "latest":
        into.update(series)
    elif how == "max":
        for key, value in series.items():
            into[key] = max(value, into.get(key, -math.inf))
    else:
        for key, value in series.items():
            into[key] = into.get(key, 0) + value


def render(snapshot: Snapshot) -> bytes:
    """The page in Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for family in snapshot.families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [f"{key} {number(value)}" for key, value in family.series.items()]
    lines.append("")
    return "\n".join(lines).encode()


def number(value: float) -> str:
    """A value as the format writes it."""
    if value == math.inf:
        return "+Inf"
    if value == -math.inf:
        return "-Inf"
    return "NaN" if value != value else repr(float(value))


def series_key(name: str, labels: Sequence[str] = (), values: Sequence[str] = ()) -> str:
    """What stands before a value: the name, and in braces the labels with their values, escaped."""
    if not labels:
        return name
    pairs = (f'{label}="{_quoted(value)}"' for label, value in zip(labels, values, strict=True))
    return f"{name}{{{','.join(pairs)}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    # A lone surrogate, which a name given in an argument may hold, must not keep the page from being encoded.
    return _escaped(text).replace('"', '\\"').encode("utf-8", "replace").decode()
