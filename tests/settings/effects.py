"""t"""

EFFECTS: dict[str, list[str]] = {}
