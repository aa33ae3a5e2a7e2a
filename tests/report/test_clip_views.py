"""Videos and recordings on the page are what the arrays hold: frames, time stamps, log-mel frames; and can be heard."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from chromium import set_screen
from conftest import IMAGE, picture, plain, rows_of

from jaxmm.clip_spec import AudioSpec, VideoSpec
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Audio, Document, Image, Text, Tokens, Video
from jaxmm.data.media import audio_file
from jaxmm.data.media.audio import AudioMedium
from jaxmm.data.media.log_mel import log_mel
from jaxmm.data.packing.plan import Budgets, Lengths, cut
from jaxmm.data.prepare.index import InMemory
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.image_spec import ImageSpec
from jaxmm.report import embedding
from jaxmm.report.clips import samples_of
from jaxmm.report.content import DrawnRow, Report, Source
from jaxmm.report.page import render
from jaxmm.report.plan_lines import plan_line
from jaxmm.report.store import Store
from jaxmm.report.tally import ClipSums, Tally, over_budget
from jaxmm.report.view import View, Viewer

VIDEO = VideoSpec(fps=2.0, min_frames=2, max_frames=8, min_pixels=64, max_pixels=1024, sampling="ends")
STAMPED = dataclasses.replace(VIDEO, stamp="[{seconds:.1f} s]<|image_start|>", stamp_end="<|image_end|>")
AUDIO = AudioSpec(mels=32, chunk=50, chunk_positions=7, attend=2)
SPEC = dataclasses.replace(IMAGE, video=STAMPED, audio=AUDIO)
BUDGETS = Budgets(tokens=320, patches=640, items=24, targets=320, audio=800)
RATE = 16000


def film(frames: int = 12, fps: float = 4.0, size: tuple[int, int] = (16, 24)) -> Video:
    """A bright bar that wanders over a changing ground."""
    pictures = []
    for n in range(frames):
        pixels = np.full((*size, 3), (20 + 15 * n, 40, 160 - 10 * n), np.uint8)
        at = n * (size[1] - 4) // max(frames - 1, 1)
        pixels[:, at : at + 4] = (250, 220, 80)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        pictures.append(Image(data=file.getvalue()))
    return Video(frames=tuple(pictures), fps=fps)


def samples(seconds: float, rate: int = RATE) -> np.ndarray:
    """int16: a tone that rises."""
    at = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * (200 + 300 * at) * at) * 12000).astype(np.int16)


def recording(seconds: float) -> Audio:
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(RATE)
        opened.writeframes(samples(seconds).astype("<i2").tobytes())
    return Audio(data=file.getvalue())


def lengths_of(template, documents: Sequence[Document], spec: ImageSpec = SPEC, name: str = "clips") -> Lengths:
    media = [[part for turn in d.turns for part in turn.parts if not isinstance(part, Text)] for d in documents]
    source = InMemory(name, [template.encode(d) for d in documents], media, template.fingerprint)
    return Lengths(source, spec, encode=template.stamp)


def loaded_of(lengths: Lengths, *rows: Sequence[int]) -> Loaded:
    """Rows of whole documents; all of them in one, if none is named."""
    rows = rows or (range(len(lengths)),)
    return Assembler([lengths], BUDGETS, lengths.spec)(rows_of(lengths, *rows))


def views_of(template, *parts, spec: ImageSpec = SPEC) -> list[View]:
    lengths = lengths_of(template, [plain(*parts)], spec)
    return Viewer([lengths], template, spec).row(loaded_of(lengths), 0)


def pixels_of(image: Image) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(image.data)).convert("RGB"))


@pytest.mark.parametrize("video", [VIDEO, STAMPED], ids=["plain", "stamped"])
def test_a_video_is_one_thing_with_the_frames_that_were_fed_in(video, template):
    given = film()
    (view,) = views_of(template, "a", given, "b", spec=dataclasses.replace(SPEC, video=video))
    (shown,) = view.films
    assert [shot.times for shot in shown.shots] == [[0.0, 0.5], [1.0, 1.75], [2.25, 2.75]]
    assert shown.seconds == 3.0
    for shot in shown.shots:
        for frame, time in zip(shot.picture.frames, shot.times, strict=True):
            np.testing.assert_array_equal(frame, pixels_of(given.frames[round(time * given.fps)]))
        assert shot.last - shot.first == 2 * 3  # of 8 x 8 pixels in a frame of 16 x 24
    assert shown.soft == 18
    said = ["[0.2 s]", "[1.4 s]", "[2.5 s]"] if video is STAMPED else ["", "", ""]
    assert [shot.stamp for shot in shown.shots] == said
    assert not any(stamp in view.text for stamp in said if stamp), "a stamp is not people's text"
    assert view.text == "ab"
    ends = [view.place[0], *(span.last for span in view.spans)]
    assert [span.first for span in view.spans] == ends[:-1]
    assert not view.pictures


def test_clips_in_parts_of_a_long_document_are_found(template):
    parts = ["a" * 60, film(4), "b" * 300, Tokens((1,) * 5), recording(0.5), "c" * 60, film(6), "d"]
    image_tokens = Template(load_tokenizer(""), "sft", 16, True)
    lengths = lengths_of(image_tokens, [plain(*parts)])
    pieces = [piece for piece, _ in cut(lengths, 0, 0, BUDGETS)]
    assert len(pieces) > 1
    loaded = Assembler([lengths], BUDGETS, SPEC)([[piece] for piece in pieces])
    views = [Viewer([lengths], image_tokens, SPEC).row(loaded, b)[0] for b in range(len(pieces))]
    found = [span for view in views for span in view.spans if span.clip]
    assert [span.kind for span in found] == ["video", "audio", "video"]
    assert [span.clip.seconds for span in found] == [1.0, 0.5, 1.5]
    tally = Tally([lengths], BUDGETS)
    tally.add(loaded)
    assert {name: sums.clips for name, sums in tally.clips[0].items()} == {"video": 2, "audio": 1}
    line = plan_line(0, loaded.rows, [lengths])
    assert line["patches"] == int((loaded.batch.patches.segments > 0).sum())
    assert line["audio"] == int(tally.used_of("audio").sum())


def test_a_picture_beside_a_video_is_shown_once(template):
    image = picture(16, 16)
    (view,) = views_of(template, image, "a", film(4))
    (shown,) = view.pictures
    np.testing.assert_array_equal(shown.pixels, pixels_of(image))
    assert (len(shown.frames), len(view.films)) == (2, 1)


def test_frames_of_a_picture_that_differ_are_no_picture(template):
    lengths = lengths_of(template, [plain(picture(16, 16), "a", film(4))])
    loaded = loaded_of(lengths)
    loaded.batch.patches.values[0, 0, -1] ^= 255
    with pytest.raises(ValueError, match="frames of a picture differ"):
        Viewer([lengths], template, SPEC).row(loaded, 0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda batch: batch.patches.positions.__setitem__((0, slice(None), 0), 0), "are numbered"),
        (lambda batch: batch.media["audio"].segments.__setitem__((0, 3), 0), "no run of frames"),
        (lambda batch: batch.weights_BT.__setitem__((0, slice(None)), 1.0), "next token"),
    ],
)
def test_clips_that_the_plan_contradicts_are_not_shown(change, told, template):
    lengths = lengths_of(template, [plain("a", film(), recording(1.0))])
    loaded = loaded_of(lengths)
    change(loaded.batch)
    with pytest.raises(ValueError, match=told):
        Viewer([lengths], template, SPEC).row(loaded, 0)


def test_a_recording_is_its_frames_without_halo_and_its_samples(template):
    spec = dataclasses.replace(SPEC, audio=dataclasses.replace(AUDIO, halo=2))
    (view,) = views_of(template, "a", recording(0.4), "b", recording(2.3), spec=spec)
    first, second = view.sounds
    for shown, seconds in ((first, 0.4), (second, 2.3)):
        heard = samples(seconds).astype(np.float32) / 32768
        assert shown.own == len(shown.frames_FM) == round(100 * seconds)
        np.testing.assert_allclose(shown.frames_FM, log_mel(heard, AUDIO.mels), atol=1e-5)
        np.testing.assert_allclose(samples_of(shown, 30.0), heard, atol=1e-6)
    assert first.windows == [0]
    assert second.windows == [0, 100, 200]
    assert (first.unit, second.unit) == (0, 50)
    assert [(span.kind, span.last - span.first) for span in view.spans if span.clip] == [("audio", 5), ("audio", 32)]
    np.testing.assert_array_equal(samples_of(second, 1.0), samples_of(second, 30.0)[:RATE])


def test_silence_that_fills_a_piece_is_told_from_the_recording(template):
    filled = AudioSpec(mels=32, chunk=100, chunk_positions=50, attend=0, piece=200, filled=True, silence=True)
    (view,) = views_of(template, "a", recording(1.2), spec=dataclasses.replace(SPEC, audio=filled))
    (shown,) = view.sounds
    assert (shown.own, len(shown.frames_FM), shown.seconds) == (120, 200, 1.2)


def test_a_wav_decodes_to_the_samples_and_says_what_had_no_room(template, monkeypatch):
    (view,) = views_of(template, recording(1.0), recording(0.5))
    store = Store([view])
    store.add(0, 0, 1, view)
    for stored, shown in zip(store.sounds, view.sounds, strict=True):
        data = base64.b64decode(stored["wav"].removeprefix("data:audio/wav;base64,"))
        part = Audio(data=data)
        decoded = audio_file.read_samples(part, audio_file.header(part), RATE)
        np.testing.assert_allclose(decoded, samples_of(shown, 30.0), atol=1e-4)
        assert stored["heard"] == shown.seconds
    monkeypatch.setattr(embedding, "SOUND_SIZE", 40_000)
    monkeypatch.setattr(embedding, "LEAST_SECONDS", 0.1)
    few = Store([view])
    few.add(0, 0, 1, view)
    assert 0 < few.sounds[0]["heard"] < 1.0
    assert sum(len(sound["wav"]) for sound in few.sounds) <= 41_000
    monkeypatch.setattr(embedding, "SOUND_SIZE", 0)
    none = Store([view])
    none.add(0, 0, 1, view)
    assert [(sound["wav"], sound["heard"]) for sound in none.sounds] == [("", 0.0)] * 2


def test_a_strip_is_exact_where_it_fits_and_small_where_not():
    frames = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    exact = embedding.strip(frames, embedding.Room(4_000_000, 1))
    sheet = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(exact.src.split(",")[1]))))
    for n in (0, 1, 63):
        row, column = divmod(n, exact.columns)
        np.testing.assert_array_equal(sheet[row * 64 :][:64, column * 64 :][:, :64], frames[n])
    room = embedding.Room(100_000, 2)
    small = embedding.strip(frames, room)
    assert not small.is_exact
    assert len(small.src) <= 50_000
    assert room.share == room.left == 100_000 - len(small.src)
    assert small.width == small.height >= embedding.LEAST_SIDE


def test_sums_are_by_modality(template):
    documents = [plain("a", film(), picture(16, 16)), plain(recording(2.0), film(4)), plain("only text")]
    lengths = lengths_of(template, documents)
    tally = Tally([lengths], BUDGETS)
    tally.add(loaded_of(lengths))
    assert tally.clips == [
        {"video": ClipSums(2, 18 + 6, 6 + 2, 3.0 + 1.0), "audio": ClipSums(1, 28, 200, 2.0)},
    ]
    assert tally.total.images == 1
    assert tally.total.soft == 18 + 6 + 28 + 4
    assert tally.used_of("audio").tolist() == [200]
    assert tally.seconds == {"video": [3.0, 1.0], "audio": [2.0]}


def test_clips_cut_short_are_told_by_source_and_reason(template):
    rows = dataclasses.replace(STAMPED, row_tokens=60)
    spec = dataclasses.replace(SPEC, video=rows, audio=dataclasses.replace(AUDIO, max_seconds=1.5))
    documents = [plain("a", film(40)), plain(film(4)), plain(recording(2.0)), plain(recording(1.0)), plain("a")]
    lengths = lengths_of(template, documents, spec)
    (video, audio) = lengths.cut_short()
    assert (video.medium, video.media, audio.medium, audio.media) == ("video", 1, "audio", 1)
    assert audio.part == 0.75
    kept = int(lengths.slots()[0]) / int(lengths_of(template, documents).slots()[0])
    assert video.part == pytest.approx(kept)
    assert list(lengths.cut_lines()) == [
        f"1 of 2 videos get fewer frames, as a row of 60 tokens cannot hold them: they keep {kept:.0%} on average",
        "1 of 2 recordings are cut to their first 1.5 s (config.audio.max_seconds): they keep 75% on average",
    ]
    assert AudioMedium().heard(lengths.extents(2).one(), spec) == (150, 1.5)


def report_of(template, documents: Sequence[Document], rows: Sequence[Sequence[int]], spec: ImageSpec) -> Report:
    lengths = lengths_of(template, documents, spec)
    loaded = loaded_of(lengths, *rows)
    tally, viewer = Tally([lengths], BUDGETS), Viewer([lengths], template, spec)
    tally.add(loaded)
    drawn = [DrawnRow(0, b, viewer.row(loaded, b), tuple(tally.used[b].tolist())) for b in range(len(rows))]
    source = Source("clips", len(lengths), 1.0, over_budget(lengths, BUDGETS), {}, (), tuple(lengths.cut_lines()))
    return Report("videos and recordings", {}, (0, 1), spec, "split", [source], tally, drawn)


@pytest.fixture(scope="module")
def made(template) -> Report:
    spec = dataclasses.replace(SPEC, audio=dataclasses.replace(AUDIO, max_seconds=2.0))
    broken = film()._replace(frames=(*film().frames[:-1], Image(data=film().frames[-1].data[:60])))
    documents = [
        plain("What moves? ", film(), "A bar."), plain("Hear: ", recording(2.5), "a tone"),
        plain(picture(16, 16), "noise", film(6)), plain("b", broken),
    ]  # fmt: skip
    return report_of(template, documents, [(0, 1), (2, 3)], spec)


def test_the_page_tells_of_modalities_and_of_what_was_cut(made):
    html = render(made)
    text = re.sub(r"<[^>]+>", "", html)
    assert "2 videos, 1 recording." in text
    assert "1 of 1 recordings are cut to their first 2 s (config.audio.max_seconds): they keep 80% on average" in text
    assert "became padding: its video is truncated" in text
    for chart in ("Videos by length", "Recordings by length", "Rows by audio fill"):
        assert chart in text
    store = json.loads(re.search(r'id="store">(.*?)</script>', html).group(1))  # type: ignore[union-attr]
    assert [film["exact"] for film in store["films"]] == [True, True]
    assert [sound["windows"] for sound in store["sounds"]] == [[0, 100]]


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1600])
def test_the_page_shows_a_strip_and_plays_a_recording(made, chromium, width, tmp_path):
    path = Path(tmp_path / "page.html")
    path.write_text(render(made), encoding="utf-8")
    set_screen(chromium, width)
    chromium.get(path.as_uri())
    chromium.execute_script("document.querySelectorAll('.doc')[0].click()")
    boxes = chromium.execute_script(
        "return [...document.querySelectorAll('#text .film .frame')].map(f => {"
        "const b = f.getBoundingClientRect(); return [b.width, b.height, f.getAttribute('aria-label')] })"
    )
    assert [told for _, _, told in boxes] == [f"Frame at {t} s" for t in (0, 0.5, 1, 1.75, 2.25, 2.75)]
    assert all(wide > 20 and tall > 20 for wide, tall, _ in boxes)
    stamps = chromium.execute_script("return [...document.querySelectorAll('.stamp')].map(s => s.textContent)")
    assert stamps == ["[0.2 s]", "[1.4 s]", "[2.5 s]"]
    assert chromium.find_element("css selector", ".film .strip").is_displayed()
    chromium.execute_script("document.querySelectorAll('.doc')[1].click()")
    length = chromium.execute_async_script(
        "const audio = document.querySelector('#text audio'), told = () => arguments[0](audio.duration);"
        "audio.readyState ? told() : audio.addEventListener('loadedmetadata', told)"
    )
    assert length == pytest.approx(2.0, abs=0.01)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    assert chromium.get_log("browser") == []
