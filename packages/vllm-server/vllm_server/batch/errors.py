"""What can go wrong with the files of a batch while it runs."""

from vllm_engine.errors import VllmError


class BatchFileError(VllmError):
    """A file or URL could no longer be read or written."""


class TransferRefused(BatchFileError):
    """A URL that will not be better for another attempt: there is nothing, or the caller may not have it."""


def reason_of(error: Exception) -> str:
    """What the system says about a failed operation, without the name of the file."""
    return getattr(error, "strerror", None) or str(error)
