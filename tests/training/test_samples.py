"""The questions that a run's samples ask, and what is drawn of them."""

from __future__ import annotations

import copy
import dataclasses
import io
import wave

import numpy as np
import PIL.Image
from conftest import IMAGE, chat, picture

from jaxmm.clip_spec import AudioSpec, VideoSpec
from jaxmm.data.documents import Audio, Image, Text, Video
from jaxmm.data.prepare.index import InMemory
from jaxmm.inference.answers import Prompt, prompt_rows
from jaxmm.training import clip_pictures, samples


def test_a_picture_that_does_not_decode_is_not_asked_about(lengths_of, template):
    whole = picture(24, 24)
    broken = Image(whole.data[:50])  # its size is there, its pixels are not
    source = lengths_of(
        [chat(["What is this? ", image], f"answer {n}") for n, image in enumerate([whole, broken, whole])]
    )
    asked = samples.questions(source.prepared, template, 8)
    assert [answer for _, answer in asked] == ["answer 0", "answer 2"]


def test_the_true_answer_is_shown_without_what_the_template_begins_every_one_with(lengths_of, template):
    thinks = copy.copy(template)
    thinks.lead = "<think>\n\n</think>\n\n"
    said = [f"{thinks.lead}red", "green", "not <think>"]
    source = lengths_of([chat(["What is this? ", picture(24, 24)], text) for text in said])
    assert [answer for _, answer in samples.questions(source.prepared, thinks, 8)] == ["red", "green", "not <think>"]


VIDEO = VideoSpec(fps=2.0, min_frames=2, max_frames=8, min_pixels=64, max_pixels=1024, sampling="ends")
SPEC = dataclasses.replace(IMAGE, video=VIDEO, audio=AudioSpec(mels=32, chunk=50, chunk_positions=7, max_seconds=1.0))


def recording(seconds: float) -> Audio:
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(16000)
        at = np.arange(round(16000 * seconds)) / 16000
        opened.writeframes((np.sin(2 * np.pi * 440 * at) * 9000).astype("<i2").tobytes())
    return Audio(data=file.getvalue())


def film(*colours: str) -> Video:
    frames = []
    for colour in colours:
        file = io.BytesIO()
        PIL.Image.new("RGB", (24, 16), colour).save(file, "PNG")
        frames.append(Image(data=file.getvalue()))
    return Video(frames=tuple(frames), fps=2.0)


def source_of(documents, template) -> InMemory:
    media = [[part for turn in d.turns for part in turn.parts if not isinstance(part, Text)] for d in documents]
    return InMemory("made", [template.encode(d) for d in documents], media, template.fingerprint)


def test_clips_are_drawn_as_the_model_gets_them(template, tmp_path):
    broken = film("red", "blue")
    broken = broken._replace(frames=(broken.frames[0], Image(broken.frames[1].data[:60])))
    documents = [
        chat(["Which colours? ", film("red", "lime", "blue", "blue")], "red"),
        chat(["Which? ", broken], "none"),
        chat(["What do you hear? ", recording(1.5)], "a tone"),
        chat(["Both? ", film("lime", "red"), recording(0.5)], "yes"),
    ]
    source = source_of(documents, template)
    assert samples.questions(source, template, 8) == [], "how clips are taken is not known"
    asked = samples.questions(source, template, 8, SPEC)
    assert [truth for _, truth in asked] == ["red", "a tone", "yes"]
    path = tmp_path / "samples.png"
    samples.draw(asked, ["red", "a tone", "no"], path, template, SPEC)
    cell = samples.SIDE + 2 * samples.MARGIN
    sheet = np.asarray(PIL.Image.open(path))

    def has(number: int, colour: tuple[int, int, int]) -> bool:
        inside = sheet[: samples.SIDE + samples.MARGIN, number * cell : (number + 1) * cell]
        return bool((inside == colour).all(-1).sum() > 200)

    red, lime, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert [has(0, colour) for colour in (red, lime, blue, clip_pictures.WAVE)] == [True, True, True, False]
    assert [has(1, colour) for colour in (red, clip_pictures.WAVE)] == [False, True]
    assert [has(2, colour) for colour in (red, lime, blue, clip_pictures.WAVE)] == [True, True, False, True]


def test_prompts_with_recordings_have_room_for_their_frames(template):
    prompts = [Prompt((recording(0.3),), "a"), Prompt((recording(1.5), recording(0.2)), "b")]
    _, spec, loaded = prompt_rows(prompts, template, SPEC)
    assert spec.video is None
    held = (loaded.batch.media["audio"].segments > 0).sum(1).tolist()
    assert held == [30, 100 + 20]  # of 10 ms, and no more than a second
