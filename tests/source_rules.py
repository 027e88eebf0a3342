"""Rules for the code of the wheels that no linter of ours knows: what may never be called or imported there.

A name counts by what it stands for: ``from torch import load as read`` makes ``read`` a ``torch.load``. So does a mere
mention: who hands ``eval`` to something else has it called there.
"""

import ast
from collections.abc import Iterator

# Reading data with these can run code of whoever wrote it.
UNSAFE_MODULES = {
    "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "dbm",
    "multiprocessing",  # its pipes, queues and managers carry pickles
    "runpy", "code", "codeop",
}  # fmt: skip
UNSAFE_NAMES = {
    "eval", "exec", "compile", "__import__", "imp.load_source", "types.FunctionType", "types.CodeType",
    "concurrent.futures.ProcessPoolExecutor",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader", "yaml.CUnsafeLoader",
    "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "torch.serialization.load",
    "pandas.read_pickle", "logging.config.listen", "logging.config.fileConfig",
}  # fmt: skip
# These may be named, as types are; made, they run what a template says.
UNSAFE_CALLS = UNSAFE_NAMES | {"jinja2.Template", "jinja2.Environment", "jinja2.environment.Environment"}
UNSAFE_METHODS = {"recv_pyobj", "send_pyobj", "read_pickle", "__reduce__", "__reduce_ex__", "__setstate__"}
PICKLE_HOOKS = {"__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# What torch.load(weights_only=True) raises for a file that it refuses.
HARMLESS = {"pickle.UnpicklingError"}
BUILTINS = {"eval", "exec", "compile", "__import__", "getattr"}


def violations(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of everything in ``source`` that breaks a rule."""
    tree = ast.parse(source)
    known = _meanings(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        for reason in _reasons(node, known, mention=id(node) not in called):
            yield node.lineno, reason  # type: ignore[attr-defined]


def _meanings(tree: ast.AST) -> dict[str, str]:
    """Names that imports make -> what they stand for."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return known


def _meaning(node: ast.AST, known: dict[str, str]) -> str:
    """The dotted name of an expression, with imports put in; empty for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id).removeprefix("builtins.")
    if isinstance(node, ast.Attribute):
        owner = _meaning(node.value, known)
        return f"{owner}.{node.attr}".removeprefix("builtins.") if owner else ""
    return ""


def _reasons(node: ast.AST, known: dict[str, str], *, mention: bool) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"imports {alias.name}" for alias in names if _is_unsafe(alias.name))
        case ast.ImportFrom(module=str(module), names=names, level=0):
            for alias in names:
                whole = f"{module}.{alias.name}"
                if whole not in HARMLESS and (_is_unsafe(module) or _is_unsafe(whole)):
                    yield f"imports {whole}"
        case ast.Call():
            yield from _call_reasons(node, known)
        case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()) if mention:
            name = _meaning(node, known)
            if name in UNSAFE_NAMES or name in ("torch.load", "yaml.load", "yaml.load_all"):
                yield f"hands {name} on"
            elif isinstance(node, ast.Attribute) and node.attr in UNSAFE_METHODS:
                yield f"uses {node.attr}"
        case ast.FunctionDef(name=name) if name in PICKLE_HOOKS:
            yield f"defines {name}: nothing of ours is pickled"
        case ast.Assert():
            yield "an assert is no validation: python -O removes it"
        case ast.ExceptHandler(type=None):
            yield "a bare except also catches Ctrl-C"


def _call_reasons(call: ast.Call, known: dict[str, str]) -> Iterator[str]:
    name = _meaning(call.func, known) or ast.unparse(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}

    def is_literally(keyword: str, value: bool) -> bool:
        given = keywords.get(keyword)
        return isinstance(given, ast.Constant) and given.value is value

    if name in UNSAFE_CALLS:
        yield f"calls {name}"
    if isinstance(call.func, ast.Attribute) and call.func.attr in UNSAFE_METHODS:
        yield f"calls {call.func.attr}"
    if name == "torch.load" and not is_literally("weights_only", True):
        yield "calls torch.load without weights_only=True"
    if name in ("yaml.load", "yaml.load_all"):
        loader = keywords.get("Loader", call.args[1] if len(call.args) > 1 else None)
        if loader is None or _meaning(loader, known) not in SAFE_LOADERS:
            yield f"calls {name} without a safe loader"
    for keyword in ("allow_pickle", "shell", "trust_remote_code", "trust_repo"):
        if keyword in keywords and not is_literally(keyword, False):
            yield f"calls {name} with {keyword}"
    if name in ("importlib.import_module", "getattr") and (text := _text_among(call.args)) is not None:
        if name == "getattr" and text in BUILTINS - {"getattr"}:
            yield f"gets {text} by its name"
        elif name != "getattr" and _is_unsafe(text):
            yield f"imports {text}"


def _text_among(args: list[ast.expr]) -> str | None:
    return next((arg.value for arg in args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)), None)


def _is_unsafe(module: str) -> bool:
    """Whether a module, or what it belongs to, is an unsafe one; wherever a package may have vendored it."""
    return not UNSAFE_MODULES.isdisjoint((module.partition(".")[0], *module.split(".")[1:2]))
