"""How many units and soft tokens a clip has, against the counts of ``transformers``, and where its frames stand."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxmm.clip_spec import AudioSpec
from jaxmm.data.media import audio_geometry as geometry

WHISPER = AudioSpec(chunk=4, chunk_positions=2, pool=2, attend=0, halo=2, piece=3000)
CHUNKS = AudioSpec(chunk=100, chunk_positions=13, attend=8)
lengths = st.integers(1, 7000)


def of_chunks(frames: int) -> int:
    """``_get_feat_extract_output_lengths`` of Qwen3-ASR."""
    half = (frames % 100 - 1) // 2 + 1
    return ((half - 1) // 2 + 1 - 1) // 2 + 1 + frames // 100 * 13


@hypothesis.given(lengths)
def test_a_clip_in_chunks_has_the_soft_tokens_of_transformers(frames):
    assert geometry.soft_tokens(frames, CHUNKS) == of_chunks(frames)
    assert geometry.units(frames, CHUNKS) == -(-frames // 100) * 100
    positions, segments = geometry.places(frames, CHUNKS)
    # Window by window: as many soft tokens as frames of it stand at a multiple of the stride in their chunk.
    heads = np.concatenate([segments[at : at + 100 : CHUNKS.stride] for at in range(0, len(segments), 100)])
    assert (heads > 0).sum() == of_chunks(frames)
    assert np.bincount(heads)[1:].max() <= 104
    assert geometry.windows(frames, CHUNKS) == segments.max() == -(-frames // 800)
    np.testing.assert_array_equal(positions[:frames, 0], np.arange(frames))


@hypothesis.given(lengths)
def test_a_clip_in_pieces_has_the_soft_tokens_of_each_piece(frames):
    pieces = [min(3000, frames - at) for at in range(0, frames, 3000)]
    positions = [(n - 1) // 2 + 1 for n in pieces]
    assert geometry.soft_tokens(frames, WHISPER) == sum((n - 2) // 2 + 1 for n in positions)
    each = [geometry.places(n, WHISPER, number) for number, n in enumerate(pieces, start=1)]
    whole = geometry.places(frames, WHISPER)
    for name in ("positions", "segments"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in each]), getattr(whole, name))
    units = [min(-(-(n + 2) // 4) * 4, 3000) for n in pieces]
    assert geometry.units(frames, WHISPER) == sum(units) == len(whole.segments)
    assert geometry.windows(frames, WHISPER) == len(pieces)
    assert (whole.segments > 0).sum() == frames


@hypothesis.given(lengths)
def test_the_soft_tokens_of_a_clip_are_the_first_rows_that_it_takes(frames):
    for spec in (WHISPER, CHUNKS):
        rows = geometry.token_rows(frames, spec)
        assert len(rows) == geometry.soft_tokens(frames, spec)
        assert len(rows) <= geometry.table_rows(geometry.units(frames, spec), spec)


def test_a_filled_piece_is_whole_whatever_the_clip():
    spec = AudioSpec(chunk=4, chunk_positions=2, attend=0, halo=2, piece=3000, filled=True)
    assert geometry.soft_tokens(np.array([0, 1, 3000, 3001]), spec).tolist() == [0, 1500, 1500, 3000]
    assert (geometry.places(5, spec).segments == 1).all()


def test_many_clips_are_counted_as_each_one():
    frames = np.random.default_rng(0).integers(0, 7000, 50)
    for spec in (WHISPER, CHUNKS):
        for count in (geometry.units, geometry.soft_tokens, geometry.windows):
            assert count(frames, spec).tolist() == [count(int(n), spec) for n in frames]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 2}, "chunk_positions 13 must be whole soft tokens of 2"),
        ({"chunk_positions": 60}, "a chunk of 100 frames cannot have 60 positions"),
        ({"piece": 250}, "a piece of 250 frames must be whole chunks of 100"),
        ({"filled": True}, "a piece without an end cannot be filled"),
        ({"hop": 0}, "hop of audio is 0: it must be 1 or above"),
    ],
)
def test_sizes_that_do_not_match_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AudioSpec(**changes)
