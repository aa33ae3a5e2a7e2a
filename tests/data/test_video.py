"""Videos from a document to a batch: which frames, where their patches and soft tokens stand, and what a row holds."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
from conftest import IMAGE, picture
from made import document, source_of
from made_index import Made

from jaxmm.batch import IGNORED
from jaxmm.clip_spec import AudioSpec, VideoSpec
from jaxmm.data.assemble import Assembler, Loaded, Skipped
from jaxmm.data.documents import Document, Image, Text, Video
from jaxmm.data.media import sampling
from jaxmm.data.media.extents import Extent
from jaxmm.data.media.geometry import patch_positions
from jaxmm.data.media.medium import SEPARATORS
from jaxmm.data.media.table import MEDIA
from jaxmm.data.media.video import VIDEO as VIDEO_KIND
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Piece, Plan, choose_budgets
from jaxmm.data.prepare.index import CLIPS, COLUMNS, PREFERENCES
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.image_spec import ImageSpec

TEMPLATE = Template(load_tokenizer(""), "pretrain")
VIDEO = VideoSpec(frames=2, fps=2.0, min_frames=2, max_frames=8, min_pixels=8 * 8, max_pixels=16 * 16)
SPEC = dataclasses.replace(IMAGE, video=VIDEO)
STAMPED = dataclasses.replace(VIDEO, sampling="ends", stamp="[{seconds:.1f}]<|image_start|>", stamp_end="<|image_end|>")
SIZE = (16, 8)  # of frames: 4 x 2 patches, 2 soft tokens
ROW = Budgets(tokens=160, patches=160, items=16, targets=160)


def film(frames: int, fps: float = 4.0, seed: int = 0, size: tuple[int, int] = SIZE) -> Video:
    """A list of frames of noise."""
    return Video(frames=tuple(picture(*size, seed + n) for n in range(frames)), fps=fps)


def spec_with(**changed) -> ImageSpec:
    return dataclasses.replace(SPEC, video=dataclasses.replace(VIDEO, **changed))


def prepared_of(folder, *documents: Document) -> Prepared:
    return Prepared(prepare(source_of(documents), TEMPLATE, folder, workers=1))


def lengths_in(folder, spec: ImageSpec, *documents: Document) -> Lengths:
    return Lengths(prepared_of(folder, *documents), spec, encode=TEMPLATE.stamp)


def loaded_of(lengths: Lengths, budgets: Budgets = ROW) -> Loaded:
    """All documents whole, in one row."""
    row = [Piece(0, i, 0, int(count)) for i, count in enumerate(lengths.tokens_E)]
    return Assembler([lengths], budgets, lengths.spec)([row])


def pixels_of(image: Image) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(image.data)).convert("RGB"))


def patches_of(frame: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """The patches of a frame that needs no resizing, in the order in which they travel."""
    side = spec.patch_size
    positions = patch_positions(frame.shape[0] // side, frame.shape[1] // side, spec)
    return np.stack([frame[r * side : (r + 1) * side, c * side : (c + 1) * side].reshape(-1) for r, c in positions])


def test_each_temporal_patch_is_a_tile_of_its_frames(tmp_path):
    shown = film(12)  # 3 s: 6 frames at 2 a second, 3 temporal patches
    lengths = lengths_in(tmp_path, SPEC, document(Text("a"), shown, Text("b")))
    assert lengths.units_I.tolist() == [3 * 8]
    assert lengths.slots().tolist() == lengths.spans().tolist() == [3 * 2]
    assert lengths.items_E.tolist() == [3]
    batch = loaded_of(lengths).batch
    assert batch.patches.values.shape == (1, ROW.patches, SPEC.patch_bytes)
    numbers = [[0, 2], [4, 6], [8, 10]]
    for tile, those in enumerate(numbers):
        there = slice(tile * 8, (tile + 1) * 8)
        expected = np.concatenate([patches_of(pixels_of(shown.frames[n]), SPEC) for n in those], 1)
        np.testing.assert_array_equal(batch.patches.values[0, there], expected)
        assert (batch.patches.segments[0, there] == tile + 1).all()
        assert (batch.patches.positions[0, there, 0] == tile).all()
        np.testing.assert_array_equal(batch.patches.positions[0, there, 1:], patch_positions(4, 2, SPEC))
        assert batch.grids_BM3[0, tile].tolist() == [1, 4, 2]
    slots = batch.slots_BT[0]
    assert slots[slots != IGNORED].tolist() == list(range(6))
    assert not (batch.weights_BT[0, :-1] * (slots[1:] != IGNORED)).any(), "a soft token is never a target"


def test_a_picture_beside_a_video_is_as_many_equal_frames(tmp_path):
    image = picture(8, 8, 5)
    batch = loaded_of(lengths_in(tmp_path, SPEC, document(image, Text("a"), film(4)))).batch
    first = batch.patches.values[0, :4]
    np.testing.assert_array_equal(first, np.tile(patches_of(pixels_of(image), SPEC), 2))
    alone = loaded_of(lengths_in(tmp_path / "alone", SPEC.only(()), document(image, Text("a")))).batch
    np.testing.assert_array_equal(alone.patches.values[0, :4], first[:, : first.shape[1] // 2])


def test_data_without_clips_is_as_it_was(tmp_path):
    plain = prepared_of(tmp_path, document(picture(8, 8), Text("a")))
    assert plain.meta["format"] == 3
    assert not {f"{name}.npy" for name in CLIPS} & {path.name for path in plain.folder.iterdir()}
    assert plain.meta["fingerprint"] == "4c00ebe6003daf3749754635f248c566240b2bcdaae60362539522fc414b923b"
    clips = prepared_of(tmp_path / "clips", document(film(4), Text("a")))
    assert clips.meta["format"] == 4
    assert clips.meta["media"] == ["video"]
    written = {f"{name}.npy" for name in COLUMNS if name not in PREFERENCES}
    assert written <= {path.name for path in clips.folder.iterdir()}
    assert [int(getattr(clips, name)[0]) for name in CLIPS] == [4, 4, 1]


def test_a_spec_changes_without_preparing_again(tmp_path):
    prepared = prepared_of(tmp_path, document(film(16), Text("a")))
    frames = {fps: int(Lengths(prepared, spec_with(fps=fps)).items_E[0]) * 2 for fps in (0.5, 1.0, 2.0, 4.0)}
    assert frames == {0.5: 2, 1.0: 4, 2.0: 8, 4.0: 8}


def test_stamps_stand_before_their_frames_and_are_no_targets(tmp_path):
    spec = dataclasses.replace(SPEC, video=STAMPED)
    lengths = lengths_in(tmp_path, spec, document(Text("a"), film(12), Text("b")))
    loaded = loaded_of(pickle.loads(pickle.dumps(lengths)))
    batch, slots = loaded.batch, loaded.batch.slots_BT[0]
    start, end = TEMPLATE.own.image_start_id, TEMPLATE.own.image_end_id
    length = int(lengths.tokens_E[0])
    said = ["soft" if slot != IGNORED else int(token) for token, slot in zip(batch.text.values[0], slots, strict=True)]
    numbers = sampling.frame_numbers(6, 12, 4.0, STAMPED)
    expected: list = [*TEMPLATE.stamp("a"), start]
    for seconds in sampling.seconds_of(numbers, 4.0):
        expected += [*TEMPLATE.stamp(f"[{seconds:.1f}]"), start, "soft", "soft", end]
    assert said[:length] == [*expected, end, *TEMPLATE.stamp("b"), TEMPLATE.eos_id]
    inside = range(2, len(expected))
    assert not batch.weights_BT[0, [at - 1 for at in inside]].any()
    assert lengths.spans()[0] == len(inside)
    assert int(lengths.tokens_E[0]) == int((batch.text.segments[0] > 0).sum())


def test_stamps_tell_when_a_temporal_patch_begins():
    spec = spec_with(stamp="<|image_start|>", stamp_end="{whole}/{first:.2f}/{seconds:.2f}/{number}")
    extent = Extent(8, 16, VIDEO_KIND, 24, Fraction(8))  # 3 s: frames 0, 4, 8..., of 8 patches
    texts = [text for _, text in MEDIA["video"].inner(3 * 8, extent, spec)]
    assert texts == [
        "<|image_start|>", "0/0.00/0.25/1<|image_start|>", "1/1.00/1.25/2<|image_start|>", "2/2.00/2.25/3",
    ]  # fmt: skip


def steps_of(count: int, rate: float, fps: float, longest: float) -> list[int]:
    """GLM-4.1V's rule, written out."""
    seconds, most = count / rate, int(longest * fps)
    if seconds <= longest:
        wanted = [math.ceil(i * rate / fps) for i in range(max(int(seconds * fps), 1))]
    else:
        wanted = list(range(count)) if most >= count else [math.ceil(t * rate) for t in np.linspace(0, seconds, most)]
    return sorted({min(number, count - 1) for number in wanted})


