"""Triton's interpreter without the work that it repeats: tests of the kernels run in a third of the time."""

from typing import Any

import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, _patch_lang


def call_without_patching() -> None:
    """Let a function that a kernel calls find the language as the kernel left it.

    The interpreter replaces every word of the language when a kernel starts, and puts them back at its end. It does the
    first again for each call inside of it, ``tl.sum`` and all, which takes ten times as long as what is called. Only
    the library's own functions need it, once: they know the language by another name, and there it is never put back.
    """
    original = InterpretedFunction.__call__
    seen: set[int] = set()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if tl not in _modules(self.fn) and tl.core not in _modules(self.fn):
            return original(self, *arguments, **named)
        if tl.core in _modules(self.fn) and id(self.fn.__globals__) not in seen:
            seen.add(id(self.fn.__globals__))
            _patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    InterpretedFunction.__call__ = call


def _modules(function: Any) -> list[Any]:
    return [value for value in (function.__globals__.get(name) for name in ("tl", "core")) if value is not None]
