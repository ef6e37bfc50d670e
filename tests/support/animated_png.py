"""Animated PNG files from pictures of equal sizes, with one palette for all of them.

APNG: https://www.w3.org/TR/png-3/ (acTL, fcTL and fdAT chunks).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = 255  # of the palette, beside the one that keeps the pixel before


def animated_png(frames: Sequence[tuple[NDArray[np.uint8], int]]) -> bytes:
    """An animation of pictures (height, width, 3) with their milliseconds. It repeats for ever.

    A frame has only the rectangle of pixels that changed; unchanged pixels in it have the transparent colour.
    """
    pictures = [picture for picture, _ in frames]
    palette, indexed = with_palette(pictures)
    height, width = indexed[0].shape
    parts = [
        SIGNATURE,
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", len(frames), 0)),
        chunk(b"PLTE", palette.tobytes()),
        chunk(b"tRNS", b"\xff" * (len(palette) - 1) + b"\x00"),
    ]
    sequence, before = 0, None
    for picture, (_, milliseconds) in zip(indexed, frames):
        top, left, part = changed(before, picture, len(palette) - 1)
        size = (part.shape[1], part.shape[0], left, top)
        control = struct.pack(">IIIIIHHBB", sequence, *size, milliseconds, 1000, 0, 1)
        parts.append(chunk(b"fcTL", control))
        sequence += 1
        data = zlib.compress(np.pad(part, ((0, 0), (1, 0))).tobytes(), 9)  # no filter before each row
        if before is None:
            parts.append(chunk(b"IDAT", data))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", sequence) + data))
            sequence += 1
        before = picture
    return b"".join([*parts, chunk(b"IEND", b"")])


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_palette(pictures: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """The most frequent colours, with a last one for transparent pixels, and the pictures as numbers of them."""
    codes = [picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32) for picture in pictures]
    known, counts = np.unique(np.concatenate([one.ravel() for one in codes]), return_counts=True)
    best = known[np.argsort(-counts, kind="stable")[:COLOURS]]
    colours, all_colours = (
        np.stack([one >> 16, one >> 8 & 255, one & 255], axis=1).astype(np.int32) for one in (best, known)
    )
    nearest = np.empty(len(known), np.uint8)
    for first in range(0, len(known), 4096):
        some = all_colours[first : first + 4096, None] - colours
        nearest[first : first + 4096] = (some**2).sum(axis=2).argmin(axis=1)
    palette = np.concatenate([colours, np.zeros((1, 3), np.int32)]).astype(np.uint8)
    return palette, [nearest[np.searchsorted(known, one)] for one in codes]


def changed(
    before: NDArray[np.uint8] | None, picture: NDArray[np.uint8], transparent: int
) -> tuple[int, int, NDArray[np.uint8]]:
    """Top and left of the rectangle that changed, and its pixels; those that stayed are transparent."""
    if before is None:
        return 0, 0, picture
    differs = picture != before
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):  # a frame has a pixel at least
        return 0, 0, np.full((1, 1), transparent, np.uint8)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return int(rows[0]), int(columns[0]), np.where(differs[box], picture[box], np.uint8(transparent))
