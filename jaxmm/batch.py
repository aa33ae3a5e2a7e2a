"""The arrays of one batch, the same on host and device, and the legend of their dimensions.

Dimensions, which arrays carry as a suffix (``q_BTHD``):

    B  rows of a batch              T  text positions of a row       N  patch positions of a row
    F  audio frames of a row        M  media tiles of a row          S  soft tokens of a row
    P  bytes of a patch             A  coordinate axes               D  width, of a model or of a head
    H  attention heads              K  key-value heads               V  vocabulary
    E  experts                      L  layers                       Q  queries that are looked at
    X  what of them is summed up    C  preferences of a row         O  outputs of a linear map
    G  heads that share a key       Z  chunks of a row              U  positions of a chunk
    W  positions a kernel sees      I  numbers a position brings to a layer

In recurrent layers C is channels, K heads of keys, and V the width of a head's values.

Everything is a tuple of arrays, so that NumPy fills it in the loader's workers and JAX takes it as a pytree; this
module imports neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Array = Any  # a numpy.ndarray on the host, a jax.Array on the device, a jax.ShapeDtypeStruct in tests of shapes

ROLES = ("document", "system", "user", "assistant", "tool")  # of the turns of a document
IGNORED = -1  # in `slots` : no soft token stands here

# Flags of a run of text tokens, stored in the prepared index.
TARGET = 1  # the loss predicts these tokens
ANSWER = 2  # an assistant's turn, up to and including its end marker: what exact match is measured on


class Stream(NamedTuple):
    """A row-wise sequence of units of one modality.

    ``segments`` is 0 on padding and 1.. for each attention unit (a document of text, a tile of patches); the units of
    one segment are adjacent. ``positions`` restart in each segment: (B, T, 1) for text (3 axes for multi-axis rotary),
    (B, N, 3) for patches as (temporal patch, row, column). A row of -1 marks a class or register token, numbered by its
    column. Ready-made features have (B, N, 1). So have audio frames, (B, F, 1): the frame's number in its piece, or -1
    for what fills up its last chunk.
    """

    values: Array  # tokens (B, T) int32; patches (B, N, P) uint8, all frames of a temporal patch one after the other;
    # ready-made features (B, N, D) float32, of audio too; log-mel frames (B, F, mels) float32
    positions: Array  # int32
    segments: Array  # int32


class Mixed(NamedTuple):
    """What soft tokens are made of that are weighted sums of four rows of the table; ``slots_BT`` is the first."""

    others_BT3: Array  # int32: the rows behind that one
    weights_BT4: Array  # float32: of all four; 1, 0, 0, 0 where a position takes one row


class Pairs(NamedTuple):
    """The preferences of each row: two segments of its text each, an answer and the one that it is compared with."""

    segments_BC: Array  # int32: the segment of the answer, that of the other one is next; 0 where there is no pair
    verdicts_BC: Array  # int32: place in ``documents.VERDICTS``
    weights_BC: Array  # float32: weight in the loss, 0 where there is no pair
    sources_BC: Array  # int32: which data source it belongs to
    reference_BC2: Array  # float32: log-probabilities of both answers by the reference model, where it was asked before


class Batch(NamedTuple):
    """One global batch, or the rows of it that this process feeds."""

    text: Stream
    patches: Stream
    grids_BM3: Array  # int32 (frames, rows, columns) of the tile with segment m + 1, in patches; 0 where there is none
    slots_BT: Array  # int32: row of the row's soft-token table that stands at a text position, or IGNORED
    blocks_BT: Array  # int32: 0 is causal, 1.. a run of positions that see each other both ways (image block or prefix)
    targets_BT: Array  # int32: the token that position t predicts
    weights_BT: Array  # float32: its weight in the loss, 0 where nothing is predicted
    sources_BT: Array  # int32: which data source the position belongs to
    features: Stream | None = None  # ready-made tower outputs: their soft tokens come after the patches' in the table
    media: Mapping[str, Stream] = {}  # streams of further media, by name: their soft tokens come last, in this order
    pairs: Pairs | None = None  # of preference data
    mixed: Mixed | None = None  # where pictures are pooled
