"""Names of which this version has some: the others are refused, with what is possible and the nearest."""

import difflib
from collections.abc import Collection, Mapping

from vllm_engine.errors import ConfigError


def refuse_name(field: str, name: str, possible: Collection[str], elsewhere: Mapping[str, str] | None = None) -> None:
    """Raise ``ConfigError`` unless ``name`` is one of ``possible``, in any case of letters.

    Args:
        field: the setting.
        name: its value.
        possible: what this version has.
        elsewhere: documented names that it does not have, with the reason.
    """
    spellings = {known.lower(): known for known in (*(elsewhere or {}), *possible)}
    known = spellings.get(name.lower())
    if known in possible:
        return
    shown = name if len(name) <= 80 else name[:77] + "..."
    why = f"cannot be honoured: {elsewhere[known]}" if elsewhere and known is not None else "is not known"
    near = difflib.get_close_matches(name.lower(), spellings if known is None else map(str.lower, possible), n=1)
    hint = f"; did you mean {spellings[near[0]]}?" if near else ""
    raise ConfigError(f"{field}={shown} {why}; possible: {', '.join(possible)}{hint}", field=field)
