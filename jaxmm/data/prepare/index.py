"""The columnar index of a prepared source, from which plans are made; on disk or in memory."""

from __future__ import annotations

import abc
import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm.data.documents import VERDICTS, Media
from jaxmm.data.media import table
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.prepare.meta import FORMAT
from jaxmm.data.prepare.records import Record, stored
from jaxmm.data.text.encoded import Encoded
from jaxmm.errors import UserError

# Columns over examples (E), runs of flags (R) and media, called images (I); E1 are offsets, one more than examples.
COLUMNS = {
    "tokens_E": np.int32,
    "labels_E": np.uint64,
    "runs_E1": np.int64,
    "run_start_R": np.int32,
    "run_flags_R": np.uint8,
    "run_weight_R": np.float32,
    "images_E1": np.int64,
    "image_at_I": np.int32,
    "image_height_I": np.int32,
    "image_width_I": np.int32,
    "image_kind_I": np.int32,
    "media_count_I": np.int64,
    "media_rate_num_I": np.int32,
    "media_rate_den_I": np.int32,
    "second_E": np.int32,
    "verdict_E": np.uint8,
}
CLIPS = ("media_count_I", "media_rate_num_I", "media_rate_den_I")  # columns of data that has video or audio
PREFERENCES = ("second_E", "verdict_E")  # columns of data that has preferences
# What a column holds where a folder lacks it: one from before there were weights, or one without clips or preferences.
# Such a column does not count in the fingerprint either, so that the same data keeps the one it had.
IMPLIED = {"run_weight_R": 1, **dict.fromkeys((*CLIPS, *PREFERENCES), 0)}
_BESIDE = {"E": "tokens_E", "R": "run_flags_R", "I": "image_at_I"}  # by what a column is over, one that is always there


def implied(name: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """A column that a folder lacks, by those that it has."""
    count = len(columns[_BESIDE[name.rpartition("_")[2]]])
    return np.broadcast_to(np.asarray(IMPLIED[name], COLUMNS[name]), count)


def preferences_of(verdict_E: np.ndarray) -> str:
    """Which preferences a source has, one of ``reading.PREFERENCES``; all of its examples have the same."""
    better = VERDICTS.index("better")
    kinds = {"" if not v else "pairs" if v == better else "judged" for v in np.unique(verdict_E).tolist()}
    if len(kinds) > 1:
        raise ValueError(f"a source with examples of several kinds: {', '.join(map(repr, sorted(kinds)))}")
    return kinds.pop() if kinds else ""


class Columns(abc.ABC):
    """The index of a prepared source, of E examples with R runs of flags and I images, or other media.

    Attributes:
      meta: what meta.json holds.
      tokens_E: int32, text tokens of each example, without soft tokens.
      labels_E: uint64, bit k for the k-th of meta["labels"].
      runs_E1: int64 (E + 1,): example e has the runs [runs_E1[e], runs_E1[e + 1]) of the columns that end in _R.
      run_start_R: int32, where in its example a run of tokens with equal flags starts.
      run_flags_R: uint8, batch.TARGET and batch.ANSWER.
      run_weight_R: float32, what a target of the run weighs in the loss.
      images_E1: int64 (E + 1,): offsets, in the same way, into the columns that end in _I.
      image_at_I: int32, the token of its example before which the image's soft tokens stand; for discrete image tokens,
        the first of them.
      image_height_I, image_width_I: int32. Images: pixels, EXIF orientation applied. Feature vectors: rows and columns,
        or their number and 1. Discrete tokens: 1 and their number. Other media: as their Medium defines.
      image_kind_I: int32, which medium it is: 0 an image, -1 discrete tokens, above 0 the width of feature vectors,
        below -1 the kind of another Medium.
      media_count_I: int64, frames of a video, samples of a recording (a channel); 0 of other media.
      media_rate_num_I, media_rate_den_I: int32, how many of them a second has, as a fraction in lowest terms; 0 where
        there is no count.
      second_E, verdict_E: int32 and uint8, as in ``Encoded``; 0 where an example is no preference.
    """

    meta: dict[str, Any]
    tokens_E: np.ndarray
    labels_E: np.ndarray
    runs_E1: np.ndarray
    run_start_R: np.ndarray
    run_flags_R: np.ndarray
    run_weight_R: np.ndarray
    images_E1: np.ndarray
    image_at_I: np.ndarray
    image_height_I: np.ndarray
    image_width_I: np.ndarray
    image_kind_I: np.ndarray
    media_count_I: np.ndarray
    media_rate_num_I: np.ndarray
    media_rate_den_I: np.ndarray
    second_E: np.ndarray
    verdict_E: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_E)

    @abc.abstractmethod
    def read(self, example: int) -> Record:
        """Returns the content of an example; any thread may call it."""


