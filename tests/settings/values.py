"""Hypothesis strategies for the values of settings, made from their declared types."""

import dataclasses
import math
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from vllm_engine.config.settings import Setting, keys_of

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """Values that the setting takes, as keywords or YAML would give them."""
    return _values(setting.hint)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return st.fixed_dictionaries({}, optional={key: values_of(inner) for key, inner in keys_of(hint).items()})  # type: ignore[arg-type]
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1])
    if origin in (Union, UnionType):
        return st.one_of([_values(member) for member in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_values(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(_TEXTS, _values(arguments[1]), max_size=3)
    simple = {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: _TEXTS,
        bool: st.booleans(),
        NoneType: st.none(),
        Any: _JSON,
    }
    return simple[hint]


def _bounded(hint: Any, meta: Any) -> st.SearchStrategy[Any]:
    if hint is str:
        return st.from_regex(meta.pattern, fullmatch=True).filter(lambda text: "\0" not in text)
    low = meta.ge if meta.ge is not None else meta.gt
    high = meta.le if meta.le is not None else meta.lt
    if hint is int:
        return st.integers(low, high if high is not None else 2**63 - 1)
    return st.floats(
        low,
        high,
        allow_nan=False,
        allow_infinity=False,
        exclude_min=meta.gt is not None,
        exclude_max=meta.lt is not None,
    ).filter(math.isfinite)
