"""What all pictures share: style, colours, titles, and their way to a file. ``matplotlib`` is imported here alone."""

import base64
import io
import math
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_cli.command import CommandError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
"""Of Okabe and Ito, told apart by nearly every eye; the yellow is darker, as the ground is white."""
LINES = ("-", "--", "-.", ":")
"""Beside colours, for those who see none."""
GREY = "#6B6B6B"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with the library
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": "#1A1A1A",
    "axes.labelcolor": "#1A1A1A",
    "text.parse_math": False,  # a name may hold a $
    "svg.fonttype": "path",  # looks the same everywhere
    "svg.hashsalt": "vllm-bench",  # the same picture gives the same file
}
_DPI = 150
_HEAD_INCHES = 0.42
_LINE_INCHES = 0.19
_LETTERS_PER_INCH = 13.5


@contextmanager
def sheet(
    title: str, lines: list[str], rows: int, columns: int, size: tuple[float, float], **how: Any
) -> Iterator[tuple["Figure", Any]]:
    """A figure with a title, smaller lines below it, and a grid of axes of shape [rows, columns].

    Args:
        size: inches; what the title needs is added.
        how: more for ``Figure.subplots``.

    Raises:
        CommandError: (exit code 2) ``matplotlib`` is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError(f'pictures need: pip install "vllm-bench[plots]" ({error})', exit_code=2) from error
    width = size[0]
    small = [part for line in lines for part in textwrap.wrap(line, int(width * _LETTERS_PER_INCH))]
    head = _HEAD_INCHES + _LINE_INCHES * len(small)
    height = size[1] + head
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head / height))  # type: ignore[union-attr, call-arg]
        figure.text(0.1 / width, 1 - 0.1 / height, title, va="top", fontsize=13, fontweight="bold")
        for number, line in enumerate(small):
            top = 1 - (_HEAD_INCHES - 0.04 + _LINE_INCHES * number) / height
            figure.text(0.1 / width, top, line, va="top", fontsize=9.5, color=GREY)
        yield figure, figure.subplots(rows, columns, squeeze=False, **how)
        # The layout is worked out once, not for each file, and without drawing anything.
        figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
        figure.set_layout_engine("none")


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    return _saved(figure, "png", {"Software": None})


def svg_uri(figure: "Figure") -> str:
    """The figure as a ``data:`` URI of an SVG picture."""
    content = _saved(figure, "svg", dict.fromkeys(("Date", "Creator", "Format", "Type")))
    content = content[content.index(b"<svg") :]  # without the reference to a document type elsewhere
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def plain_log_axis(axis: Any, low: float, high: float) -> None:
    """A logarithmic ``Axis`` from ``low`` to ``high`` whose ticks are plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    axis.set_major_locator(FixedLocator([step * 10.0**exponent for exponent in exponents for step in steps]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def room_above(axes: "Axes", share: float) -> None:
    """The y axis from 0 to ``share`` more than its data, so that a legend has its place."""
    axes.set_ylim(0, max(axes.get_ylim()[1], 1e-9) * (1 + share))


def _saved(figure: "Figure", kind: str, metadata: dict[str, None]) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the font has not is drawn as a box; that is no reason for lines among the figures.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()