def dynamic_of(count: int, rate: float) -> list[int]:
    """GLM-4.6V's rule, written out."""
    seconds = count / rate
    known = min(seconds, 2400.0)
    step = 1 / 6 if known <= 30 else 1 / 2 if known <= 300 else 1.0
    wanted = max(min(int(known / step), 640), 1)
    if count < wanted:
        return sorted(set(np.linspace(0, count - 1, wanted, dtype=int).tolist()))
    taken, due = [], 0.0
    for number in range(count):
        if number * (1 / rate) >= due:
            taken.append(number)
            due += step
            if due >= int(seconds):
                break
    if len(taken) != wanted:
        ends = (taken[0], taken[-1]) if len(taken) < wanted else (0, count - 1)
        taken = np.linspace(*ends, wanted, dtype=int).tolist()
    return sorted(set(taken))


@hypothesis.given(
    count=st.integers(1, 4000), rate=st.sampled_from([1.0, 2.0, 7.5, 24000 / 1001, 25.0, 30.0]),
    fps=st.sampled_from([0.5, 2.0, 3.0]), longest=st.sampled_from([20.0, 300.0]),
)  # fmt: skip
@hypothesis.settings(deadline=None)
def test_frames_by_seconds_are_those_of_the_rule_and_fill_whole_temporal_patches(count, rate, fps, longest):
    wide = {"min_frames": 1, "max_frames": 1 << 20}
    for rule, wanted in (
        (spec_with(sampling="steps", fps=fps, max_seconds=longest, **wide), steps_of(count, rate, fps, longest)),
        (spec_with(sampling="dynamic", **wide), dynamic_of(count, rate)),
    ):
        assert rule.video is not None
        taken = sampling.frame_count(count, rate, rule.video)
        numbers = sampling.frame_numbers(taken, count, rate, rule.video).reshape(-1).tolist()
        assert numbers == [*wanted, *wanted[-1:] * (len(wanted) % 2)]
        assert taken == len(numbers)
        assert (sampling.frame_count(np.array([[count, 9]]), rate, rule.video)[0, 0]) == taken
        few = dataclasses.replace(rule.video, max_frames=4)
        if len(wanted) > 4 <= count:
            assert sampling.frame_count(count, rate, few) == 4
            even = np.linspace(0, count - 1, 4).round().astype(int)
            np.testing.assert_array_equal(sampling.frame_numbers(4, count, rate, few).reshape(-1), even)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_documents_longer_than_a_row_get_fewer_frames_and_stay_whole(data):
    stamped = data.draw(st.booleans())
    tokens, patches = data.draw(st.integers(40, 400)), data.draw(st.sampled_from([0, 64, 200]))
    video = dataclasses.replace(
        STAMPED if stamped else VIDEO, fps=data.draw(st.sampled_from([1.0, 2.0, 3.7])), max_frames=200,
        row_tokens=tokens, row_patches=patches,
    )  # fmt: skip
    spec = dataclasses.replace(SPEC, video=video)
    clips = data.draw(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([4, 25, 30])), min_size=1, max_size=3))
    text = data.draw(st.integers(2, 60)) + 2 * len(clips)
    index = Made("made", [text], [[(1 + 2 * n, *SIZE, -2) for n in range(len(clips))]], [[(0, 1)]])
    index.media_count_I = np.array([count for count, _ in clips])
    index.media_rate_num_I, index.media_rate_den_I = np.array([r for _, r in clips]), np.ones(len(clips), np.int64)
    whole = Lengths(index, dataclasses.replace(spec, video=dataclasses.replace(video, row_tokens=0, row_patches=0)),
                    encode=TEMPLATE.stamp)  # fmt: skip
    lengths = Lengths(index, spec, encode=TEMPLATE.stamp)
    assert (lengths.units_I <= whole.units_I).all()
    assert (lengths.units_I >= 8).all()
    assert (lengths.spans() + SEPARATORS <= tokens).all()
    fits = whole.tokens_E[0] <= tokens and (not patches or whole.patches_E[0] <= patches)
    is_cut = (lengths.units_I < whole.units_I).any()
    assert not (fits and is_cut)
    if lengths.tokens_E[0] > tokens or (patches and lengths.patches_E[0] > patches):  # it is split, its clips whole
        each = whole.spans() / (whole.units_I / 8)
        alone = np.minimum(whole.units_I // 8, (tokens - SEPARATORS) // each)
        alone = np.minimum(alone, patches // 8) if patches else alone
        assert (lengths.units_I // 8 >= np.maximum(alone, 1) - 1).all() or len(clips) > 1
    told = list(lengths.cut_short())
    assert bool(told) == is_cut
    if told:
        (name, count, part) = told[0]
        assert (name, count) == ("video", int((lengths.units_I < whole.units_I).sum()))
        assert 0 < part < 1


def test_only_patches_count_against_the_patches_of_a_row():
    index = Made("made", [8], [[(1, *SIZE, -2), (4, 1, 1, -3)]], [[(0, 1)]])
    index.meta["media"] = ["video", "audio"]
    index.media_count_I = np.array([40, 160000])
    index.media_rate_num_I, index.media_rate_den_I = np.array([10, 16000]), np.ones(2, np.int64)
    spec = dataclasses.replace(spec_with(max_frames=20, row_patches=64, row_tokens=4000), audio=AudioSpec(mels=8))
    assert Lengths(index, spec).units_I[0] == 4 * 8, "the recording's frames are no patches"


def test_a_document_that_is_split_for_its_text_keeps_its_videos_whole():
    index = Made("made", [900], [[(1, *SIZE, -2)]], [[(0, 1)]])
    index.media_count_I, index.media_rate_num_I = np.array([400]), np.array([10])
    index.media_rate_den_I = np.ones(1, np.int64)
    kept = [
        int(Lengths(index, spec_with(max_frames=60, row_tokens=tokens)).units_I[0] // 8) for tokens in (950, 890, 50)
    ]
    assert kept == [25, 30, 24], "gives up what helps; nothing, as it is split; and what no row holds"


def test_rows_of_a_plan_hold_videos_and_pictures(tmp_path):
    rng = np.random.default_rng(0)
    documents = []
    for i in range(30):
        parts: list = [Text("w" * int(rng.integers(1, 30)))]
        for k in range(int(rng.integers(0, 3))):
            parts += [film(int(rng.integers(1, 14)), seed=i) if rng.random() < 0.5 else picture(8, 16, k), Text("x")]
        documents.append(document(*parts, i=i))
    lengths = lengths_in(tmp_path, SPEC, *documents)
    budgets = choose_budgets([lengths], [1.0], 96, 0, 0, SPEC.merge)
    plan = Plan([lengths], [1.0], budgets, 2, 0)
    assemble = Assembler([lengths], budgets, SPEC)
    for k in range(6):
        loaded = assemble(plan.batch(k))
        assert not loaded.skipped
        for b, row in enumerate(loaded.rows):
            units = sum(int(lengths.patches_E[piece.example]) for piece in row)
            assert int((loaded.batch.patches.segments[b] > 0).sum()) == units
            soft = int((loaded.batch.slots_BT[b] != IGNORED).sum())
            assert sorted(set(loaded.batch.slots_BT[b].tolist()) - {IGNORED}) == list(range(soft))


def test_a_broken_frame_leaves_its_document_as_padding(tmp_path):
    broken = film(6)
    half = Image(data=broken.frames[3].data[:60])
    broken = broken._replace(frames=(*broken.frames[:3], half, *broken.frames[4:]))
    lengths = lengths_in(tmp_path, SPEC, document(Text("a"), film(4)), document(broken, i=1), document(film(4, seed=9)))
    loaded = loaded_of(lengths)
    assert loaded.skipped == [Skipped("made, record 1", "truncated", "video")]
    segments = loaded.batch.text.segments[0]
    assert set(segments.tolist()) == {0, 1, 3}
    held = loaded.batch.patches.segments[0]
    assert int((held > 0).sum()) == 2 * 8
    assert not loaded.batch.patches.values[0, held == 0].any()


@pytest.mark.parametrize("after", ["space", "all"])
def test_positions_count_seconds(tmp_path, after):
    spec = dataclasses.replace(spec_with(positions_per_second=4.0, after=after), text_axes=3)
    lengths = lengths_in(tmp_path, spec, document(Text("a"), film(12), Text("b")))
    batch = loaded_of(lengths).batch
    slots = batch.slots_BT[0]
    positions = batch.text.positions[0]
    first = int(np.argmax(slots != IGNORED))
    assert positions[first : first + 6].tolist() == [
        [first + 4 * t, first + r, first] for t in range(3) for r in range(2)
    ]
    following = first + 6
    assert positions[following].tolist() == [first + (2 if after == "space" else 9)] * 3


def test_boxes_in_a_video_are_written_in_thousandths_alone():
    extent = Extent(480, 640, -2, 100)
    assert MEDIA["video"].pixels(extent) == (480, 640)
    assert MEDIA["video"].pixels(extent, is_resized=True) is None
    assert MEDIA["image"].pixels(extent, is_resized=True) == (480, 640)


def test_time_stamps_of_many_videos_are_counted_with_each_video_sampled_once(monkeypatch):
    """Rounds of shortening ask for the same video again, and count again only what got shorter."""
    counts, limit = [20 + 30 * i for i in range(40)], 150
    spec = spec_with(fps=2.0, max_frames=64, stamp="<{seconds:.1f}>", row_tokens=limit)
    index = Made("films", [10] * 40, [[(2, 64, 80, VIDEO_KIND)]] * 40, [[(0, 1)]] * 40)
    index.meta["media"] = ["video"]
    index.media_count_I, index.media_rate_num_I = np.array(counts), np.full(40, 10)
    index.media_rate_den_I = np.ones(40, np.int64)
    sampled, single = sampling.sampled, []

    def noted(height, *rest):
        if not np.ndim(height):
            single.append(rest)
        return sampled(height, *rest)

    monkeypatch.setattr(sampling, "sampled", noted)
    lengths = Lengths(index, spec, encode=lambda text: list(text.encode()))
    assert len(single) == len(counts)
    assert (lengths.tokens_E <= limit).all()
    assert lengths.units_I.max() < Lengths(index, spec_with(fps=2.0, max_frames=64)).units_I.max(), "some got shorter"
    again = lengths.inner.counted(lengths.units_I, lengths.extents(slice(None)), spec)
    np.testing.assert_array_equal(lengths.inner_I, again)
    np.testing.assert_array_equal(lengths.tokens_E, 10 + lengths.slots() + again)
