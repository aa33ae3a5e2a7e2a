"""Feature vectors of videos and recordings that users bring: from a record to the batch that a model gets."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from conftest import IMAGE, picture, plain
from made import source_of
from readers.reading import Folder, only, openai, refused
from test_features import npy, vectors

from jaxmm.batch import IGNORED
from jaxmm.clip_spec import VideoSpec
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Audio, AudioFeatures, Features, Object, Text, Video, VideoFeatures
from jaxmm.data.media import table
from jaxmm.data.media.clip_features import WIDTHS, AudioFeaturesMedium, VideoFeaturesMedium
from jaxmm.data.media.extents import Extents
from jaxmm.data.media.medium import BadMedia
from jaxmm.data.packing.budgets import choose_budgets
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.pieces import count_long
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.text.chat import Markup
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

VIDEO = VideoSpec(frames=2, fps=4.0)
SPEC = dataclasses.replace(IMAGE, video=VIDEO)
BUDGETS = Budgets(tokens=96, patches=96, items=4, targets=96, features=64, audio_features=32)
HEARD = 24  # width of the audio tower


def sounds(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, HEARD)).astype(np.float32)


def lengths_in(template: Template, *documents: Any, spec: ImageSpec = SPEC) -> Lengths:
    media = [[part for turn in d.turns for part in turn.parts if not isinstance(part, Text)] for d in documents]
    return Lengths(InMemory("made", [template.encode(d) for d in documents], media, ""), spec)


def loaded(lengths: Lengths, budgets: Budgets = BUDGETS, **settings: Any) -> Any:
    row = [Piece(0, e, 0, int(lengths.tokens_E[e])) for e in range(len(lengths))]
    return Assembler([lengths], budgets, lengths.spec, **settings)([row])


# From a part to a batch


def test_vectors_of_clips_travel_beside_those_of_images_and_in_a_stream_of_their_own(template):
    film, still, sound = vectors(3, 2, 4), vectors(2, 2, seed=1), sounds(5)
    page = plain("a", VideoFeatures(npy(film)), Features(npy(still)), AudioFeatures(npy(sound)), picture(8, 8), "b")
    lengths = lengths_in(template, page, plain(AudioFeatures(npy(sounds(2, seed=3))), "c"))
    assert lengths.widths == {"features": 16, "audio_features": HEARD}
    assert lengths.slots().tolist() == [6, 1, 5, 1, 2]
    batch = loaded(lengths).batch
    grids = [np.concatenate([frame[:, :2].reshape(4, -1), frame[:, 2:].reshape(4, -1)]) for frame in film]
    np.testing.assert_array_equal(batch.features.values[0, :28], np.concatenate([*grids, still.reshape(4, -1)]))
    assert batch.features.segments[0].tolist() == [1] * 24 + [2] * 4 + [0] * 36
    heard = batch.media["audio_features"]
    np.testing.assert_array_equal(heard.values[0, :7], np.concatenate([sound, sounds(2, seed=3)]))
    assert heard.segments[0].tolist() == [1] * 5 + [2] * 2 + [0] * 25
    slots = batch.slots_BT[0]
    seen, audio = BUDGETS.patches // 4, (BUDGETS.patches + BUDGETS.features) // 4
    expected = [*range(seen, seen + 7), *range(audio, audio + 5), 0, audio + 5, audio + 6]
    assert slots[slots != IGNORED].tolist() == expected


@pytest.mark.parametrize(("fps", "times"), [(0.0, [0, 1, 2]), (1.0, [0, 2, 4]), (4.0, [0, 0, 1])])
def test_positions_of_a_video_follow_its_rate_or_that_of_the_run(template, fps, times):
    spec = dataclasses.replace(SPEC, text_axes=3, video=dataclasses.replace(VIDEO, positions_per_second=2.0))
    lengths = lengths_in(template, plain("a", VideoFeatures(npy(vectors(3, 2, 4)), fps=fps), "b"), spec=spec)
    positions = loaded(lengths).batch.text.positions[0]
    start = int(positions[2, 0])
    assert positions[2:8, 0].tolist() == [start + time for time in times for _ in range(2)]
    assert positions[2:8, 2].tolist() == [start, start + 1] * 3


def test_played_backwards_a_clip_begins_at_its_end(template):
    film, sound = vectors(3, 2, 2), sounds(4)
    lengths = lengths_in(template, plain(VideoFeatures(npy(film)), AudioFeatures(npy(sound)), "x"))
    batch = loaded(lengths, backwards=True).batch
    np.testing.assert_array_equal(batch.features.values[0, :12], film[::-1].reshape(12, -1))
    np.testing.assert_array_equal(batch.media["audio_features"].values[0, :4], sound[::-1])


def test_a_budget_for_them_is_picked_and_they_come_back_as_they_were_prepared(tmp_path, template):
    np.save(tmp_path / "a.npy", vectors(3, 2, 4))
    film, sound = VideoFeatures(path=str(tmp_path / "a.npy"), fps=1 / 3), AudioFeatures(npy(sounds(5)))
    prepared = Prepared(prepare(source_of([plain(film, sound, "x")]), template, tmp_path / "cache"))
    assert prepared.read(0).images == [film, sound]
    assert prepared.meta["media"] == ["video_features", "audio_features"]
    assert (prepared.meta["feature_widths"], prepared.meta["audio_feature_widths"]) == ([16], [HEARD])
    assert Extents(prepared, 0).one().rate == Fraction(1, 3)
    budgets = choose_budgets([Lengths(prepared, SPEC)], [1.0], 64, 0, 0, IMAGE.merge)
    assert (budgets.features % 64, budgets.get("audio_features") % 64, budgets.get("audio")) == (0, 0, 0)
    assert budgets.features >= 24
    assert budgets.get("audio_features") >= 5


def test_another_rate_is_other_data(tmp_path, template):
    found = set()
    for name, fps in (("a", 1.0), ("b", 2.0)):
        source = source_of([plain(VideoFeatures(npy(vectors(3, 2, 4)), fps=fps), "x")])
        found.add(Prepared(prepare(source, template, tmp_path / name)).meta["fingerprint"])
    assert len(found) == 2


def test_what_was_prepared_without_them_says_nothing_of_them(tmp_path, template):
    meta = Prepared(prepare(source_of([plain(Features(npy(vectors(2, 2))), "x")]), template, tmp_path)).meta
    assert "media" not in meta
    assert "audio_feature_widths" not in meta
    assert meta["format"] == 3


def test_kinds_of_every_width_are_told_apart():
    kinds = [VideoFeaturesMedium().kind_of(d) for d in (1, WIDTHS - 1)]
    kinds += [AudioFeaturesMedium().kind_of(d) for d in (1, WIDTHS - 1)]
    assert [table.medium_of_kind(kind).name for kind in kinds] == ["video_features"] * 2 + ["audio_features"] * 2
    assert table.described(np.array([*kinds, 0, -1, -2, -3, 7]))["feature_widths"] == [1, 7, WIDTHS - 1]
    with pytest.raises(BadMedia):
        VideoFeaturesMedium().kind_of(WIDTHS)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (VideoFeatures(npy(vectors(2, 4))), "no features"),
        (AudioFeatures(npy(vectors(2, 4))), "no features"),
        (AudioFeatures(npy(sounds(4))[:-1]), "truncated"),
        (VideoFeatures(path="/nowhere.npy"), "missing"),
    ],
)
def test_a_file_of_another_shape_is_a_skip_with_its_advice(part, reason):
    medium = table.medium_of(part)
    with pytest.raises(BadMedia, match=reason):
        medium.extent(part)
    assert "(frames, rows, columns, D)" in VideoFeaturesMedium().advice["no features"]


def test_a_video_that_does_not_merge_or_whose_model_reads_times_is_one_line(template):
    with pytest.raises(UserError, match="made has feature vectors of 3 x 4, which do not merge by 2 x 2"):
        lengths_in(template, plain(VideoFeatures(npy(vectors(2, 3, 4))), "x"))
    stamped = dataclasses.replace(SPEC, video=dataclasses.replace(VIDEO, stamp="<{seconds:.1f} seconds>"))
    with pytest.raises(UserError, match="made has feature vectors of videos: this model reads a time before each"):
        lengths_in(template, plain(VideoFeatures(npy(vectors(2, 2, 4))), "x"), spec=stamped)
    pooled = dataclasses.replace(SPEC, video=dataclasses.replace(VIDEO, pool=2))
    with pytest.raises(UserError, match="made has feature vectors of videos: this model pools those of a frame"):
        lengths_in(template, plain(VideoFeatures(npy(vectors(2, 2, 4))), "x"), spec=pooled)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (VideoFeatures(npy(vectors(30, 2, 4))), "240 feature vectors for a video"),
        (AudioFeatures(npy(sounds(60))), "60 feature vectors for a recording"),
    ],
)
def test_vectors_longer_than_a_row_stop_or_are_left_out_and_are_never_cut(template, part, told):
    lengths = lengths_in(template, plain(part, "x"), plain("y"))
    budgets = Budgets(tokens=48, patches=0, items=0, targets=48, features=960, audio_features=960)
    with pytest.raises(UserError, match=told):
        count_long(lengths, budgets, "split")
    assert count_long(lengths, budgets, "drop").long == 1


def test_a_recording_is_numbered_and_marked_whatever_it_is_made_of(template):
    audio = Markup("<|image_start|>{number}:", "<|image_end|>")
    tokenizer = load_tokenizer("")
    tokenizer.add_tokens(["<|image_start|>", "<|image_end|>"], special_tokens=True)
    ours = Template(tokenizer, "sft", audio=audio)
    one, other = (
        ours.encode(plain(Audio(b"x"), second, "y")).tokens.tolist() for second in (Audio(b"z"), AudioFeatures(b"z"))
    )
    assert one == other


def test_a_model_runs_no_audio_tower_for_ready_made_vectors(template, tiny):
    from jaxmm.models.connector import ConnectorSpec
    from jaxmm.models.multimodal import make_model
    from jaxmm.models.towers.audio import AudioTowerSpec

    spec = dataclasses.replace(
        tiny.spec, audio=AudioTowerSpec(width=HEARD, layers=1, heads=2, mlp=8),
        audio_connector=ConnectorSpec(merge=1, mlp=8),
    )  # fmt: skip
    init, apply = make_model(spec)
    params = init(jax.random.key(0))
    lengths = lengths_in(template, plain(AudioFeatures(npy(sounds(5))), "x"), spec=IMAGE)
    batch = loaded(lengths, BUDGETS._replace(features=0)).batch
    run = jax.jit(lambda p, b: apply(p, b, tiny.compute, method="soft_tokens").table_BSD)
    before = np.asarray(run(params, batch))
    params["audio"] = jax.tree.map(lambda x: x * np.nan, params["audio"])
    np.testing.assert_array_equal(np.asarray(run(params, batch)), before)


# Records


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def parts(folder: Folder, record: dict) -> tuple[Any, ...]:
    return only(folder.source([record])).turns[0].parts


def test_files_of_vectors_stand_in_the_place_of_clips(folder, tmp_path):
    film, sound = VideoFeatures(path=str(tmp_path / "a.npy")), AudioFeatures(path=str(tmp_path / "b.NPY"))
    asked = openai(("user", "<video>x<audio>"), ("assistant", "y"))
    assert parts(folder, asked | {"videos": ["a.npy"], "audios": ["b.NPY"]}) == (film, Text("x"), sound)
    timed = asked | {"videos": [{"path": "a.npy", "fps": 1.5}], "audios": {"path": "b.NPY"}}
    assert parts(folder, timed)[0] == film._replace(fps=1.5)
    typed = [{"type": "video", "path": "a.npy", "fps": 2}, {"type": "audio", "audio": "b.NPY"}]
    said = {"messages": [{"role": "user", "content": typed}, {"role": "assistant", "content": "y"}]}
    assert parts(folder, said) == (film._replace(fps=2.0), sound)
    beside = asked | {"videos": ["a.npy"], "audios": ["b.wav"]}
    assert isinstance(parts(folder, beside)[2], Audio)


def test_vectors_as_bytes_are_known_by_how_they_begin():
    from jaxmm.data.readers import clips
    from jaxmm.data.readers.pictures import Pictures

    files = Pictures("/data", "/data")
    assert clips.video({"bytes": npy(vectors(1, 2, 2))}, files) == VideoFeatures(npy(vectors(1, 2, 2)))
    assert clips.audio(npy(sounds(2)), files) == AudioFeatures(npy(sounds(2)))
    assert clips.video({"bytes": b"film"}, files) == Video(b"film")


def test_a_part_of_vectors_cannot_be_asked_for(folder):
    typed = [{"type": "audio", "path": "b.npy", "start": 1}]
    record = {"messages": [{"role": "user", "content": typed}, {"role": "assistant", "content": "y"}]}
    assert "feature vectors of a recording have a start or an end" in refused(folder.source([record]))


def test_boxes_count_pictures_beside_vectors_of_clips(folder):
    asked = openai(("user", "<video><image><bbox>"), ("assistant", "y"))
    record = asked | {"videos": ["a.npy"], "images": ["a.png"], "objects": {"bbox": [[0, 0, 1, 1]]}}
    document = only(folder.source([json.loads(json.dumps(record))], boxes="thousandths"))
    assert document.objects == (Object(box=(0, 0, 1, 1), image=1),)
