"""What each example takes of a row's budgets, from the index and an ImageSpec.

It is counted a block of examples at a time, and for a large source once: what is counted is kept on disk and mapped.
Behind the array in each file stands its checksum.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmm.atomic import published
from jaxmm.batch import TARGET, ImageSpec
from jaxmm.data.media import geometry
from jaxmm.data.media.features import IMAGE
from jaxmm.data.prepare.prepared import Columns, file_checksum
from jaxmm.errors import UserError

BLOCK = 1 << 18  # examples at a time
SAVED_FROM = 1 << 18  # examples from which on lengths are kept on disk
FORMAT = 3  # raise it with any change to what is saved
CHECKSUM = 4  # bytes


class Budgets(NamedTuple):
    """What a row holds at most: text positions (soft tokens included), patches, tiles, targets, feature vectors."""

    tokens: int
    patches: int
    items: int
    targets: int
    features: int = 0


class Lengths:
    """The sizes of one source's examples under an ImageSpec.

    Attributes:
      all_needs: int32 (E, budgets), what each example takes of each budget, in the order of Budgets; its columns are
        ``tokens_E`` (soft tokens included), ``patches_E``, ``items_E``, ``targets_E`` and ``features_E``.
      units_I: int32, patch positions of each image (class tokens included), vectors of ready-made features, 0 of
        discrete tokens; ``slots_I`` are its soft tokens.
      feature_width: D of the feature vectors, 0 where there are none.
    """

    def __init__(self, prepared: Columns, spec: ImageSpec, cache: Path | None = None):
        """``cache``: a folder where the lengths of a large source are kept, so that another process need not count."""
        self.prepared, self.spec = prepared, spec
        self.name = str(prepared.meta["name"])
        self.feature_width: int = max(prepared.meta.get("feature_widths", ()), default=0)
        self._files: tuple[Path, Path] | None = None
        if cache is not None and len(prepared) >= SAVED_FROM and "fingerprint" in prepared.meta:
            text = json.dumps([FORMAT, prepared.meta["fingerprint"], *vars(spec).values()])
            stem = hashlib.sha256(text.encode()).hexdigest()[:16]
            self._files = cache / f"{stem}.needs.npy", cache / f"{stem}.units.npy"
        if self._files is None or all(map(_is_whole, self._files)):
            self._open()
            return
        for file, array in zip(self._files, _count(self.prepared, self.spec), strict=True):
            _save(file, array)
        self._open()

    def _open(self) -> None:
        if self._files is None:
            self.all_needs, self.units_I = _count(self.prepared, self.spec)
        else:
            self.all_needs, self.units_I = (np.load(file, mmap_mode="r") for file in self._files)

    def __getstate__(self) -> dict:  # a worker process maps the files anew
        mapped = ("all_needs", "units_I", "slots_I") if self._files else ()
        return {k: v for k, v in self.__dict__.items() if k not in mapped}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._files:
            self._open()

    def __len__(self) -> int:
        return len(self.all_needs)

    @property
    def tokens_E(self) -> np.ndarray:
        return self.all_needs[:, 0]

    @property
    def patches_E(self) -> np.ndarray:
        return self.all_needs[:, 1]

    @property
    def items_E(self) -> np.ndarray:
        return self.all_needs[:, 2]

    @property
    def targets_E(self) -> np.ndarray:
        return self.all_needs[:, 3]

    @property
    def features_E(self) -> np.ndarray:
        return self.all_needs[:, 4]

    @functools.cached_property
    def slots_I(self) -> np.ndarray:
        return soft_tokens(self.units_I, self.prepared.image_kind_I, self.spec)

    def patches_of(self, images: np.ndarray | slice) -> np.ndarray:
        """int64: the patches of some media, 0 of those that are no images."""
        is_image = np.asarray(self.prepared.image_kind_I[images]) == IMAGE
        return np.where(is_image, self.units_I[images], 0).astype(np.int64)

    @functools.cached_property
    def totals(self) -> np.ndarray:
        """int64 (budgets,): the needs of all examples, summed."""
        none = np.zeros(len(Budgets._fields), np.int64)
        return sum((needs.sum(0, dtype=np.int64) for _, needs in self.blocks()), none)

    def needs(self, examples: np.ndarray) -> np.ndarray:
        """int64 (len(examples), budgets): what each takes of each budget, in the order of Budgets."""
        return self.all_needs[examples].astype(np.int64)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """All needs, a block at a time, each with the number of its first example."""
        for start in range(0, len(self), BLOCK):
            yield start, self.all_needs[start : start + BLOCK]

    def is_long(self, needs: np.ndarray, budgets: Budgets) -> np.ndarray:
        """Which of (n, budgets) needs no row holds."""
        found = needs[:, 0] > budgets.tokens
        for column in range(1, len(budgets)):
            found |= needs[:, column] > budgets[column]
        return found


def soft_tokens(units: Any, kinds: Any, spec: ImageSpec) -> Any:
    """How many soft tokens media give, by their patch positions or vectors and by their kinds; ints or arrays."""
    return (units - spec.extra * tiles(units, kinds, spec)) // spec.merge**2


def tiles(units: Any, kinds: Any, spec: ImageSpec) -> Any:
    """How many tiles media are cut into: 0 of what is no image, 1 of most images."""
    is_image = np.asarray(kinds) == IMAGE
    return is_image * (units // spec.tile_patches) if spec.max_tiles > 1 else is_image.astype(np.int64)


def _count(prepared: Columns, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """(all_needs, units_I) of a source.

    Raises:
      UserError: if feature vectors cannot be merged to soft tokens.
    """
    count = len(prepared.tokens_E)
    all_needs = np.zeros((count, len(Budgets._fields)), np.int32)
    units_I = np.empty(len(prepared.image_at_I), np.int32)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        tokens = np.asarray(prepared.tokens_E[start:stop], np.int64)
        images = np.asarray(prepared.images_E1[start : stop + 1], np.int64)
        block = slice(int(images[0]), int(images[-1]))
        is_image = np.asarray(prepared.image_kind_I[block]) == IMAGE
        images = images - block.start  # not in place: it may be the index itself
        units_I[block] = units = _units(prepared, block, spec)
        needs = all_needs[start:stop]
        kinds = np.asarray(prepared.image_kind_I[block])
        needs[:, 0] = tokens + _sums(soft_tokens(units, kinds, spec), images)
        needs[:, 1] = needs_of_all = _sums(units, images)
        needs[:, 2] = np.diff(images) if spec.max_tiles == 1 else _sums(tiles(units, kinds, spec), images)
        if not is_image.all():
            needs[:, 1] = _sums(np.where(is_image, units, 0), images)
            needs[:, 2] = _sums(tiles(units, kinds, spec), images)
            needs[:, 4] = needs_of_all - needs[:, 1]
        runs = np.asarray(prepared.runs_E1[start : stop + 1], np.int64)
        runs_here = slice(int(runs[0]), int(runs[-1]))
        needs[:, 3] = _sums(_run_targets(prepared, runs_here, runs - runs_here.start, tokens), runs - runs_here.start)
    return all_needs, units_I


def _units(prepared: Columns, media_slice: slice, spec: ImageSpec) -> np.ndarray:
    """Patches or vectors of a slice of media."""
    height, width, kind = (
        np.asarray(column[media_slice])
        for column in (prepared.image_height_I, prepared.image_width_I, prepared.image_kind_I)
    )
    rows, columns = geometry.grid_size(height, width, spec)
    patches = rows * columns + spec.extra
    if spec.max_tiles > 1:
        patches = patches * geometry.tile_count(height, width, spec)
    if not kind.any():
        return patches
    is_features, merge = kind > IMAGE, spec.merge
    # Vectors in tower order, (n, 1), need whole groups; a grid needs whole squares.
    uneven = np.where(width == 1, height % merge**2, height % merge + width % merge) > 0
    if (is_features & uneven).any():
        which = int(np.argmax(is_features & uneven))
        raise UserError(
            f"{prepared.meta['name']} has feature vectors of {height[which]} x {width[which]}, which do not merge by "
            f"{merge} x {merge}: set config.image.merge to what divides them"
        )
    return np.where(is_features, height * width, np.where(kind == IMAGE, patches, 0))


def _run_targets(prepared: Columns, runs: slice, offsets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Targets in each of a slice of runs, those of consecutive examples with ``offsets`` into the slice."""
    starts = np.asarray(prepared.run_start_R[runs], np.int64)
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    has_runs = np.diff(offsets) > 0
    ends[offsets[1:][has_runs] - 1] = tokens[has_runs]
    return np.where(np.asarray(prepared.run_flags_R[runs]) & TARGET, ends - starts, 0)


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of ``values`` between consecutive offsets; empty ranges give 0."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _is_whole(file: Path) -> bool:
    """Whether a file is there as ``_save`` wrote it."""
    try:
        size = file.stat().st_size - CHECKSUM
        with open(file, "rb") as opened:
            opened.seek(size)
            return file_checksum(file, size) == int.from_bytes(opened.read(), "little")
    except (OSError, ValueError):
        return False


