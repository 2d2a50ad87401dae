"""Bodies that clients pack, gzip (RFC 1952) or zstd (RFC 8878): unpacked as they come, and never beyond a limit."""

from __future__ import annotations

import sys
import zlib

from app.errors import MalformedJson, UnsupportedEncoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Unpacker", "unpacker_for", "zstd"]

#: Of what a zstd frame may refer to, as a power of two: 8 MB, what every decoder must know and no encoder for the web
#: goes beyond.
WINDOW: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}


class Unpacker:
    """Of one body, which may be several packed parts one after the other."""

    def __init__(self, name: str) -> None:
        """`name`: gzip or zstd."""
        self._name = name
        self._begin()
        self._begun = False

    @property
    def ended(self) -> bool:
        """Whether what came so far is whole."""
        return not self._begun or self._unpacker.eof

    def unpack(self, chunk: bytes, most: int) -> bytes:
        """What `chunk` goes on with, up to `most` bytes (1 or more); whoever gets so many must not go on.

        :raises MalformedJson: if it is not packed in this way.
        """
        unpacked = b""
        try:
            while chunk and len(unpacked) < most:
                if self._begun and self._unpacker.eof:
                    self._begin()
                self._begun = True
                unpacked += self._unpacker.decompress(chunk, most - len(unpacked))
                chunk = self._unpacker.unused_data if self._unpacker.eof else b""
        except (zlib.error, zstd.ZstdError) as error:
            raise MalformedJson(f"the body is not {self._name}, as its Content-Encoding says ({error})") from error
        return unpacked

    def _begin(self) -> None:
        self._unpacker = zlib.decompressobj(31) if self._name == "gzip" else zstd.ZstdDecompressor(options=WINDOW)


def unpacker_for(content_encoding: str) -> Unpacker | None:
    """By the header of a request; None if the body is not packed.

    :raises UnsupportedEncoding: for any other way, or several one around the other.
    """
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip", "zstd"):
        return Unpacker(name.removeprefix("x-"))
    raise UnsupportedEncoding(f"Content-Encoding is {content_encoding[:80]!r}: send the body as it is, or gzip or zstd")
