"""``/start_profile``, ``/stop_profile`` and those of ``LLM``: traces of the engine steps, by ``--profiler-config``."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine import LLM, SamplingParams
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_server.app import build_app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "qwen3"
    make_tiny_model("qwen3", path)
    make_tiny_tokenizer(path)
    return path


def engine(folder: Path, **profiler: Any) -> LLM:
    return LLM(str(folder), dtype="float32", use_tqdm_on_load=False, profiler_config=profiler)


def generate(llm: LLM, num_steps: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=num_steps, ignore_eos=True)
    llm.generate([[5, 6, 7]], params, use_tqdm=False)


def read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    trace: dict[str, Any] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return trace


def steps_in(path: Path) -> list[str]:
    return [one["name"] for one in read(path)["traceEvents"] if one["name"].startswith("step of")]


def profiled(folder: Path, traces: Path, num_steps: int, profiler_config: dict[str, Any]) -> list[Path]:
    """The traces of an engine that makes a step before the profile, and so many in it."""
    with engine(
        folder,
        **{
            "profiler": "torch",
            "torch_profiler_dir": str(traces),
            "torch_profiler_with_stack": False,
            **profiler_config,
        },
    ) as llm:
        generate(llm, 1)
        llm.start_profile()
        generate(llm, num_steps)
        names = llm.stop_profile()
        generate(llm, 1)
    assert sorted(path.name for path in traces.iterdir()) == sorted(names)
    return [traces / name for name in names]


def test_a_profile_holds_the_steps_between_start_and_stop(folder: Path, tmp_path: Path) -> None:
    (trace,) = profiled(folder, tmp_path / "new" / "folder", 4, profiler_config={})
    assert trace.name.endswith(".pt.trace.json.gz")
    assert steps_in(trace) == ["step of 1 requests with 3 tokens", *["step of 1 requests with 1 tokens"] * 3]
    events = read(trace)["traceEvents"]
    assert any(one["name"].startswith("aten::") for one in events)
    assert not any(one.get("cat") == "python_function" or "Input Dims" in one.get("args", {}) for one in events)


def test_a_profile_records_what_its_keys_say(folder: Path, tmp_path: Path) -> None:
    keys = dict.fromkeys(("with_stack", "record_shapes", "with_memory", "with_flops"), True)
    wanted = {f"torch_profiler_{name}": value for name, value in keys.items()}
    (trace,) = profiled(folder, tmp_path, 2, {"torch_profiler_use_gzip": False, **wanted})
    assert trace.suffix == ".json"
    whole = read(trace)
    events = whole["traceEvents"]
    assert any(one.get("cat") == "python_function" for one in events)
    assert any("Input Dims" in one.get("args", {}) for one in events)
    assert any(one["name"] == "[memory]" for one in events)
    assert whole["with_flops"] == 1


@pytest.mark.parametrize(
    ("keys", "counts"),
    [
        ({"delay_iterations": 2}, [4]),
        ({"max_iterations": 3}, [3]),
        ({"delay_iterations": 1, "max_iterations": 2}, [2]),
        ({"wait_iterations": 1, "warmup_iterations": 1, "active_iterations": 1}, [1, 1]),
        ({"delay_iterations": 9}, []),
    ],
)
def test_steps_are_recorded_in_rounds_and_limits(
    folder: Path, tmp_path: Path, keys: dict[str, int], counts: list[int]
) -> None:
    traces = profiled(folder, tmp_path, 6, keys)
    assert [len(steps_in(trace)) for trace in traces] == counts


def test_a_profile_begins_once_and_ends_once(folder: Path, tmp_path: Path) -> None:
    with engine(folder, profiler="torch", torch_profiler_dir=str(tmp_path)) as llm:
        with pytest.raises(InvalidRequest, match="no profile is under way"):
            llm.stop_profile()
        llm.start_profile()
        with pytest.raises(InvalidRequest, match="under way already"):
            llm.start_profile()
        llm.stop_profile()
    with engine(folder) as llm, pytest.raises(InvalidRequest, match="profiler_config"):
        llm.start_profile()


def test_the_environment_names_a_folder_where_no_setting_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", str(tmp_path / "of-the-environment"))
    with engine(folder) as llm:
        llm.start_profile()
        generate(llm, 1)
        (name,) = llm.stop_profile()
    assert (tmp_path / "of-the-environment" / name).is_file()


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"profiler": "cuda", "torch_profiler_dir": "x"}, "profiler"),
        ({"profiler": "torch"}, "torch_profiler_dir"),
        ({"torch_profiler_dir": "x"}, "torch_profiler_dir"),
        ({"max_iterations": 3}, "max_iterations"),
        (
            {"profiler": "torch", "torch_profiler_dir": "x", "wait_iterations": 1, "active_iterations": 0},
            "active_iterations",
        ),
    ],
)
def test_what_makes_no_profile_is_refused(keys: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineArgs("demo", profiler_config=keys).create_config()
    assert caught.value.field == f"profiler_config.{field}"


def test_a_folder_that_cannot_be_written_ends_the_start(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="torch_profiler_dir"):
        engine(folder, profiler="torch", torch_profiler_dir=str(tmp_path / "file"))


@pytest.mark.parametrize("profiler", [False, True])
async def test_the_routes_are_there_where_a_profiler_is(profiler: bool) -> None:
    llm = FakeLLM()
    keys = {"profiler": "torch", "torch_profiler_dir": "x"} if profiler else {}
    llm.config = EngineArgs("fake/model", profiler_config=keys).create_config()
    options = {"api_key": ["user"], "admin_api_key": ["operator"]}
    async with make_client(build_app(make_context(llm, **options))) as client:

        async def status(route: str, key: str) -> int:
            return (await client.post(route, headers={"Authorization": f"Bearer {key}"})).status_code

        routes = ["/start_profile", "/start_profile", "/stop_profile", "/stop_profile"]
        statuses = [await status(route, "operator") for route in routes]
        assert statuses == ([200, 400, 200, 400] if profiler else [404] * 4)
        assert await status("/start_profile", "nobody") == 401
        assert await status("/start_profile", "user") == (403 if profiler else 404)
        assert (
            "/start_profile" in (await client.get("/openapi.json", headers={"x-api-key": "user"})).json()["paths"]
        ) == profiler
