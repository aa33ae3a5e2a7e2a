"""What a run says of its data before the first step, and keeps of it at the end."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_run
from conftest import IMAGE

from jaxmm import command, sharding, train
from jaxmm.clip_spec import AudioSpec, VideoSpec
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.models.multimodal import ModelSpec
from jaxmm.training import closing, opening

IMAGE_KIND, VIDEO_KIND, AUDIO_KIND = 0, -2, -3


def source(*media: tuple[int, int, int, int, int]) -> Lengths:
    """One example a medium of (height, width, kind, length, rate), each with ten text tokens."""
    count = len(media)
    height, width, kind, length, rate = np.array(media, np.int64).T
    index = SimpleNamespace(
        tokens_E=np.full(count, 10), images_E1=np.arange(count + 1), runs_E1=np.arange(count + 1),
        run_start_R=np.ones(count, np.int64), run_flags_R=np.ones(count, np.uint8), image_at_I=np.full(count, 2),
        image_height_I=height, image_width_I=width, image_kind_I=kind, media_count_I=length,
        media_rate_num_I=rate, media_rate_den_I=np.ones(count, np.int64), second_E=np.zeros(count, np.int32),
        meta={"name": "made", "media": ["audio"]},
    )  # fmt: skip
    video = VideoSpec(fps=2.0, max_frames=64, min_pixels=256, max_pixels=256, row_tokens=100)
    audio = AudioSpec(mels=32, max_seconds=30.0)
    spec = dataclasses.replace(IMAGE, video=video, audio=audio)
    return Lengths(index, spec)  # type: ignore[arg-type]


def data_lines(lengths: Lengths) -> list[str]:
    corpus = SimpleNamespace(lengths=[lengths], shares=[1.0], later=())
    plan = SimpleNamespace(long=[SimpleNamespace(line=lambda *_: "")], mixture=SimpleNamespace(is_endless=True))
    config = SimpleNamespace(data=SimpleNamespace(long_documents="split"))
    return list(opening._data_lines(SimpleNamespace(corpus=corpus, held_out=None, plan=plan, config=config)))  # type: ignore[arg-type]


def test_clips_that_get_shorter_are_told_and_kept_in_the_summary():
    second = 16000
    lengths = source(
        (16, 16, VIDEO_KIND, 300, 10), (16, 16, VIDEO_KIND, 40, 10), (16, 16, IMAGE_KIND, 0, 0),
        (1, 1, AUDIO_KIND, 60 * second, second), (1, 1, AUDIO_KIND, 40 * second, second),
        (1, 1, AUDIO_KIND, 30 * second, second),
    )  # fmt: skip
    first, *cut = data_lines(lengths)
    assert "1 images, 2 videos, 3 recordings, share 1.000" in first
    kept = closing._cut_short([lengths])
    video, audio = kept["made"]["video"], kept["made"]["audio"]
    whole = 30  # temporal patches of 30 s at two frames a second
    assert video == [1, pytest.approx(int(lengths.items_E[0]) / whole)]
    assert audio == [2, pytest.approx((30 / 60 + 30 / 40) / 2)]
    assert cut == [
        "data: made, 1 of 2 videos get fewer frames, as a row of 100 tokens cannot hold them: "
        f"they keep {video[1]:.0%} on average",
        "data: made, 2 of 3 recordings are cut to their first 30 s (config.audio.max_seconds): "
        "they keep 62% on average",
    ]


@pytest.mark.parametrize(
    ("kinds", "clips", "words"),
    [
        ((IMAGE_KIND,), (), "64 tokens, 1,280 patches, 8 images, 32 targets;"),
        ((IMAGE_KIND, VIDEO_KIND), ("video",), "64 tokens, 1,280 patches of images and videos, 8 images or temporal "
         "patches of 2 frames, 32 targets;"),
        ((VIDEO_KIND,), ("video",), "64 tokens, 1,280 patches of videos, 8 temporal patches of 2 frames, 32 targets;"),
        ((AUDIO_KIND,), ("audio",), "64 tokens, 32 targets, 1,984 audio frames of 10 ms;"),
        ((), (), "64 tokens, 1,280 patches, 8 images, 32 targets;"),
    ],
)  # fmt: skip
def test_what_a_row_holds_is_told_with_what_each_number_counts(kinds, clips, words):
    lengths = source(*((16, 16, kind, 40 if kind else 0, 10) for kind in kinds)) if kinds else None
    budgets = Budgets(64, 1280, 8, 32, **({"audio": 1984} if "audio" in clips else {}))
    run = SimpleNamespace(
        budgets=budgets, recipe=SimpleNamespace(image=source((16, 16, 0, 0, 1)).spec.only(clips), model=ModelSpec()),
        corpus=SimpleNamespace(lengths=[lengths] if lengths else []), config=SimpleNamespace(batch_size=4),
        mesh=sharding.make_mesh({"data": 1}, jax.devices()[:1]),
    )  # fmt: skip
    first, *_ = opening._row_lines(run)  # type: ignore[arg-type]
    assert first == f"a row holds {words} a batch 4 rows"


def test_feature_vectors_of_clips_are_named_and_their_towers_arrays_are_not():
    spec = source((16, 16, 0, 0, 1)).spec
    names = opening._names_of_budgets(spec, {"video_features", "audio_features"})
    assert names == {
        "tokens": "tokens", "targets": "targets", "features": "feature vectors",
        "audio_features": "feature vectors of recordings",
    }  # fmt: skip


def test_data_that_is_taken_whole_is_not_spoken_of():
    lengths = source((16, 16, VIDEO_KIND, 40, 10), (16, 16, IMAGE_KIND, 0, 0))
    assert len(data_lines(lengths)) == 1
    assert closing._cut_short([lengths]) == {}


def test_the_closing_line_asks_with_the_media_that_a_run_has_and_of_text_with_none():
    def asked_with(*sources: Lengths) -> str:
        return closing._asked_with(SimpleNamespace(corpus=SimpleNamespace(media=set(), lengths=sources)))  # type: ignore[arg-type]

    assert asked_with(source((16, 16, IMAGE_KIND, 0, 0))) == "--image=PICTURE.png "
    assert asked_with() == ""


def test_lines_of_steps_that_died_with_a_machine_are_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n{"step": 12, "eval": {}}\n')
    record = SimpleNamespace(config={"log": {"every": 5}}, skipped_lines=3)
    run = SimpleNamespace(workdir=tmp_path, record=record, start=14, skipped=SimpleNamespace(lines=lambda: 3))
    assert list(opening.lost_lines(run)) == [], "step 15 would be the next"  # type: ignore[arg-type]
    run.start, run.skipped.lines = 22, lambda: 1
    metrics, skipped = opening.lost_lines(run)  # type: ignore[arg-type]
    assert "metrics.jsonl has nothing of steps 11 to 22, which are done" in metrics
    assert "skipped.jsonl lacks 2 lines" in skipped


def test_a_schedule_of_another_length_is_told_where_it_changes_the_rate(tmp_path):
    arguments = small_run.arguments(tmp_path, tmp_path)
    cosine = [*arguments, "--config.optimizer.schedule=cosine", "--config.optimizer.rate=1.0"]
    config, constant = (command.parse(flags, train.FLAGS).config for flags in (cosine, arguments))
    assert re.search(r"rate at step 8 is 0\.[5-9]\d*, and would have been 0\.0", opening.jump_of_rate(config, 8, 7, 16))
    assert opening.jump_of_rate(config, 8, 7, 8) == ""
    assert opening.jump_of_rate(config, 16, 7, 16) == ""
    assert opening.jump_of_rate(constant, 8, 7, 16) == ""
