"""Pictures and pages as they are written: PNG files that show something, HTML that needs nothing else."""

import base64
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy
import pytest
from PIL import Image

from tests.bench.mock_server import Plan, running
from tests.bench.saved_result import made_run, saved
from vllm_bench.plots import canvas, cdf, dataset_stats, files, report, throughput, timeline
from vllm_cli.main import main

VOID = {"meta", "input", "img", "br"}


class Page(HTMLParser):
    """A page that is read: whether its elements nest, what they refer to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attrs))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_self_contained(path: Path) -> Page:
    page = Page(path.read_text())
    assert all(reference.startswith("data:") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.names)
    style = re.search("<style>(.*?)</style>", path.read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in path.read_text()
    return page


def check_picture(content: bytes) -> None:
    """It can be read, is large enough, light, and far from empty."""
    bytes_ = numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    pixels = bytes_ / 255
    assert min(pixels.shape[:2]) > 400
    assert pixels.mean() > 0.7
    assert len(colours(bytes_[::3, ::3])) > 30
    rows, columns = numpy.nonzero((pixels < 0.5).any(axis=2))
    assert rows.max() - rows.min() > 0.8 * pixels.shape[0]
    assert columns.max() - columns.min() > 0.8 * pixels.shape[1]


def colours_in(figure) -> set[str]:
    """Every colour of the pixels that its canvas draws, as ``#rrggbb``."""
    figure.canvas.draw()
    return colours(numpy.asarray(figure.canvas.buffer_rgba())[..., :3])


def colours(pixels: numpy.ndarray) -> set[str]:
    """Of an array of bytes of shape [height, width, 3]."""
    return {f"#{number:06X}" for number in numpy.unique(pixels.astype(int) @ [1 << 16, 1 << 8, 1])}


def two_results() -> list[dict]:
    return [saved(made_run(seed=limit), max_concurrency=limit) for limit in (1, 8)]


@pytest.mark.parametrize(
    ("draw", "argument", "expected"),
    [
        (cdf.draw, [saved(made_run())], {"#0072B2", "#D55E00"}),
        (cdf.draw, two_results(), {"#0072B2", "#D55E00"}),
        (timeline.draw, saved(made_run()), {"#0072B2", "#56B4E9", "#E69F00"}),
        (throughput.draw, two_results(), {"#0072B2"}),
        (dataset_stats.draw, saved(made_run()), {"#0072B2", "#D55E00"}),
    ],
)
def test_what_is_drawn_is_on_the_canvas(draw, argument, expected):
    figure = draw(argument)
    assert expected <= colours_in(figure)
    assert all(axes.get_xlabel() or axes.get_shared_x_axes().get_siblings(axes) for axes in figure.axes)
    assert all(axes.get_ylabel() and axes.get_title(loc="left") for axes in figure.axes)


def test_the_curve_of_the_picture_has_the_values_of_the_records():
    run = made_run(failed=0)
    figure = cdf.draw([saved(run)])
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_gid() == "curve"]
    expected = sorted(1e3 * record.ttft for record in run.records)
    numpy.testing.assert_allclose(line.get_xdata()[1:], expected)
    numpy.testing.assert_allclose(line.get_ydata()[1:], 100 * numpy.arange(1, 41) / 40)


