"""How a configuration field is declared: type, default, allowed range, help and support stand together, once."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Support:
    """What this version does about a setting: honours it, unless one of these says otherwise; as of ``option``."""

    unsupported: str | None = None
    possible: tuple[Any, ...] = ()
    no_effect: str | None = None


HONOURED = Support()


def option(
    default: Any,
    *,
    help: str,
    flag: str | None = None,
    short: tuple[str, ...] = (),
    unsupported: str | None = None,
    possible: tuple[Any, ...] = (),
    no_effect: str | None = None,
    cuda: Support | None = None,
    **reading: Any,
) -> Any:
    """A dataclass field for one setting.

    A setting that says nothing more takes effect. One that this version cannot honour says so here, so that no value
    is ever ignored in silence: ``unsupported`` values are refused at start, and what has ``no_effect`` is logged.

    Args:
        default: value when the setting is not given; a list or dict is copied for each instance.
        help: one line, in our own words, shown by ``--help`` and in the documentation.
        flag: the command-line flag, when it is not the field's name with dashes.
        short: short spellings of the flag, such as ``-tp``.
        unsupported: why every value but the default and the ``possible`` ones is refused.
        possible: values that are honoured beside the default, when others are not.
        no_effect: why the value changes nothing.
        cuda: what holds on an NVIDIA GPU where that differs, such as ``HONOURED``; the three above are of a CPU then.
        reading: how the command line reads it: ``metavar``, ``commas`` (a list may also be written with commas),
            ``json`` (a list is written as JSON), ``append`` (the flag may be repeated), ``bare`` (the flag alone means
            true), ``auto`` (the word ``auto`` means -1), ``extend`` (a list whose flag may be repeated), ``secret``
            (its value is shown neither in errors nor by ``repr``), ``classes`` (in a program, a class may stand for
            its import path).
    """
    metadata = {
        "help": help,
        "flag": flag,
        "short": short,
        "unsupported": unsupported,
        "possible": possible,
        "no_effect": no_effect,
        "cuda": cuda,
        **reading,
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, repr=not reading.get("secret"), metadata=metadata)


def key(default: Any, *, help: str, **facts: Any) -> Any:
    """A field without a flag of its own: reached as a key of its group, ``--attention-config.use_non_causal true``."""
    return option(default, help=help, nested_only=True, **facts)
