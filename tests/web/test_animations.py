"""The animation of screenshots.py: Chromium decodes the frames that were put in."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.animated_png import animated_png
from support.page_server import PageServer
from support.page_visit import Visit


def test_frames_of_an_animated_png(browser: Any, server: PageServer) -> None:
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (200, 3), np.uint8)
    first = colours[rng.integers(0, 200, (12, 17))]
    second, third = first.copy(), first.copy()
    second[3:7, 5:11] = colours[rng.integers(0, 200, (4, 6))]
    third[11, 16] = colours[0]
    frames = [(first, 100), (second, 250), (second, 40), (third, 900)]
    visit = Visit(browser, server.url)
    code = """async (bytes) => {
        const found = [], decoder = new ImageDecoder({ data: Uint8Array.from(bytes), type: "image/png" });
        await decoder.tracks.ready;
        await decoder.completed;
        for (let frameIndex = 0; frameIndex < decoder.tracks.selectedTrack.frameCount; frameIndex++) {
            const { image } = await decoder.decode({ frameIndex });
            const context = new OffscreenCanvas(17, 12).getContext("2d");
            context.drawImage(image, 0, 0);
            found.push([image.duration / 1000, [...context.getImageData(0, 0, 17, 12).data]]);
        }
        return [found, decoder.tracks.selectedTrack.repetitionCount];
    }"""
    decoded, repetitions = visit.page.evaluate(code, list(animated_png(frames)))
    assert repetitions is None or repetitions == float("inf")
    assert [duration for duration, _ in decoded] == [milliseconds for _, milliseconds in frames]
    for (_, pixels), (picture, _) in zip(decoded, frames):
        shown = np.array(pixels, np.uint8).reshape(12, 17, 4)
        assert np.array_equal(shown[..., :3], picture)
        assert (shown[..., 3] == 255).all()
    visit.close()
