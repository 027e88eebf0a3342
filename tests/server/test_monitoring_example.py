"""The dashboard, the scrape file and the alarms of ``examples/monitoring`` speak of metrics that there are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.server.demo_process import DemoProcess

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"
NOT_OF_THE_SERVER = {"up"}
"""What Prometheus knows by itself."""
WORDS = {"sum", "by", "le", "rate", "max", "histogram_quantile", "label_values"}
LABELS = {"model_name", "status", "reason", "source", "finished_reason", "handler", "job"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    """The names of all series of a running server, after a request."""
    demo = DemoProcess(tmp_path_factory.mktemp("demo"), "--kv-cache-metrics")
    try:
        httpx.post(f"{demo.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 2}).raise_for_status()
        page = httpx.get(f"{demo.url}/metrics").text
        yield {re.split(r"[{ ]", line)[0] for line in page.splitlines() if not line.startswith("#")}
    finally:
        demo.clean_up()


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
    return board


def asked_for(query: str) -> set[str]:
    """The metrics that a query names."""
    query = re.sub(r'"[^"]*"|\[[^\]]*\]|\$\w+', "", query)
    return set(re.findall(r"[a-zA-Z_][\w:]*", query)) - WORDS - LABELS


def test_every_metric_of_the_dashboard_is_on_the_page(names: set[str]) -> None:
    board = dashboard()
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"]]
    used = set().union(*map(asked_for, queries))
    assert len(queries) > 40 and len(used) > 30
    assert used <= names, used - names


def test_every_alarm_is_about_a_metric_on_the_page(names: set[str]) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
    alarms = [row for row in rows if re.search(r" (>|==) ", row)]
    assert len(alarms) == 6
    assert set().union(*map(asked_for, alarms)) - NOT_OF_THE_SERVER <= names


def test_the_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(refs)) == len(refs) and (refs or panel["type"] == "row")


def test_the_scrape_file_asks_where_the_server_answers(names: set[str]) -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert (job["metrics_path"], job["static_configs"]) == ("/metrics", [{"targets": ["127.0.0.1:8000"]}])
    assert "vllm:num_requests_running" in names
