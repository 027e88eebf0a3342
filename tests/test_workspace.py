"""What holds for the repository as a whole: safe source, light imports, and wheels that contain what they need."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.source_rules import violations

ROOT = Path(__file__).parents[1]
WHEELS = ("kernels", "engine", "server", "cli", "bench")
# What these import, the start-up of the server's front end and of the command line would wait for.
TORCH_FREE = ("vllm_engine/frontend", "vllm_engine/config", "vllm_engine/core", "vllm_server", "vllm_cli", "vllm_bench")


def folder(wheel: str) -> Path:
    return ROOT / "packages" / f"vllm-{wheel}"


def package_files(wheel: str) -> list[Path]:
    """Every file that belongs into the wheel, relative to its folder."""
    package = folder(wheel) / f"vllm_{wheel}"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(folder(wheel)) for path in files)


def torch_free_modules(part: str) -> list[str]:
    """Names of the modules of one part of ``TORCH_FREE``."""
    wheel = folder(part.partition("/")[0].removeprefix("vllm_"))
    files = sorted((wheel / part).rglob("*.py"))
    names = [".".join(path.relative_to(wheel).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("wheel", WHEELS)
def test_no_source_reads_data_unsafely_or_validates_by_assert(wheel: str):
    found = [
        f"{file}:{line}: {reason}"
        for file in [*package_files(wheel), *(path.relative_to(folder(wheel)) for path in folder(wheel).glob("*.py"))]
        if file.suffix == ".py"
        for line, reason in violations((folder(wheel) / file).read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import json, marshal as m",
        "from cloudpickle import loads",
        "from joblib.memory import x",
        "from pickle import UnpicklingError, loads",
        "import pickle as json",
        "import dill",
        "def late():\n    import shelve",
        "from torch import multiprocessing",
        "from multiprocessing.connection import Listener",
        "import runpy",
        "importlib.import_module('pickle')",
        "from importlib import import_module\nimport_module('marshal')",
        "eval(text)",
        "exec(text)",
        "compile(text, 'f', 'exec')",
        "__import__(name)",
        "import builtins as b\nb.eval(text)",
        "from builtins import exec as run\nrun(text)",
        "map(eval, texts)",
        "getattr(b, 'exec')(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "torch.load(path, weights_only=1)",
        "torch.load(path, weights_only=not False)",
        "torch.load(path, **options)",
        "from torch import load as read\nread(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "partial(torch.load, path)",
        "torch.jit.load(path)",
        "torch.hub.load('a/b', 'c')",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=flag)",
        "yaml.load(text)",
        "yaml.load(text, other.Loader)",
        "yaml.load(text, Loader=loader)",
        "from yaml import load\nload(text)",
        "loader = yaml.UnsafeLoader",
        "yaml.full_load(text)",
        "os.system(line)",
        "subprocess.run(line, shell=True)",
        "subprocess.run(line, shell=flag)",
        "subprocess.getoutput(line)",
        "from subprocess import Popen\nPopen(line, shell=1)",
        "await asyncio.create_subprocess_shell(line)",
        "socket.recv_pyobj()",
        "class A:\n    def __reduce__(self):\n        return f, ()",
        "class A:\n    def __setstate__(self, state):\n        self.state = state",
        "thing.__reduce_ex__(4)",
        "jinja2.Environment()",
        "from jinja2 import Template as T\nT(text)",
        "logging.config.fileConfig(path)",
        "assert x > 0, 'x must be positive'",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_rules_find_what_they_forbid(source: str):
    assert len(list(violations(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import json",
        "from pickle import UnpicklingError",
        "re.compile(text)",
        "torch.compile(model)",
        "model.eval()",
        "import re\nre.compile(text)",
        "from .code import x",
        "getattr(torch, 'load_library')",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.load(text, yaml.CSafeLoader)",
        "def f(template: jinja2.Template) -> None: ...",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment\nImmutableSandboxedEnvironment()",
        "subprocess.run([tool], shell=False)",
        "import torch as t\nt.load(path, weights_only=True)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "try:\n    f()\nexcept ValueError:\n    pass",
    ],
)
def test_the_rules_leave_the_rest_alone(source: str):
    assert list(violations(source)) == []


@pytest.mark.parametrize("part", TORCH_FREE)
def test_light_parts_import_neither_torch_nor_transformers(part: str):
    script = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"torch", "transformers"} & sys.modules.keys()
    if heavy:
        sys.exit(f"{name} imports {sorted(heavy)}")
"""
    done = subprocess.run([sys.executable, "-c", script, *torch_free_modules(part)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_torch_free_modules_are_found():
    assert "vllm_cli.commands.chat" in torch_free_modules("vllm_cli")
    assert "vllm_engine.config" in torch_free_modules("vllm_engine/config")


@pytest.mark.parametrize("wheel", WHEELS)
def test_every_wheel_is_typed_described_and_licensed(wheel: str):
    package = folder(wheel) / f"vllm_{wheel}"
    assert (package / "py.typed").is_file()
    assert (folder(wheel) / "README.md").read_text().startswith(f"# vllm-{wheel}\n")
    project = tomllib.loads((folder(wheel) / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["description"]


def test_the_five_wheels_have_one_version():
    versions = {
        re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', (folder(w) / f"vllm_{w}/__init__.py").read_text(), re.MULTILINE)
        for w in WHEELS
    }
    assert None not in versions
    assert len({found[1] for found in versions if found}) == 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """The five wheels, built without network."""
    target = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    folders = [str(folder(wheel)) for wheel in WHEELS]
    subprocess.run([*command, "--wheel-dir", str(target), *folders], check=True, timeout=300)
    return {wheel: zipfile.ZipFile(next(target.glob(f"vllm_{wheel}-*.whl"))) for wheel in WHEELS}


@pytest.mark.parametrize("wheel", WHEELS)
def test_a_wheel_contains_every_file_of_its_package_and_nothing_beside_it(wheel: str, built):
    names = {name for name in built[wheel].namelist() if not name.startswith(f"vllm_{wheel}-")}
    # A shared object is built for the machine; whether it is there is the business of the wheel's own tests.
    wanted = {path.as_posix() for path in package_files(wheel) if path.suffix != ".so"}
    assert {name for name in names if not name.endswith(".so")} == wanted


@pytest.mark.parametrize("wheel", WHEELS)
def test_a_wheel_carries_the_licence_of_the_repository(wheel: str, built):
    (name,) = (name for name in built[wheel].namelist() if name.endswith(".dist-info/licenses/LICENSE"))
    assert built[wheel].read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_engine_carries_the_demo_model(built):
    names = built["engine"].namelist()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        assert f"vllm_engine/demo/{file}" in names


def test_the_vllm_command_and_bench_are_declared(built):
    entry_points = {
        wheel: archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
        for wheel, archive in built.items()
        if wheel in ("cli", "bench")
    }
    assert "vllm = vllm_cli.main:main" in entry_points["cli"]
    assert "[vllm_cli.commands]\nbench = vllm_bench.command:COMMAND" in entry_points["bench"]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_a_document_names_exists(document: str):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert named
    assert named <= targets
