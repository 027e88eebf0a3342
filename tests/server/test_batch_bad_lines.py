"""Whatever stands in a line, it has one answer in its place, and its neighbours have theirs."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.server.batch_folder import Folder, answer, line
from tests.server.fake_llm import FakeLLM
from vllm_server.app import json_urls

GOOD = line("good", prompt="hi", max_tokens=2)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
fields = {
    "custom_id": st.text() | json_values,
    "method": st.sampled_from(["POST", "GET", "post", ""]) | json_values,
    "url": st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/score", "*"]) | json_values,
    "body": st.dictionaries(
        st.sampled_from(["prompt", "messages", "model", "max_tokens", "stream", "n", "user"]), json_values, max_size=4
    )
    | json_values,
}
objects = st.fixed_dictionaries({}, optional={**fields, "more": json_values}).map(json.dumps).map(str.encode)
torn = st.tuples(objects, st.integers(0, 200), st.binary(max_size=3)).map(lambda it: it[0][: it[1]] + it[2])
any_line = (objects | torn | st.binary(max_size=60)).map(lambda text: text.replace(b"\n", b" "))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(any_line, min_size=1, max_size=12))
@example([b"null", b"\x00", b'"', b"{" * 5000, b'{"custom_id": "\\ud800"}', b"\xef\xbb\xbf{}", b"\x1c\x85"])
async def test_every_line_has_one_answer_in_its_place(bad: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(Path(path))
        lines: list[str | bytes] = [item for line in bad for item in (line, GOOD)]
        count, _ = await answer(folder, FakeLLM(), *lines)
        results = folder.results()
    expected: list[Any] = [item for item in lines if item == GOOD or item.strip()]  # type: ignore[comparison-overlap]
    assert count == len(results) == len(expected)
    for number, (item, result) in enumerate(zip(expected, results, strict=True)):
        status, error = result["response"]["status_code"], result["error"]
        assert list(result) == ["id", "custom_id", "response", "error"]
        assert (status < 400) == (error is None)
        if item == GOOD:
            assert (status, result["custom_id"]) == (200, "good")
            continue
        assert status in (200, 400, 404)
        if error is not None:
            assert result["response"]["body"] == {"error": error}
            assert error["message"]
            assert set(error) == {"message", "type", "param", "code"}
        assert number < len(expected) - 1


@pytest.mark.parametrize(
    ("url", "field"),
    [("/v1/embeddings", "url"), ("/v1/score", "url"), ("/rerank", "url"), ("/metrics", "url"), ("/v1/models", "url")],
)
async def test_a_route_that_is_not_served_is_an_error_of_its_line(tmp_path: Path, url: str, field: str) -> None:
    folder = Folder(tmp_path)
    assert await answer(folder, FakeLLM(), GOOD, line("a", url=url, input="hi"), GOOD) == (3, 1)
    error = folder.results()[1]["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert error["message"] == f"line 2: url must be one of {', '.join(json_urls())}, got '{url}'"


async def test_a_line_of_fifty_megabytes_is_read_and_answered_for(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    long = line("long", prompt="x" * 50_000_000)
    assert await answer(folder, FakeLLM(), GOOD, long, GOOD, "[" + "0," * 40_000_000, GOOD) == (5, 2)
    _, refused, _, longer, _ = folder.results()
    assert (refused["custom_id"], refused["response"]["status_code"], refused["error"]["param"]) == (
        "long",
        400,
        "prompt",
    )
    assert (longer["custom_id"], longer["response"]["status_code"]) == (None, 413)
    assert folder.output.stat().st_size < 10_000
