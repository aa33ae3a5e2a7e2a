"""The interface of a medium: all that differs between images, feature vectors, discrete tokens, and later media.

A ``Medium`` says how its parts are stored in the index and in a record, what they take of a row's budgets under a spec,
and how they fill their arrays of a batch. Preparing, planning and assembling call it and never test for a kind.
``table.MEDIA`` lists all media. docs/extend.md says how to add one, and what its soft tokens need of the model.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxmm.batch import Batch, Stream
from jaxmm.data.media.extents import Extent, Extents
from jaxmm.image_spec import ImageSpec

SEPARATORS = 2  # text tokens around a medium, which stay with it
NEWLINE = -2  # among the rows of a medium: the model's own vector that ends a row, see ``ImageSpec.newline``

Array = Any  # int64 (n,) of n media, or an int of one
Grid = tuple[int, int, int]  # frames, rows and columns of soft tokens; a picture has one frame


class BadMedia(Exception):
    """A medium that cannot be used; its document is skipped.

    Attributes:
      reason: a key of some medium's ``advice``.
      medium: its name, once it is known.
      number: of the medium in its source, once it is known.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason, self.medium, self.number = reason, "image", 0


class Settings(NamedTuple):
    """How a run decodes its media.

    Attributes:
      jitter: the most that an edge of a picture moves, in or out, as a fraction of its side.
      seed: of the random moves.
      fast_decode: whether JPEGs are decoded at a smaller scale where that is large enough, see ``patches.fill``.
      backwards: whether films and recordings are played from their end to their start: what is answered then, about an
        order, tells whether a model watches and listens.
    """

    jitter: float = 0.0
    seed: int = 0
    fast_decode: bool = False
    backwards: bool = False


class Item(NamedTuple):
    """One medium to be written into a row.

    Attributes:
      part: as its record holds it.
      extent: as it was prepared.
      units, soft_tokens: how many it has.
      needs: what it takes of each budget, by name.
      source, number, epoch: the index of its source, its own index there, and the pass, from 0: these seed randomness.
    """

    part: Any
    extent: Extent
    units: int
    soft_tokens: int
    needs: Mapping[str, int]
    source: int = 0
    number: int = 0
    epoch: int = 0


@dataclass
class Space:
    """Row ``b`` of a batch while it is filled.

    Attributes:
      taken: what is used of each budget so far, by name.
      media: how many media are in each stream so far.
    """

    batch: Batch
    b: int
    taken: dict[str, int] = field(default_factory=dict)
    media: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Space:
        return Space(self.batch, self.b, dict(self.taken), dict(self.media))

    def take(self, stream: str, needs: Mapping[str, int]) -> None:
        for name, count in needs.items():
            self.taken[name] = self.taken.get(name, 0) + count
        self.media[stream] = self.media.get(stream, 0) + 1


class Mixture(NamedTuple):
    """What soft tokens are made of beside the first row of each.

    Attributes:
      others: int64 (soft tokens, 3): three more rows of the soft-token table, from the medium's first.
      weights: float32 (soft tokens, 4): of all four rows; 1, 0, 0, 0 of a soft token that is one row.
    """

    others: np.ndarray
    weights: np.ndarray


class Filled(NamedTuple):
    """Where the soft tokens of a written medium stand.

    Attributes:
      rows: int64 (soft tokens,), in reading order: the row of each in the soft-token table, from the medium's first, or
        NEWLINE.
      grid: (frames, rows, columns) of soft tokens.
      times: the position of each frame along the first of several text axes, from the medium's own; () numbers them.
      apart: each frame is numbered as a picture of its own.
      mixture: what soft tokens are besides these rows; None where each is one row.
    """

    rows: np.ndarray
    grid: Grid
    times: tuple[int, ...] = ()
    apart: bool = False
    mixture: Mixture | None = None


class Placed(NamedTuple):
    """A grid of soft tokens that are numbered together, as ``Filled`` has it."""

    grid: Grid
    times: tuple[int, ...] = ()

    @classmethod
    def of(cls, filled: Filled) -> list[Placed]:
        """The grids of a medium."""
        if filled.apart:
            return [cls((1, *filled.grid[1:]))] * filled.grid[0]
        return [cls(filled.grid, filled.times)]