def _save(file: Path, array: np.ndarray) -> None:
    """Writes a file that is whole or not there; two processes that write it write the same."""
    try:
        with published(file) as unfinished:
            with open(unfinished, "wb") as opened:
                np.save(opened, array)
            checksum = file_checksum(unfinished)
            with open(unfinished, "ab") as opened:
                opened.write(checksum.to_bytes(CHECKSUM, "little"))
    except OSError as error:
        raise UserError(f"{file} could not be written: {error}") from error


class Expanded(NamedTuple):
    """The layout of one example with its soft tokens in place.

    Attributes:
      token_at: (tokens,) position of each text token.
      flags, weights: (tokens,) of batch.TARGET and batch.ANSWER; what each weighs in the loss if it is a target.
      slot_at: (images,) position of each image's first soft token, or of the first of discrete image tokens.
    """

    token_at: np.ndarray
    flags: np.ndarray
    weights: np.ndarray
    slot_at: np.ndarray


def expanded(prepared: Columns, example: int, slots: np.ndarray) -> Expanded:
    """Lays out an example whose images have so many soft tokens."""
    count = int(prepared.tokens_E[example])
    image_at = np.asarray(prepared.image_at_I[slice(*prepared.images_E1[example : example + 2])], np.int64)
    run_slice = slice(*prepared.runs_E1[example : example + 2])
    starts = np.asarray(prepared.run_start_R[run_slice], np.int64)
    lengths = np.diff(np.append(starts, count))
    flags, weights = (
        np.repeat(np.asarray(c[run_slice]), lengths) for c in (prepared.run_flags_R, prepared.run_weight_R)
    )
    before = np.concatenate([[0], np.cumsum(slots)])
    token_at = np.arange(count) + before[np.searchsorted(image_at, np.arange(count), side="right")]
    return Expanded(token_at, flags, weights, image_at + before[:-1])
