"""Files as bytes of UTF-8 text, whatever they are packed in; what a file is that is no text.

gzip, zstd, xz and bzip2 are told by their first bytes, UTF-16 and UTF-32 by their byte order mark.
"""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
         codecs.BOM_UTF16_BE: "utf-16"}
_MAGIC = {b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"\xff\xff\xff\xff": "an Arrow stream",
          b"PK\x03\x04": "a zip archive (or a spreadsheet)", b"%PDF": "a PDF", b"SQLite format 3": "an SQLite database",
          b"\x89PNG": "a picture", b"\x80\x02": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
          b"version https://git-lfs": "the pointer of a file that git-lfs has not fetched", b"<!DOCTYPE": "a web page",
          b"<!doctype": "a web page", b"<html": "a web page"}


def _zstd(file: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(str(file), "zstd")


_PACKED: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"\x28\xb5\x2f\xfd": _zstd,
                                               b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}


def opened(file: Path) -> io.BufferedReader:
    """The file's text as UTF-8 bytes. Reading it may raise OSError, EOFError, zlib.error, lzma.LZMAError or ValueError
    where it is damaged.
    """
    with file.open("rb") as raw:
        head = raw.read(6)
    unpack = next((one for mark, one in _PACKED.items() if head.startswith(mark)), None)
    if file.suffix == ".gz" and unpack is None:
        unpack = gzip.open
    stream = io.BufferedReader(file.open("rb", 0) if unpack is None else unpack(file))
    try:
        bom = next((name for mark, name in _BOMS.items() if stream.peek(4)[:4].startswith(mark)), None)
        return io.BufferedReader(_Recoded(stream, bom)) if bom and not kind_of(stream) else stream
    except BaseException:
        stream.close()
        raise


def kind_of(stream: io.BufferedReader) -> str:
    """What the file is, where it is no text: "a Parquet file"; '' for a text."""
    head = stream.peek(512)[:512]
    if named := next((name for mark, name in _MAGIC.items() if head.startswith(mark)), ""):
        return named
    return "no text" if b"\0" in head and not any(head.startswith(mark) for mark in _BOMS) else ""


class _Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self.stream, self.decoder, self.held = stream, codecs.getincrementaldecoder(encoding)(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.held:
            piece = self.stream.read(1 << 16)
            self.held = self.decoder.decode(piece, final=not piece).encode()
            if not piece and not self.held:
                return 0
        size = min(len(buffer), len(self.held))
        buffer[:size], self.held = self.held[:size], self.held[size:]
        return size

    def close(self) -> None:
        self.stream.close()
        super().close()