class Inner(NamedTuple):
    """Text inside a medium, which depends on how it is sampled and is no target; it stands before soft token ``at``."""

    at: int
    text: str


class Medium(abc.ABC):
    """One kind of media. It has no state: one object serves all threads.

    Attributes:
      name: in reports and figures.
      plural: what several of them are called there.
      part: its type in ``documents``, with ``data`` and ``path``, unless the methods under "Preparing" are overridden.
      kind: its number in the index, below -1 for a new one.
      budgets: the names of the row's budgets that it uses. A name that no other medium has is a new budget.
      stream: the budget that counts its units; also names the arrays of a batch that they fill. '' for none.
      is_seen: whether it can be seen, with height and width in pixels.
      is_text: whether its content is in the tokens of the text, and nothing in a record.
      made_of: of vectors of clips, the medium whose tower made them: the model needs what that one needs.
      advice: a closed list of reasons why it cannot be used, each with what to do about it.
    """

    name: ClassVar[str]
    plural: ClassVar[str] = "images"
    part: ClassVar[type]
    kind: ClassVar[int]
    budgets: ClassVar[tuple[str, ...]] = ()
    stream: ClassVar[str] = ""
    is_seen: ClassVar[bool] = False
    is_text: ClassVar[bool] = False
    made_of: ClassVar[str] = ""
    advice: ClassVar[Mapping[str, str]] = {}

    @property
    def modality(self) -> str:
        """What figures count it as: vectors of clips as the clips that they were made of."""
        return self.made_of or self.name

    def has(self, kinds: Any) -> Any:
        """Which kinds of the index are this medium's, elementwise."""
        return kinds == self.kind

    # Preparing

    @abc.abstractmethod
    def extent(self, part: Any) -> Extent:
        """Returns the extent that a part's header gives.

        Raises:
          BadMedia: if it cannot be used.
        """

    def path(self, part: Any) -> str:
        """The path or URL of its file, or ''."""
        return part.path

    def paths(self, part: Any) -> tuple[str, ...]:
        """The paths and URLs of all its files."""
        path = self.path(part)
        return (path,) if path else ()

    def size(self, part: Any) -> int:
        """About how many bytes it takes."""
        return len(part.data) + len(part.path)

    def content(self, part: Any, named: Callable[[str], str]) -> bytes:
        """Bytes that tell two parts apart, for fingerprints.

        Args:
          named: maps a path to one that stays the same where the data is copied to another place.
        """
        return named(part.path).encode() if part.path else part.data

    def packed(self, part: Any) -> dict[str, Any]:
        """What a record stores of it, for msgpack."""
        return {"medium": self.name} | ({"path": part.path} if part.path else {"data": part.data})

    def unpacked(self, packed: Mapping[str, Any]) -> Any:
        """The part that ``packed`` was called with; None where a record stores nothing of it."""
        return self.part(packed.get("data", b""), packed.get("path", ""))

    def is_packed(self, packed: Mapping[str, Any]) -> bool:
        """Whether this medium wrote ``packed``."""
        return packed.get("medium") == self.name

    def pixels(self, extent: Extent, is_resized: bool = False) -> tuple[int, int] | None:
        """(height, width) in pixels that boxes in texts refer to; None for a medium that is not seen.

        Args:
          is_resized: whether boxes are to be written in pixels of what the model sees, by the spec of images. It is
            None where that spec has no say.
        """
        return (extent.height, extent.width) if self.is_seen else None

    # Planning. ``spec`` is the run's ImageSpec; the settings of a later medium are a field of it.

    def units(self, extents: Extents, spec: ImageSpec) -> Array:
        """How many units (patches, frames) of their stream the media take.

        Raises:
          UserError: if the media cannot be used under this spec.
        """
        return 0 * np.asarray(extents.kind, np.int64)

    def group(self, spec: ImageSpec) -> int:
        """How many units of its stream make a soft token; budgets of the stream are multiples of it."""
        return 1

    def table_rows(self, units: Array, spec: ImageSpec) -> Array:
        """How many rows of the soft-token table so many units of its stream make: whole groups."""
        return units // self.group(spec)

    def of_rows(self, values: np.ndarray, spec: ImageSpec) -> np.ndarray:
        """What belongs to each row of the soft-token table, of values (units, ...) of a whole stream."""
        return values[:: self.group(spec)]

    def cut_short(self, extents: Extents, spec: ImageSpec) -> Array:
        """The part, from 0 to 1, that the spec itself leaves of media that are taken only up to a length."""
        return np.ones(np.shape(extents.kind))

    def why_cut_short(self, spec: ImageSpec) -> str:
        """Returns what follows "12 of 300" where so many are not taken whole."""
        return f"{self.plural} are cut short"

    def soft_tokens(self, units: Array, extents: Extents, spec: ImageSpec) -> Array:
        """How many soft tokens the media give."""
        return units // self.group(spec)

    def needs(self, units: Array, extents: Extents, spec: ImageSpec) -> dict[str, Array]:
        """What the media take of each of ``budgets``, by name."""
        return {self.stream: units} if self.stream else {}

    def step(self, units: Array, extents: Extents, spec: ImageSpec) -> Array:
        """How many units can be left out together where a row cannot hold all of a medium; 0 if none can."""
        return 0 * np.asarray(extents.kind, np.int64)

    def fixed_tokens(self, spec: ImageSpec) -> int:
        """How many of a medium's soft tokens it has whatever its length."""
        return 0

    def least_steps(self, spec: ImageSpec) -> int:
        """The fewest ``step`` that are left of a medium for the sake of the text beside it."""
        return 1

    def has_inner(self, spec: ImageSpec) -> bool:
        """Whether there is text inside the media."""
        return False

    def inner_keys(self, units: Array, extents: Extents, spec: ImageSpec) -> tuple[Array, ...]:
        """Arrays (n,) each: media that are equal in all of them have the same text inside."""
        columns = extents.height, extents.width, extents.length, extents.rate_num, extents.rate_den
        return (units, *columns)

    def inner(self, units: int, extent: Extent, spec: ImageSpec) -> list[Inner]:
        """The text inside one medium, in order."""
        return []

    def has_intro(self, extents: Extents | Extent, spec: ImageSpec) -> Array:
        """bool (n,): which of the media have ``SplitSpec.intro`` before them, in the text that is prepared."""
        return np.zeros(np.shape(extents.kind), bool)

    def text_tokens(self, extents: Extents) -> Array:
        """How many text tokens, between the separators, are the media's own."""
        return 0 * np.asarray(extents.kind, np.int64)

    def too_large(self, item: Item, tokens: int, budgets: Any, spec: ImageSpec) -> str:
        """Returns what follows "RECORD has" in an error: what is too large for a row, by which limits, and what to do.

        Args:
          item: without its part.
          tokens: that it takes of a row, separators included.
          budgets: as ``limits.Budgets``.
        """
        taken = ", ".join(f"{count} {name}" for name, count in item.needs.items())
        limits = ", ".join(f"{budgets.get(name)} {name}" for name in item.needs)
        return (
            f"{self.name} of {taken} ({tokens} tokens), more than a row holds ({limits}, config.seq_len "
            f"{budgets.tokens}): raise config.seq_len, or leave such documents out by config.data.long_documents=drop"
        )

    # Assembling

    def empty(self, rows: int, budgets: Any, spec: ImageSpec, widths: Mapping[str, int]) -> dict[str, Any]:
        """Its arrays of a batch without content, by the field of ``Batch``, or else by the name of its stream.

        Args:
          budgets: as ``limits.Budgets``.
          widths: D of the sources' feature vectors, by the stream in which they travel.
        """
        return {}

    @abc.abstractmethod
    def fill(self, space: Space, item: Item, spec: ImageSpec, settings: Settings) -> Filled:
        """Writes one medium after what is already in a row: values, positions and segments.

        Raises:
          BadMedia: if it cannot be used; some of it may then be written.
        """

    def clear(self, space: Space) -> None:
        """Sets what is not used of a row to padding, 0."""
        if self.stream:
            for array in self.array(space.batch):
                array[space.b, space.taken.get(self.stream, 0) :] = 0

    def array(self, batch: Batch) -> Stream | tuple[()]:
        """Its stream of a batch; () where the batch has none."""
        return batch.media.get(self.stream, ())

    def used(self, batch: Batch) -> dict[str, np.ndarray]:
        """int64 (B,) by budget: how much each row of a batch holds."""
        stream = self.array(batch)
        return {self.stream: (stream.segments > 0).sum(1)} if isinstance(stream, Stream) else {}
