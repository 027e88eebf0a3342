"""Rules for the code of the wheels that no linter of ours knows: what may never be called or imported there."""

import ast
from collections.abc import Iterator

# Reading data with these can run code of whoever wrote it.
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
}


def violations(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of everything in ``source`` that breaks a rule."""
    for node in ast.walk(ast.parse(source)):
        for reason in _reasons(node):
            yield node.lineno, reason  # type: ignore[attr-defined]


def _reasons(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                if alias.name.partition(".")[0] in UNSAFE_MODULES:
                    yield f"imports {alias.name}"
        case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] in UNSAFE_MODULES:
            # What torch.load(weights_only=True) raises for a file that it refuses.
            if [alias.name for alias in names] != ["UnpicklingError"]:
                yield f"imports {module}"
        case ast.Call():
            yield from _call_reasons(node)
        case ast.Assert():
            yield "an assert is no validation: python -O removes it"
        case ast.ExceptHandler(type=None):
            yield "a bare except also catches Ctrl-C"


def _call_reasons(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in UNSAFE_CALLS:
        yield f"calls {name}"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    if keywords.get("allow_pickle", "False") != "False":
        yield f"calls {name} with allow_pickle"
    if keywords.get("shell", "False") != "False":
        yield f"calls {name} with shell"
