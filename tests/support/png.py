"""PNG files written by hand, with what no encoder writes."""
import struct
import zlib


def chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    """One chunk with its checksum. length: what it states in place of the length of its body."""
    return struct.pack(">I", len(body) if length is None else length) + name + body \
        + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, color_type: int = 2) -> bytes:
    """A file of the header, `chunks` and the end."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")