def test_a_measurement_is_drawn_beside_its_result(tmp_path, capsys):
    options = ["--input-len", "8", "--output-len", "5", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    options += ["--num-prompts", "12", "--max-concurrency", "3", "--plot", "--plot-timeline", "--plot-dataset-stats"]
    with running([Plan(0.02, 0.004), Plan(0.01, 0.03), Plan(status=500)]) as server:
        code = main(["bench", "serve", "--base-url", server.url, *options, "--timeline-itl-thresholds", "24,25"])
    assert code == 1
    endings = ["cdf.png", "timeline.png", "html", "timeline.html", "dataset_stats.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["r.json", *(f"r.{each}" for each in endings)])
    out = capsys.readouterr().out
    assert all(f"drawn: {tmp_path / 'r'}.{each}" in out for each in endings)
    for picture in tmp_path.glob("*.png"):
        check_picture(picture.read_bytes())
    result = json.loads((tmp_path / "r.json").read_text())
    assert not {"ttfts", "generated_texts"} & set(result)
    page = check_self_contained(tmp_path / "r.html")
    assert "8 requests · at most 3 at a time" in page.text
    assert "PARTIAL: 4 of 12 requests failed" in page.text
    assert "status 500: refused with 500" in page.text
    assert f"{result['mean_ttft_ms']:.2f}" in page.text
    assert len([reference for reference in page.references if reference.startswith("data:image/svg+xml")]) == 2
    rows = check_self_contained(tmp_path / "r.timeline.html")
    assert rows.names.count("g") == 12
    assert "gaps below 24 ms" in rows.text
    text = (tmp_path / "r.timeline.html").read_text()
    # By the usual thresholds none is high. One in the middle may be, of a machine that has other things to do.
    missing = [kind for kind in ("ttft", "low", "high", "failed") if f'class="{kind}" x=' not in text]
    assert missing == []


def test_saved_results_are_drawn_later_and_together(tmp_path):
    file = tmp_path / "sweep.json"
    file.write_text("".join(json.dumps(result) + "\n" for result in two_results()))
    assert main(["bench", "plot", str(file)]) == 0
    endings = ("throughput.png", "cdf.png", "html")
    assert {path.name for path in tmp_path.glob("sweep.*")} == {"sweep.json", *(f"sweep.{each}" for each in endings)}
    for picture in tmp_path.glob("*.png"):
        check_picture(picture.read_bytes())
    page = check_self_contained(tmp_path / "sweep.html")
    assert "at most 1 at a time" in page.text
    assert "a <cpu> & more" in page.text
    assert page.names.count("details") == 4


def test_several_files_have_pictures_of_a_name_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "png", lambda _: b"a picture")
    monkeypatch.setattr(report, "svg_uri", lambda _: "data:,")
    for name, result in zip("ab", two_results(), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    both = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["bench", "plot", *both, "--plot-timeline", "--plot-dataset-stats"]) == 0
    expected = {"results.throughput.png", "results.cdf.png", "results.html"}
    expected |= {f"results.{number}.{kind}" for number in (1, 2) for kind in ("timeline.html", "dataset_stats.png")}
    assert {path.name for path in tmp_path.glob("results*")} == expected
    assert main(["bench", "plot", both[0], "-o", str(tmp_path / "new" / "x")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"x.cdf.png", "x.timeline.png", "x.html"}


def test_the_page_has_all_intervals_and_well_formed_pictures(tmp_path):
    result = saved(made_run(200, failed=0))
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert main(["bench", "plot", str(tmp_path / "a.json")]) == 0
    page = check_self_contained(tmp_path / "a.html")
    low, high = result["confidence_intervals"]["mean_e2el_ms"]
    assert f"{result['mean_e2el_ms']:.2f} {low:.2f} .. {high:.2f}" in page.text
    assert "The client kept up" in page.text
    assert "http://127.0.0.1:8000" in page.text  # a flag, which is only text
    for reference in page.references:
        svg = base64.b64decode(reference.partition(",")[2])
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert all(name in svg[:300] for name in (b"width", b"height", b"viewBox"))
        outside = re.findall(rb'(?:href|src)="([^#"][^"]*)"|url\(([^#][^)]*)\)', svg)
        assert all(link.startswith(b"data:") for pair in outside for link in pair if link)
        assert b"<!DOCTYPE" not in svg


def test_the_same_result_gives_the_same_files():
    first, second = (timeline.draw(saved(made_run())) for _ in range(2))
    assert canvas.png(first) == canvas.png(second)
    assert canvas.svg_uri(first) == canvas.svg_uri(second)


def test_no_text_and_no_details_are_drawn_as_far_as_they_go(tmp_path, capsys):
    options = ["--backend", "openai-embeddings", "--input-len", "8", "--num-prompts", "12", "--save-detailed", "--plot"]
    with running([Plan(0.02)]) as server:
        saving = ["--result-dir", str(tmp_path), "--result-filename", "e.json"]
        assert main(["bench", "serve", "--base-url", server.url, *options, *saving]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"e.json", "e.cdf.png", "e.timeline.png", "e.html"}
    assert "sequence throughput" in check_self_contained(tmp_path / "e.html").text
    bare = saved(made_run(5, failed=5))
    for key in ("ttfts", "itls", "start_times"):
        del bare[key]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    capsys.readouterr()
    assert main(["bench", "plot", str(tmp_path / "bare.json")]) == 0
    assert "without --save-detailed" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("bare*")} == {"bare.json", "bare.html"}
    assert "PARTIAL: 5 of 5 requests failed" in check_self_contained(tmp_path / "bare.html").text


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["serve", "--plot"], "--plot needs"),
        (["serve", "--plot-dataset-stats"], "--plot-dataset-stats needs"),
        (["plot", "r.json"], "--plot needs"),
    ],
)
def test_a_missing_library_is_named_before_anything_is_measured(monkeypatch, capsys, command, said):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", *command]) == 2
    assert f'{said}: pip install "vllm-bench[plots]"' in capsys.readouterr().err


def test_the_timeline_of_requests_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    saving = ["--result-dir", str(tmp_path), "--result-filename", "r.json", "--append-result"]
    with running([Plan(0.001)]) as server:
        options = ["--input-len", "8", "--output-len", "3", "--num-prompts", "2", "--plot-timeline"]
        assert main(["bench", "serve", "--base-url", server.url, *options, *saving]) == 0
    (page,) = tmp_path.glob("r-*.timeline.html")
    check_self_contained(page)


def test_pictures_leave_the_process_as_it_was():
    before = matplotlib.rcParams.copy()
    cdf.draw([saved(made_run())])
    assert matplotlib.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("thresholds", ["25", "50,25", "a,b", "1,2,3", "1,inf"])
def test_thresholds_are_two_rising_numbers(thresholds, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "serve", "--timeline-itl-thresholds", thresholds])
    assert "two rising numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"sweep": {"status": "failed"}}', "none of these runs came to a result"),
        ('{"avg_latency": 1.0, "latencies": [1.0]}', "holds no result of vllm bench serve"),
        ('{"duration": 1, "completed": 1, "latencies": ["x"]}', "none of a measurement"),
        ("{", "is no JSON"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, capsys, content, said):
    (tmp_path / "a.json").write_text(content)
    assert main(["bench", "plot", str(tmp_path / "a.json")]) == 2
    assert said in capsys.readouterr().err


def test_pictures_that_cannot_be_written_fail_after_the_result_is_saved(tmp_path, capsys):
    (tmp_path / "r.timeline.html").mkdir()
    with running([Plan()]) as server:
        options = ["--input-len", "8", "--output-len", "3", "--num-prompts", "2", "--plot-timeline"]
        options += ["--result-filename", "r.json"]
        assert main(["bench", "serve", "--base-url", server.url, *options, "--result-dir", str(tmp_path)]) == 1
    assert "the picture cannot be saved" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["completed"] == 2
