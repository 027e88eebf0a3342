"""Small ZIP files read strictly: few entries, all bounds checked, nothing unpacked beyond the size that was announced.

Only what a program needs that writes such files: entries that are stored or deflated, and the records for 64 bits.
"""

import struct
import zlib
from dataclasses import dataclass

MAX_ENTRIES = 32
STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 1
_IN_EXTRA = 0xFFFFFFFF
_EXTRA64 = 1


@dataclass(frozen=True, slots=True)
class _Entry:
    method: int
    crc: int
    packed_size: int
    size: int
    offset: int


class ZipFile:
    """The entries of a ZIP file that is in memory."""

    def __init__(self, data: bytes) -> None:
        """Read the directory. Raises ``ValueError`` for a file that breaks the format, or has more than it may."""
        self._data = data
        self._entries: dict[str, _Entry] = {}
        try:
            self._read_directory()
        except struct.error:
            raise ValueError("the ZIP directory is cut off") from None

    @property
    def names(self) -> list[str]:
        """The names of the entries."""
        return list(self._entries)

    def read(self, name: str, *, limit: int) -> bytes:
        """The content of an entry.

        Raises:
            ValueError: when there is none of that name, or it is broken or longer than ``limit`` bytes.
        """
        entry, shown = self._entries.get(name), ascii(name)[:100]
        if entry is None:
            raise ValueError(f"the ZIP file has no entry {shown}")
        if entry.size > limit:
            raise ValueError(f"the ZIP entry {shown} has {entry.size} bytes, more than {limit}")
        content = self._unpacked(entry, self._packed(shown, entry))
        if len(content) != entry.size or zlib.crc32(content) != entry.crc:
            raise ValueError(f"the ZIP entry {shown} is damaged")
        return content

    def _packed(self, shown: str, entry: _Entry) -> bytes:
        try:
            signature, *_, name_length, extra_length = _LOCAL.unpack_from(self._data, entry.offset)
        except struct.error:
            raise ValueError(f"the ZIP entry {shown} lies outside of the file") from None
        begin = entry.offset + _LOCAL.size + name_length + extra_length
        end = begin + entry.packed_size
        if signature != b"PK\3\4" or end > len(self._data):
            raise ValueError(f"the ZIP entry {shown} is not where the directory says")
        return self._data[begin:end]

    def _unpacked(self, entry: _Entry, packed: bytes) -> bytes:
        if entry.method == STORED:
            return packed
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            return inflate.decompress(packed, entry.size + 1)  # one byte more would show that the size is wrong
        except zlib.error:
            raise ValueError("a ZIP entry cannot be inflated") from None

    def _read_directory(self) -> None:
        count, offset = self._directory()
        if count > MAX_ENTRIES:
            raise ValueError(f"the ZIP file has {count} entries, more than {MAX_ENTRIES}")
        for _ in range(count):
            offset = self._read_entry(offset)

    def _directory(self) -> tuple[int, int]:
        """Number of entries, and where the first one is described."""
        end = len(self._data) - _END.size
        if end < 0:
            raise ValueError("the file is too short for a ZIP file")
        signature, disk, first_disk, _, count, _, offset, comment = _END.unpack_from(self._data, end)
        if signature != b"PK\5\6" or comment or disk or first_disk:
            raise ValueError("the file does not end as a ZIP file in one piece does")
        if end >= _LOCATOR.size:
            signature, _, offset64, _ = _LOCATOR.unpack_from(self._data, end - _LOCATOR.size)
            if signature == b"PK\6\7":
                if offset64 > end:
                    raise ValueError("the ZIP directory lies outside of the file")
                signature, _, _, _, _, _, _, count, _, offset = _END64.unpack_from(self._data, offset64)
                if signature != b"PK\6\6":
                    raise ValueError("the ZIP file has no directory where it should be")
        if offset > end:
            raise ValueError("the ZIP directory lies outside of the file")
        return count, offset

    def _read_entry(self, offset: int) -> int:
        """Take in one entry of the directory; returns where the next one is described."""
        fields = _CENTRAL.unpack_from(self._data, offset)
        signature, flags, method, crc, packed_size, size = fields[0], fields[5], fields[6], *fields[9:12]
        name_length, extra_length, comment_length, local_offset = *fields[12:15], fields[-1]
        if signature != b"PK\1\2" or flags & _ENCRYPTED or method not in (STORED, DEFLATED):
            raise ValueError("the ZIP file has an entry that is broken, encrypted or packed by an unknown method")
        begin = offset + _CENTRAL.size
        next_offset: int = begin + name_length + extra_length + comment_length
        if next_offset > len(self._data):
            raise ValueError("the ZIP directory is cut off")
        name = self._data[begin : begin + name_length].decode("utf-8", "replace")
        if name in self._entries:
            raise ValueError(f"the ZIP file has two entries {ascii(name)[:100]}")
        extra = self._data[begin + name_length : begin + name_length + extra_length]
        size, packed_size, local_offset = _wide([size, packed_size, local_offset], extra)
        if local_offset > len(self._data) or packed_size > len(self._data):
            raise ValueError(f"the ZIP entry {ascii(name)[:100]} lies outside of the file")
        self._entries[name] = _Entry(method, crc, packed_size, size, local_offset)
        return next_offset


def _wide(values: list[int], extra: bytes) -> list[int]:
    """The values, with those that did not fit into 32 bits taken from the extra field, where they follow in order."""
    missing = [index for index, value in enumerate(values) if value == _IN_EXTRA]
    while missing and len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _EXTRA64:
            for index, (value,) in zip(missing, struct.iter_unpack("<Q", field[: len(missing) * 8]), strict=True):
                values[index] = value
            return values
    return values
