"""Recordings from a document to a batch: log-mel frames in their chunks, soft tokens, what is cut, what is too long."""

from __future__ import annotations

import dataclasses
import io
import wave

import numpy as np
import pytest
from conftest import IMAGE, picture
from made import document, source_of

from jaxmm.batch import IGNORED
from jaxmm.clip_spec import AudioSpec
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Audio, Document, Text
from jaxmm.data.media import audio_file, audio_geometry
from jaxmm.data.media.log_mel import log_mel
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.pieces import count_long
from jaxmm.data.packing.plan import Piece, Plan, choose_budgets
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

TEMPLATE = Template(load_tokenizer(""), "pretrain")
RATE = 16000
WHISPER = AudioSpec(
    mels=16, chunk=8, chunk_positions=4, pool=4, attend=0, halo=2, piece=200, silence=True
)  # a soft token is 8 frames, a piece 2 s
CHUNKS = AudioSpec(mels=16, least=8000)
ROW = Budgets(tokens=400, patches=72, items=8, targets=400, audio=2000)


def sound(count: int, seed: int = 0) -> np.ndarray:
    """int16 samples."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.1, count) * 20000).astype("<i2")


def recording(samples: np.ndarray, rate: int = RATE, **part: float) -> Audio:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
    return Audio(data=file.getvalue(), **part)


def spec_of(audio: AudioSpec) -> ImageSpec:
    return dataclasses.replace(IMAGE, audio=audio)


def lengths_in(folder, audio: AudioSpec, *documents: Document) -> Lengths:
    return Lengths(Prepared(prepare(source_of(documents), TEMPLATE, folder, workers=1)), spec_of(audio))


def loaded_of(lengths: Lengths) -> Loaded:
    """All documents whole, in one row."""
    row = [Piece(0, i, 0, int(count)) for i, count in enumerate(lengths.tokens_E)]
    return Assembler([lengths], ROW, lengths.spec)([row])


@pytest.mark.parametrize("audio", [WHISPER, CHUNKS], ids=["whisper", "chunks"])
@pytest.mark.parametrize("count", [200, 8000, 16037, 31990, 32000, 70001])
def test_frames_of_a_recording_stand_in_whole_chunks_and_give_its_soft_tokens(tmp_path, audio, count):
    other, samples = sound(5000, 1), sound(count)
    documents = [document(recording(other)), document(Text("a"), recording(samples), Text("b"), i=1)]
    lengths = lengths_in(tmp_path, audio, *documents)
    stream, slots = loaded_of(lengths).batch.media["audio"], loaded_of(lengths).batch.slots_BT[0]
    before = int(lengths.units_I[0])
    floats = np.pad(samples.astype(np.float32) / 32768, (0, max(audio.least - count, 0)))
    frames = -(-len(floats) // audio.hop) if audio.silence else len(floats) // audio.hop
    assert lengths.units_I[1] == audio_geometry.units(frames, audio)
    assert lengths.slots()[1] == audio_geometry.soft_tokens(frames, audio)
    piece = audio.piece or frames
    expected = [
        log_mel(
            np.pad(part, (0, audio.silence * (-len(part) % audio.hop))), 16, silence=audio.silence, piece=audio.piece
        )
        for part in (floats[at * audio.hop : (at + piece) * audio.hop] for at in range(0, frames, piece))
    ]
    if not audio.silence:  # the end is mirrored with all that is there
        expected = [log_mel(floats, 16)]
    np.testing.assert_allclose(stream.values[0, before : before + frames], np.concatenate(expected), atol=1e-5)
    held = stream.segments[0, before : before + int(lengths.units_I[1])]
    assert int((held > 0).sum()) == frames
    assert held[held > 0].min() == 1 + stream.segments[0, :before].max()
    first = int(audio_geometry.table_rows(before, audio)) + ROW.patches // 4
    own = slots[int(lengths.tokens_E[0]) :]
    assert own[own != IGNORED].tolist() == list(range(first, first + int(lengths.slots()[1])))


def test_a_part_of_a_file_and_another_rate_are_the_same_sound(tmp_path):
    samples = sound(48000)
    part = recording(samples, start=1.0, stop=2.0)
    whole = recording(samples[16000:32000])
    lengths = lengths_in(tmp_path, WHISPER, document(part), document(whole, i=1))
    values = loaded_of(lengths).batch.media["audio"].values[0]
    units = int(lengths.units_I[0])
    np.testing.assert_array_equal(values[:units], values[units : 2 * units])


def test_a_spec_changes_without_preparing_again_and_what_it_cuts_is_told(tmp_path):
    prepared = Prepared(prepare(source_of([document(recording(sound(64000)), Text("a"))]), TEMPLATE, tmp_path))
    slots = {
        seconds: int(Lengths(prepared, spec_of(dataclasses.replace(WHISPER, max_seconds=seconds))).slots()[0])
        for seconds in (0.0, 1.0, 3.0, 9.0)
    }
    assert slots == {0.0: 50, 1.0: 12, 3.0: 37, 9.0: 50}
    cut = Lengths(prepared, spec_of(dataclasses.replace(WHISPER, max_seconds=1.0)))
    assert list(cut.cut_short()) == [("audio", 1, 0.25)]
    assert list(Lengths(prepared, spec_of(WHISPER)).cut_short()) == []


@pytest.mark.parametrize("audio", [WHISPER, CHUNKS], ids=["whisper", "chunks"])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.237, 2.0])
def test_a_clip_that_is_cut_is_decoded_no_further_and_has_the_same_bits(tmp_path, monkeypatch, audio, seconds):
    lengths = lengths_in(
        tmp_path, dataclasses.replace(audio, max_seconds=seconds), document(recording(sound(400_000, 3), 44100))
    )
    read, decoded = audio_file.read_samples, []

    def noted(part, known, rate, most=0):
        decoded.append(len(read(part, known, rate, most)))
        return read(part, known, rate)

    ours = loaded_of(lengths).batch.media["audio"].values
    monkeypatch.setattr(audio_file, "read_samples", noted)
    np.testing.assert_array_equal(ours, loaded_of(lengths).batch.media["audio"].values)
    assert decoded[0] <= round(seconds * RATE) + 2 * audio.hop + audio.least


def test_a_recording_that_no_row_holds_is_named(tmp_path):
    lengths = lengths_in(tmp_path, WHISPER, document(Text("a")), document(recording(sound(160000)), i=1))
    budgets = Budgets(tokens=64, patches=0, items=0, targets=64, audio=1600)
    with pytest.raises(UserError, match=r"record 1 has a recording of 10\.0 s \(127 tokens\).*audio\.max_seconds"):
        count_long(lengths, budgets, "split")


def test_a_broken_recording_leaves_its_document_as_padding(tmp_path):
    whole = recording(sound(16000))
    half = Audio(data=whole.data[:-9000])
    lengths = lengths_in(tmp_path, WHISPER, document(Text("a"), whole), document(whole, i=1), document(Text("b"), i=2))
    record = lengths.prepared.read(1)

    class Broken:
        def __getattr__(self, name):
            return getattr(lengths.prepared, name)

        def read(self, example):
            return record._replace(images=[half]) if example == 1 else lengths.prepared.read(example)

    lengths_broken = Lengths(Broken(), lengths.spec)  # type: ignore[arg-type]
    loaded = loaded_of(lengths_broken)
    assert [(skip.origin, skip.medium) for skip in loaded.skipped] == [("made, record 1", "audio")]
    assert set(loaded.batch.text.segments[0].tolist()) == {0, 1, 3}
    stream = loaded.batch.media["audio"]
    units = int(lengths.units_I[0])
    assert not stream.values[0, units:].any()
    assert not stream.segments[0, units:].any()


def test_rows_of_a_plan_hold_recordings_and_pictures(tmp_path):
    rng = np.random.default_rng(0)
    documents = []
    for i in range(24):
        parts: list = [Text("w" * int(rng.integers(1, 30)))]
        for k in range(int(rng.integers(0, 3))):
            clip = recording(sound(int(rng.integers(300, 40000)), i))
            parts += [clip if rng.random() < 0.6 else picture(8, 16, k), Text("x")]
        documents.append(document(*parts, i=i))
    lengths = lengths_in(tmp_path, WHISPER, *documents)
    budgets = choose_budgets([lengths], [1.0], 128, 0, 0, IMAGE.merge)
    assert budgets.get("audio") % 64 == 0
    plan = Plan([lengths], [1.0], budgets, 2, 0)
    for k in range(5):
        loaded = Assembler([lengths], budgets, lengths.spec)(plan.batch(k))
        assert not loaded.skipped
        for b, row in enumerate(loaded.rows):
            soft = int((loaded.batch.slots_BT[b] != IGNORED).sum())
            examples = [piece.example for piece in row]
            media = [i for e in examples for i in range(*map(int, lengths.prepared.images_E1[e : e + 2]))]
            assert soft == int(lengths.slots()[media].sum())