class Index:
    """The columns while they grow. ``labels``: their names, by bit."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self._parts: dict[str, array.array] = {n: array.array(np.dtype(t).char) for n, t in COLUMNS.items()}
        self._parts["runs_E1"].append(0)
        self._parts["images_E1"].append(0)

    def __len__(self) -> int:
        return len(self._parts["tokens_E"])

    def add(self, encoded: Encoded, sizes: Sequence[Extent], labels: Sequence[str]) -> None:
        parts = self._parts
        parts["tokens_E"].append(len(encoded.tokens))
        parts["labels_E"].append(self._mask(labels))
        parts["run_start_R"].extend(encoded.run_starts.tolist())
        parts["run_flags_R"].extend(encoded.run_flags.tolist())
        parts["run_weight_R"].extend(encoded.run_weights.tolist())
        parts["runs_E1"].append(len(parts["run_start_R"]))
        parts["image_at_I"].extend(encoded.image_at.tolist())
        parts["image_height_I"].extend(size.height for size in sizes)
        parts["image_width_I"].extend(size.width for size in sizes)
        parts["image_kind_I"].extend(size.kind for size in sizes)
        parts["media_count_I"].extend(size.length for size in sizes)
        parts["media_rate_num_I"].extend(size.rate.numerator if size.length else 0 for size in sizes)
        parts["media_rate_den_I"].extend(size.rate.denominator if size.length else 0 for size in sizes)
        parts["images_E1"].append(len(parts["image_at_I"]))
        parts["second_E"].append(encoded.second)
        parts["verdict_E"].append(encoded.verdict)

    def _mask(self, labels: Sequence[str]) -> int:
        mask = 0
        for label in labels:
            if label not in self.labels:
                self.labels.append(label)
            mask |= 1 << self.labels.index(label)
        if mask >> 64:
            raise UserError(
                f"more than 64 different labels, the last '{self.labels[-1]}': group documents more coarsely"
            )
        return mask

    def columns(self) -> dict[str, np.ndarray]:
        return {name: np.array(part, COLUMNS[name]) for name, part in self._parts.items()}


class InMemory(Columns):
    """Encoded documents in memory, never written to disk: mostly prompts."""

    def __init__(
        self,
        name: str,
        encoded: Sequence[Encoded],
        images: Sequence[Sequence[Media]],
        template: str,
        extents: Sequence[Sequence[Extent]] | None = None,
        names: Sequence[Sequence[str]] = (),
    ):
        """
        Args:
          images: the media of each document, in order.
          template: the fingerprint of the template that encoded them.
          extents: of the media, where their headers have been read.
          names: what an error calls the media of each document; () is by what they are, and their paths.

        Raises:
          UserError: if the header of a medium cannot be read.
        """
        index = Index()
        for i, (one, pictures) in enumerate(zip(encoded, images, strict=True)):
            if len(one.image_at) != len(pictures):
                raise ValueError(f"{name}, record {i}: {len(pictures)} images for {len(one.image_at)} places")
            where = f"{name}, record {i}: " if len(encoded) > 1 else ""
            called = (names[i] if names else ()) or [""] * len(pictures)
            read = (_extent_or_error(where, *each) for each in zip(pictures, called, strict=True))
            index.add(one, extents[i] if extents else list(read), ())
        self.__dict__.update(index.columns())
        self.meta = {
            "format": FORMAT, "name": name, "template": template, "examples": len(index), "labels": [],
            **table.described(self.image_kind_I), "preferences": preferences_of(self.verdict_E),
        }  # fmt: skip
        self._records = [
            Record(one.tokens, stored(pictures), f"{name}, record {i}")
            for i, (one, pictures) in enumerate(zip(encoded, images, strict=True))
        ]

    def read(self, example: int) -> Record:
        return self._records[example]


def _extent_or_error(where: str, part: Media, name: str) -> Extent:
    """Returns what a header tells. ``where`` begins the error, '' where there is but one record; ``name`` as above."""
    medium = table.medium_of(part)
    try:
        return medium.extent(part)
    except BadMedia as error:
        path = medium.path(part)
        what = name or (f"the {medium.name} {path}" if path else f"the {medium.name} given as bytes")
        advice = f"; {medium.advice[error.reason]}" if error.reason in medium.advice else ""
        raise UserError(f"{where}{what} cannot be used: {error.reason}{advice}") from error
