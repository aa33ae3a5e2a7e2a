"""The wanted frames of an opened film, in order: decoded forward, each once, with seeks where those save decoding."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import numpy as np

from jaxmm.data.media import container
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.picture import MAX_PIXELS
from jaxmm.data.media.timeline import Timeline

TOLERANCE = 2  # frames by which a header may promise too many: the last one that there is stands for them
WORTH_SEEKING = 8  # frames that need not be decoded


class FrameDecoder:
    """Decodes forward, no frame twice, from one wanted frame to the next."""

    def __init__(self, demuxed: Any, stream: Any, timeline: Timeline, kind: str, places: list[int]):
        """
        Args:
          places: the frames that will be asked for; the decoder may leave out others that no frame refers to.
        """
        self.demuxed, self.stream, self.timeline = demuxed, stream, timeline
        from av import FFmpegError  # of an optional extra

        self.damage = FFmpegError
        self.codec = stream.codec_context
        self.codec.thread_count = 1
        self.codec.options = {"max_pixels": str(MAX_PIXELS)}  # whatever size its frames turn out to have
        self.packets = demuxed.demux(stream)
        self.frames = self._decoded()
        self.last: tuple[int, Any] | None = None  # the place and the frame that was decoded last
        self.next: tuple[int, Any] | None = None  # one that was decoded too far
        self.is_ended = False
        self.count = -1  # place of the last decoded frame
        self.key: int | None = None  # time of the keyframe up to which packets are left out
        self.has_sought = self.is_rewound = False
        self.fed = -1  # place of the last keyframe that the decoder got
        self.keys = np.searchsorted(timeline.times, timeline.keys) if kind in ("mov", "matroska") else np.empty(0, int)
        # Frames that none refers to: H.264 marks them for sure, and PyAV asks before each packet.
        can_leave_out = self.codec.name == "h264" and kind in ("mov", "matroska") and not timeline.is_counted
        kept = {place - back for place in places for back in range(TOLERANCE + 1)}
        self.kept = {int(timeline.times[place]) for place in kept if place >= 0} if can_leave_out else None

    def frame(self, place: int) -> Any:
        """The frame at a place, or the last one before it. Raises BadMedia if that is too far off."""
        self._seek(place)
        while not self.is_ended and (self.last is None or self.last[0] < place):
            following, self.next = self.next or next(self.frames, None), None
            if following is None:
                self.is_ended = True
            elif following[0] <= place or self.last is None:
                self.last = following
            else:
                self.next = following
                break
        if self.last is not None and abs(self.last[0] - place) <= TOLERANCE:
            return self.last[1]
        if self.has_sought:  # to a keyframe that was not found, or is none
            self._restart()
            return self.frame(place)
        raise BadMedia("truncated" if self.is_ended else "unreadable")

    def close(self) -> None:
        """Lets go of all frames: its own generators refer to it, and would hold them until garbage is collected."""
        self.frames.close()
        self.packets, self.last, self.next = iter(()), None, None

    def _restart(self) -> None:
        """Goes back to the first frame, to decode all from there on."""
        self.keys, self.key, self.has_sought, self.is_ended = self.keys[:0], None, False, False
        self.last = self.next = None
        self.packets, self.frames = self.demuxed.demux(self.stream), self._decoded()
        self._go(int(self.timeline.times[0]))

    def _seek(self, place: int) -> None:
        """Goes to the keyframe before a place, if it lies ahead and that saves some decoding."""
        before = int(np.searchsorted(self.keys, place, "right")) - 1
        if before < 0:
            return
        key = int(self.keys[before])
        if key <= self.fed or key - (self.count + 1) < WORTH_SEEKING:
            return
        self.has_sought = True
        self.key, self.next, self.is_rewound = int(self.timeline.times[key]), None, False
        self._go(self.key)

    def _go(self, time: int) -> None:
        with contextlib.suppress(self.damage):  # where it cannot, packets are left out up to the keyframe
            self.demuxed.seek(time, stream=self.stream)

    def _decoded(self) -> Generator[tuple[int, Any]]:
        while True:
            try:
                packet = next(self.packets, None)
            except (self.damage, OSError):  # what follows cannot be read; the frames on their way still can
                packet = None
            for frame in self._fed(packet):
                if self.timeline.is_counted or frame.pts is None:
                    self.count += 1
                else:
                    self.count = int(np.searchsorted(self.timeline.times, frame.pts, "right")) - 1
                yield self.count, frame
            if packet is None:
                return

    def _fed(self, packet: Any) -> list[Any]:
        if packet is None:
            with contextlib.suppress(self.damage):
                return self.codec.decode(None)
            return []
        if not packet.size:  # a repeat in an AVI, or PyAV's mark of the end, after which no packet comes
            return []
        if self.key is not None:
            if packet.pts != self.key or not packet.is_keyframe or not self._is_whole(packet):
                if packet.dts is not None and packet.dts > self.key and not self.is_rewound:  # FFmpeg went too far
                    self.is_rewound = True
                    self._go(int(self.timeline.times[0]))
                return []
            self.key = None
        if packet.is_keyframe and packet.pts is not None:
            self.fed = int(np.searchsorted(self.timeline.times, packet.pts))
        if self.kept is not None:
            self.codec.skip_frame = "DEFAULT" if packet.pts in self.kept else "NONREF"
        with contextlib.suppress(self.damage):  # a damaged packet: ``frame`` finds what is left of it
            return packet.decode()
        return []

    def _is_whole(self, packet: Any) -> bool:
        """Whether a keyframe needs no frame before it: H.264 also marks those from which a film is refreshed slowly."""
        extra = self.codec.extradata
        if self.codec.name != "h264" or not extra or len(extra) < 5 or extra[0] != 1:
            return self.codec.name != "h264"
        return container.is_h264_key(bytes(packet), (extra[4] & 3) + 1)


def rgb(frame: Any, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3); a frame of another size than the header's is resized to it."""
    size = {"height": height, "width": width, "threads": 1}
    if not any(component.is_alpha for component in frame.format.components):
        return np.ascontiguousarray(frame.to_ndarray(format="rgb24", **size))
    pixels = frame.to_ndarray(format="rgba", **size).astype(np.uint16)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
