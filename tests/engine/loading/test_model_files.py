"""``resolve_model`` finds a model's folder, and says what to do when there is none."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import vllm_engine
from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM
from vllm_engine.config.model_files import resolve_model
from vllm_engine.errors import ConfigError


def test_demo_is_the_folder_that_comes_with_the_package() -> None:
    assert resolve_model("demo") == Path(vllm_engine.__file__).parent / "demo"


def test_an_existing_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_model("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "../none", "~/none-at-all"])
def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where nobody else makes folders
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_model(name)


def test_a_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(b"GGUF")
    for name in ("model.gguf", str(tmp_path / "model.gguf")):
        with pytest.raises(ConfigError, match=r"model\.gguf is a file, not the folder"):
            resolve_model(name)


def test_a_name_that_the_hub_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a folder nor a name on the hub"):
        resolve_model("a/b/c")


def test_without_network_the_message_names_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"could not be fetched.*demo") as caught:
        resolve_model("nobody/nothing", download_dir=str(tmp_path))
    assert caught.value.field == "model"


class FakeHub:
    """Stands in for ``snapshot_download``: hands out a repository's files by pattern, as the hub does."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder = folder
        self.files = files
        self.settings: list[dict[str, Any]] = []

    def __call__(self, name: str, *, allow_patterns: list[str], ignore_patterns: list[str], **settings: Any) -> str:
        self.settings.append({"name": name, **settings})
        wanted = huggingface_hub.utils.filter_repo_objects(
            self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in wanted:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).touch()
        return str(self.folder)


COMMON = ["config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "README.md", "logo.png"]
FETCHED_COMMON = {"config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"}


@pytest.mark.parametrize(
    ("weights", "load_format", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], "auto", {"model.safetensors"}),
        (["model.safetensors", "pytorch_model.bin"], "pt", {"pytorch_model.bin"}),
        (["model.safetensors", "pytorch_model.bin"], "dummy", set()),
        (["pytorch_model.bin", "training_args.bin", "flax_model.msgpack"], "auto", {"pytorch_model.bin"}),
        (["model-1.safetensors", "consolidated.safetensors"], "auto", {"model-1.safetensors"}),
        (["model.safetensors", "original/params.json", "original/x.safetensors"], "auto", {"model.safetensors"}),
    ],
)
def test_only_small_files_and_weights_of_one_format_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[str], load_format: str, fetched: set[str]
) -> None:
    hub = FakeHub(tmp_path, COMMON + weights)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    folder = resolve_model(
        "owner/name", revision="abc", token="secret", ignore_patterns=["original/**/*"], load_format=load_format
    )
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == FETCHED_COMMON | fetched
    assert all(call["revision"] == "abc" and call["token"] == "secret" for call in hub.settings)


def test_the_token_is_not_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> str:
        raise OSError("401 Client Error\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ConfigError, match="401 Client Error") as caught:
        resolve_model("owner/name", token="secret")
    assert "secret" not in str(caught.value)
    assert "more lines" not in str(caught.value)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4\n"


@pytest.mark.parametrize(
    ("name", "setting"), [("config.json", "model"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "model")]
)
def test_a_clone_without_git_lfs_is_told_what_it_lacks(tmp_path: Path, name: str, setting: str) -> None:
    make_tiny_model("llama", tmp_path)
    shutil.copy(resolve_model("demo") / "tokenizer.json", tmp_path)
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ConfigError, match=rf"{name} is not the file itself .* `git lfs pull`") as caught:
        LLM(str(tmp_path), max_model_len=64)
    assert caught.value.field == setting


def test_a_file_that_is_not_read_may_be_a_pointer(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "tokenizer.model"):
        (tmp_path / name).write_text(POINTER)
    LLM(str(tmp_path), max_model_len=64, skip_tokenizer_init=True).close()
