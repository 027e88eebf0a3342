"""How a configuration field is declared: type, default, allowed range and help stand together, once."""

import dataclasses
from typing import Any


def option(default: Any = dataclasses.MISSING, *, help: str, flag: str | None = None, **spec: Any) -> Any:
    """A dataclass field for one setting.

    Args:
        default: value when the setting is not given; a list or dict is copied for each instance.
        help: one line, in our own words, shown by ``--help`` and in the documentation.
        flag: the command-line flag, when it is not the field's name with dashes.
        spec: ``metavar`` for the help text.
    """
    metadata = {"help": help, "flag": flag, **spec}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
