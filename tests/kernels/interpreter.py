"""Triton's interpreter without the work that it repeats: tests of the kernels run in a third of the time.

It needs three names of the interpreter that are not promised, and that Triton 3.6 to 3.9 have: the class
``InterpretedFunction`` with ``fn`` and ``rewrite``, and ``_patch_lang``. Where one is missing, the interpreter stays as
it is, and tests take longer.
"""

import warnings
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def call_without_patching() -> None:
    """Let a function that a kernel calls find the language as the kernel left it.

    The interpreter replaces every word of the language when a kernel starts, and puts them back at its end. It does the
    first again for each call inside of it, ``tl.sum`` and all, which takes ten times as long as what is called. Only
    the library's own functions need it, once: they know the language by another name, and there it is never put back.
    """
    interpreted = getattr(interpreter, "InterpretedFunction", None)
    patch_language = getattr(interpreter, "_patch_lang", None)
    if patch_language is None or not hasattr(interpreted, "rewrite"):
        warnings.warn("Triton's interpreter has changed: tests of its kernels take three times as long", stacklevel=1)
        return
    original = interpreted.__call__
    seen: set[int] = set()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if tl not in _modules(self.fn) and tl.core not in _modules(self.fn):
            return original(self, *arguments, **named)
        if tl.core in _modules(self.fn) and id(self.fn.__globals__) not in seen:
            seen.add(id(self.fn.__globals__))
            patch_language(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreted.__call__ = call


def _modules(function: Any) -> list[Any]:
    return [value for value in (function.__globals__.get(name) for name in ("tl", "core")) if value is not None]
