"""``--metadata``: words of the user's own in a result."""

from collections.abc import Collection, Iterable

from vllm_cli.command import CommandError


def metadata(pairs: Iterable[tuple[str, str]], taken: Collection[str]) -> dict[str, str]:
    """The pairs as keys of a result.

    Args:
        taken: keys that the result has itself.

    Raises:
        CommandError: (exit code 2) a key is among these, or comes twice.
    """
    found: dict[str, str] = {}
    for key, value in pairs:
        if key in taken:
            raise CommandError(f"--metadata {key}=...: a result has that key itself", exit_code=2)
        if key in found:
            raise CommandError(f"--metadata {key}=... comes twice", exit_code=2)
        found[key] = value
    return found
