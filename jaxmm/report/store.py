"""What a page's script shows on demand, as JSON: the documents with their spans, and the pictures and clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmm.data.media.medium import BadMedia
from jaxmm.data.media.table import named
from jaxmm.report import embedding, shell
from jaxmm.report.clips import Film, Sound, samples_of
from jaxmm.report.drawing import spectrogram
from jaxmm.report.embedding import Room
from jaxmm.report.view import Span, View

EXACT_PIXELS = 4_000_000  # pictures are stored exactly up to so many pixels, and as JPEG after them


class Store:
    """Documents, pictures and clips, numbered as they are added.

    Attributes:
      documents: the fields of each View, with its spans as ``[kind, first, last, is_target, text or number]``.
      pictures: ``{"src": data URI, "rows", "columns", "patch", "exact"}``: size and first patch as of tiles.Picture.
      films, sounds: as ``_film`` and ``_sound`` make them of a clips.Film and a clips.Sound.
    """

    def __init__(self, views: Sequence[View]) -> None:
        """``views``: all that will be added, as their clips share the room that there is."""
        films = sum(len(view.films) for view in views)
        sounds = [sound for view in views for sound in view.sounds]
        self.films: list[dict[str, Any]] = []
        self.sounds: list[dict[str, Any]] = []
        self._film_room = Room(embedding.FILM_SIZE, films)
        self._spectrum_room = Room(embedding.PICTURE_SIZE, len(sounds))
        self._sound_room = Room(embedding.SOUND_SIZE, len(sounds))
        self.documents: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        self._pixels = 0

    def add(self, batch: int, row: int, segment: int, view: View) -> dict[str, Any]:
        """Stores a document, and returns what is stored."""
        piece = view.piece
        document = {
            "number": len(self.documents),
            "name": view.name,
            "origin": view.origin,
            "source": piece.source,
            "batch": batch,
            "row": row,
            "segment": segment,
            "place": view.place,
            "piece": (piece.first, piece.last, view.length),
            "pass": piece.epoch + 1,
            "positions": view.positions,
            "compared": view.compared,
            "targets": view.targets,
            "weights": [round(weight, 4) for weight in view.weights],
            "skipped": view.skipped,
            "lost": named(view.medium) if view.skipped else "",
            "boxes": view.boxes,
            "spans": [self._span(span) for span in view.spans],
        }
        self.documents.append(document)
        return document

    def json(self, **more: Any) -> str:
        """All of it, as JSON that may stand in a script element: no ``<`` ends it early."""
        content = {"documents": self.documents, "pictures": self.pictures, "films": self.films}
        content |= {"sounds": self.sounds, **more}
        return shell.script_json(content)

    def _span(self, span: Span) -> list[Any]:
        content: str | int = span.text
        if span.picture is not None:
            content = len(self.pictures)
            pixels = span.picture.pixels
            self._pixels += pixels.shape[0] * pixels.shape[1]
            is_exact = self._pixels <= EXACT_PIXELS
            self.pictures.append({
                "src": embedding.png(pixels) if is_exact else embedding.jpeg(pixels),
                "rows": span.picture.rows, "columns": span.picture.columns, "patch": span.picture.patch,
                "exact": is_exact,
            })  # fmt: skip
        elif isinstance(span.clip, Film):
            content = len(self.films)
            self.films.append(self._film(span.clip))
        elif isinstance(span.clip, Sound):
            content = len(self.sounds)
            self.sounds.append(self._sound(span.clip))
        return [span.kind, span.first, span.last, int(span.is_target), content]

    def _film(self, film: Film) -> dict[str, Any]:
        """``src`` has all frames in rows of ``across``, each ``size`` pixels, which the model has as ``pixels``."""
        first = film.shots[0].picture
        strip = embedding.strip(np.concatenate([shot.picture.frames for shot in film.shots]), self._film_room)
        shots = [
            {"times": [round(time, 3) for time in shot.times], "first": shot.first, "last": shot.last,
             "stamp": shot.stamp, "inside": shot.inside}
            for shot in film.shots
        ]  # fmt: skip
        return {
            "src": strip.src, "across": strip.columns, "size": (strip.width, strip.height), "exact": strip.is_exact,
            "pixels": (first.pixels.shape[1], first.pixels.shape[0]), "rows": first.rows, "columns": first.columns,
            "patch": first.patch, "each": len(first.frames), "shots": shots, "end": film.end, "soft": film.soft,
            "seconds": film.seconds,
        }  # fmt: skip

    def _sound(self, sound: Sound) -> dict[str, Any]:
        """``wav`` has the first ``heard`` of the ``seconds`` that the model hears; '' where there is no room for it."""
        wav, heard = "", embedding.seconds_to_hear(sound.seconds, sound.rate, self._sound_room)
        if heard:
            try:
                wav = embedding.uri("audio/wav", embedding.wav(samples_of(sound, heard), sound.rate))
            except BadMedia:  # its file has gone since the batch was made
                heard = 0.0
        self._sound_room.take(len(wav))
        frames, mels = sound.frames_FM.shape
        return {
            "src": embedding.spectrum(spectrogram(sound.frames_FM), self._spectrum_room), "wav": wav, "heard": heard,
            "seconds": sound.seconds, "whole": sound.whole, "frames": frames, "own": sound.own, "mels": mels,
            "windows": sound.windows, "unit": sound.unit, "soft": sound.soft, "rate": sound.rate,
        }  # fmt: skip
