"""Rows of the benchmark: films and recordings, from their headers and to a row of a batch. One core, one thread.

The clips are written here, by PyAV and soundfile.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.media import one_core
from benchmarks.plan import TOOLS, image_patches, text_lengths
from benchmarks.row import Measured, Row, Settings
from jaxmm.batch import TARGET
from jaxmm.clip_spec import AudioSpec, VideoSpec
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Audio, Document, Media, Text, Turn, Video
from jaxmm.data.media import audio_file, sampling, video_file
from jaxmm.data.media.log_mel import log_mel
from jaxmm.data.packing.plan import Budgets, Lengths, Piece, Plan, choose_budgets
from jaxmm.data.prepare.index import PREFERENCES, Columns, InMemory, implied
from jaxmm.data.prepare.records import Record
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.image_spec import ImageSpec
from jaxmm.measure.pictures import natural
from jaxmm.measure.timing import Figure, in_turns, rates

HEIGHT, WIDTH, FRAME_RATE, SECONDS = 480, 640, 30, 20
LEAST_FRAMES = 32  # of a film, at any scale
GROUPS = 250, 30  # frames from a keyframe to the next: x264's own, and of films made for streaming
FRAMES = 16  # that are taken of a film
SOUND_RATE, CHANNELS, RATE = 44100, 2, 16000
# As Qwen2.5-VL takes them; 640 x 480 becomes 448 x 336.
VIDEO = VideoSpec(frames=2, fps=FRAMES / SECONDS, max_frames=FRAMES, max_pixels=448 * 336)
SPEC = ImageSpec(patch_size=14, merge=2, thin=True, text_axes=3, video=VIDEO, audio=AudioSpec(mels=128))
MIXED = ImageSpec(patch_size=16, merge=2, min_pixels=64 * 16**2, max_pixels=2304 * 16**2, video=VideoSpec(),
                  audio=AudioSpec())  # fmt: skip
ROW = 16384
BATCHES, A_BATCH = 300, 4  # of the row about memory, and films in each
NEEDS = "av", "soundfile", "soxr"  # the extra media


def film(path: Path, frames: int, group: int, rng: np.random.Generator, size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    """Writes an H.264 MP4: the camera moves over a picture under light that changes, with a sensor's noise."""
    import av

    height, width = size
    wide = np.asarray(natural(height * 3 // 2, width * 3 // 2, rng), np.int16)
    noise = [rng.normal(0, 3, (height, width, 1)).astype(np.int16) for _ in range(7)]
    ramp = np.linspace(-24, 24, width).astype(np.int16)[:, None]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FRAME_RATE, options={"g": str(group), "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames):
            top, left = (int(room // 4 * (1 + np.sin(n / speed))) for room, speed in ((height, 40), (width, 90)))
            light = np.roll(ramp, 2 * n, 0) + noise[n % len(noise)]
            pixels = np.clip(wide[top : top + height, left : left + width] + light, 0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode(None))
    return str(path)


def sound(path: Path, samples: int, rng: np.random.Generator) -> str:
    """Writes a recording in the format of the path's name: a voice of 30 harmonics that rises and falls, and noise."""
    import soundfile

    time_S = np.arange(samples) / SOUND_RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time_S)) / SOUND_RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 31)) * np.maximum(np.sin(2 * np.pi * 2.3 * time_S), 0)
    values = 0.15 * voice[:, None] * [1.0, 0.8] + rng.normal(0, 0.01, (samples, CHANNELS))
    soundfile.write(path, np.clip(values, -1, 1), SOUND_RATE)
    return str(path)


def frames_of(settings: Settings) -> int:
    return max(settings.count(SECONDS * FRAME_RATE), LEAST_FRAMES)


def headers(settings: Settings) -> Measured:
    """What preparing reads of clips: size or rate, and how many frames or samples."""
    one_core()
    rng, folder = np.random.default_rng(settings.seed), Path(settings.folder)
    samples = settings.count(SECONDS * SOUND_RATE)
    again = settings.count(100)
    readers: dict[str, Callable[[], Any]] = {}
    mp4 = Video(path=film(folder / "clip.mp4", frames_of(settings), GROUPS[0], rng))
    readers["mp4"] = lambda: video_file.header(mp4)
    for kind in ("wav", "mp3"):
        audio = Audio(path=sound(folder / f"clip.{kind}", samples, rng))
        readers[kind] = lambda audio=audio: audio_file.header(audio)  # type: ignore[misc]
    things = {name: lambda read=read: [read() for _ in range(again)] for name, read in readers.items()}  # type: ignore[misc]
    seconds = in_turns(things, settings.repeats)
    return Measured({name: rates(each, again, "files") for name, each in seconds.items()})


def assembly(media: Sequence[Media], spec: ImageSpec) -> Callable[[], Any]:
    """What makes a batch of one row that holds a document with these media."""
    template = Template(load_tokenizer(""), "pretrain")
    document = Document((Turn("document", (Text("Listen, "), *media, Text(" and look.")), True),), "made")
    lengths = Lengths(InMemory("clips", [template.encode(document)], [media], template.fingerprint), spec)
    row = [Piece(0, 0, 0, int(lengths.tokens_E[0]))]
    assemble = Assembler([lengths], choose_budgets([lengths], [1.0], row[0].last, 0, 0, spec.merge), spec)

    def run() -> None:
        assert not assemble([row]).skipped

    return run


def video(settings: Settings) -> Measured:
    """Frames of a film to patches in a row of a batch; beside it PyAV's own decoding of the same frames to RGB."""
    one_core()
    rng, folder = np.random.default_rng(settings.seed), Path(settings.folder)
    figures: dict[str, Figure] = {}
    notes = [
        f"{FRAMES} frames of {WIDTH} x {HEIGHT}, resized to 448 x 336; CPU time, on one thread; PyAV: the "
        f"quicker of decoding all frames up to the last one and of seeking to the keyframe before each, to_ndarray as "
        f"rgb24, no resizing"
    ]
    for group in GROUPS:
        clip = Video(path=film(folder / f"{group}.mp4", frames_of(settings), group, rng))
        known = video_file.header(clip)
        taken = sampling.frame_count(known.frames, float(known.rate), VIDEO)
        numbers = sampling.frame_numbers(taken, known.frames, float(known.rate), VIDEO).reshape(-1).tolist()
        things = {
            "ours": assembly([clip], SPEC.only(["video"])),
            "frames": lambda: list(video_file.read_frames(clip, known, numbers)),  # noqa: B023
            "all": lambda: decoded(clip.path, numbers),  # noqa: B023
            "seeks": lambda: sought(clip.path, numbers),  # noqa: B023
        }
        same = zip(things["frames"](), things["all"](), things["seeks"](), strict=True)
        assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in same)
        seconds = in_turns(things, settings.repeats, time.thread_time)
        quicker = min("all", "seeks", key=lambda name: Figure(seconds[name], "").median)
        name = f"keyframes every {group}"
        figures[f"{name}: ours / PyAV"] = ratio(seconds["ours"], seconds[quicker])
        figures[f"{name}: our frames alone / PyAV"] = ratio(seconds["frames"], seconds[quicker])
        figures[f"{name}: ours / PyAV, all frames"] = ratio(seconds["ours"], seconds["all"])
        figures[f"{name}: ours"] = Figure([1000 * each for each in seconds["ours"]], "ms")
        notes.append(f"{name}: {os.path.getsize(clip.path) / 1e6:.2f} MB; PyAV is quicker with {quicker}")
    return Measured(figures, notes)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Of each turn."""
    return Figure([a / b for a, b in zip(ours, theirs, strict=True)], "")


def decoded(path: str, numbers: Sequence[int]) -> list[np.ndarray]:
    """PyAV alone: every frame up to the last one that is wanted."""
    import av

    with av.open(path) as opened:
        stream = opened.streams.video[0]
        stream.thread_count = 1
        wanted = set(numbers)
        frames = enumerate(itertools.islice(opened.decode(stream), max(numbers) + 1))
        return [frame.to_ndarray(format="rgb24") for n, frame in frames if n in wanted]


def sought(path: str, numbers: Sequence[int]) -> list[np.ndarray]:
    """PyAV alone: for each frame, from the keyframe before it."""
    import av

    frames = []
    with av.open(path) as opened:
        stream = opened.streams.video[0]
        stream.thread_count = 1
        for number in numbers:
            place = int(number / FRAME_RATE / float(stream.time_base or 1) + 0.5)
            opened.seek(place, stream=stream)
            frame = next(frame for frame in opened.decode(stream) if (frame.pts or 0) >= place)
            frames.append(frame.to_ndarray(format="rgb24"))
    return frames


def audio(settings: Settings) -> Measured:
    """Recordings to log-mel frames in a row of a batch; beside it decoding and resampling alone."""
    import soundfile
    from transformers import WhisperFeatureExtractor

    one_core()
    rng, folder = np.random.default_rng(settings.seed), Path(settings.folder)
    things: dict[str, Callable[[], Any]] = {}
    for kind in ("wav", "flac", "mp3"):
        path = sound(folder / f"clip.{kind}", settings.count(SECONDS * SOUND_RATE), rng)
        things[f"{kind} ours"] = assembly([Audio(path=path)], SPEC.only(["audio"]))
        by_soundfile = lambda path=path: resampled(soundfile.read(path, dtype="float32", always_2d=True)[0].T)  # noqa: E731
        by_av = lambda path=path: resampled(sound_by_av(path))  # noqa: E731
        things[f"{kind} alone"] = by_av if kind == "mp3" else by_soundfile
    things["mp3 by soundfile"] = by_soundfile
    samples = by_soundfile()
    extract = WhisperFeatureExtractor(feature_size=128)
    options: dict[str, Any] = {"padding": "do_not_pad", "truncation": False, "return_tensors": "np"}
    things["log-mel"] = lambda: log_mel(samples, 128)
    things["Whisper"] = lambda: extract(samples, sampling_rate=RATE, **options)
    again = 5  # so that a sample is not of milliseconds
    repeated = {name: lambda thing=thing: [thing() for _ in range(again)] for name, thing in things.items()}  # type: ignore[misc]
    took = in_turns(repeated, settings.repeats, time.thread_time)
    seconds = {name: [each / again for each in times] for name, times in took.items()}
    figures = {f"{kind}: ours / alone": ratio(seconds[f"{kind} ours"], seconds[f"{kind} alone"])
               for kind in ("wav", "flac", "mp3")}  # fmt: skip
    figures["mp3: ours / soundfile alone"] = ratio(seconds["mp3 ours"], seconds["mp3 by soundfile"])
    figures["log-mel: transformers / ours"] = ratio(seconds["Whisper"], seconds["log-mel"])
    figures |= {name: Figure([1000 * s for s in seconds[name]], "ms") for name in (*things,) if "Whisper" not in name}
    return Measured(
        figures,
        [
            f"CPU time of the one thread, to {RATE} Hz and 128 bands; alone: soundfile (wav, flac) or PyAV (mp3), the "
            f"mean of the channels, and soxr; transformers: WhisperFeatureExtractor on the resampled clip, without "
            f"padding"
        ],
    )


def sound_by_av(path: str) -> np.ndarray:
    """PyAV alone: float32 (channels, n)."""
    import av

    with av.open(path) as opened:
        return np.concatenate([frame.to_ndarray() for frame in opened.decode(audio=0)], 1)


def resampled(samples: np.ndarray) -> np.ndarray:
    import soxr

    return soxr.resample((samples[0] + samples[1]) / 2, SOUND_RATE, RATE, audio_file.QUALITY)


class MixedIndex(Columns):
    """An index without content: text, and in each document 0 to 4 images, 0 or 1 film and 0 to 2 recordings."""

    def __init__(self, count: int, seed: int):
        rng = np.random.default_rng(seed)
        images, _ = image_patches(count, seed)
        films, sounds = rng.integers(0, 2, count), rng.integers(0, 3, count)
        each = images + films + sounds
        self.meta = {"name": "made", "labels": [], "fingerprint": f"made {count} {seed}", "media": ["video", "audio"]}
        self.tokens_E = (text_lengths(count, 0.9, 298, seed, ROW // 4) + 2 * each + 1).astype(np.int32)
        self.labels_E = np.zeros(count, np.uint64)
        self.runs_E1 = np.arange(count + 1)
        self.run_start_R = np.zeros(count, np.int32)
        self.run_flags_R = np.full(count, TARGET, np.uint8)
        self.run_weight_R = np.ones(count, np.float32)
        self.images_E1 = np.concatenate([[0], np.cumsum(each)])
        total = int(each.sum())
        place = np.arange(total) - np.repeat(self.images_E1[:-1], each)
        owner = np.repeat(np.arange(count), each)
        kind = np.where(place < images[owner], 0, np.where(place < (images + films)[owner], -2, -3))
        is_film, is_sound = kind == -2, kind == -3
        self.image_at_I = (1 + 2 * place).astype(np.int32)
        self.image_kind_I = kind.astype(np.int32)
        sides = rng.integers(128, 1025, (2, total))
        shapes = np.array([[480, 640], [720, 1280], [1080, 1920], [1280, 720]])[rng.integers(0, 4, total)].T
        height, width = np.where(is_sound, 1, np.where(is_film, shapes, sides))
        self.image_height_I, self.image_width_I = height.astype(np.int32), width.astype(np.int32)
        frame_rate, sound_rate = rng.choice([24, 25, 30, 60], total), rng.choice([16000, 44100, 48000], total)
        seconds = np.where(is_film, rng.uniform(2, 60, total), rng.uniform(1, 30, total))
        rate = np.where(is_film, frame_rate, np.where(is_sound, sound_rate, 0))
        self.media_count_I = (seconds * rate).astype(np.int64)
        self.media_rate_num_I, self.media_rate_den_I = rate.astype(np.int32), (rate > 0).astype(np.int32)
        for column in PREFERENCES:
            setattr(self, column, implied(column, self.__dict__))

    def read(self, example: int) -> Record:
        raise AssertionError("a plan of lengths reads no record")


def fill(settings: Settings) -> Measured:
    """Rows of a plan over text, pictures, films and recordings; each sample draws its own."""
    fills: dict[str, list[float]] = {}
    for i in range(settings.repeats):
        source = Lengths(MixedIndex(settings.count(1 << 17), settings.seed + i), MIXED)
        budgets = choose_budgets([source], [1.0], ROW, 0, 0, MIXED.merge)
        fill = fill_of(Plan([source], [1.0], budgets, 64, settings.seed), source, budgets)
        fills.setdefault("fill of the binding budget", []).append(max(fill.values()))
        for name in ("patches", "audio"):
            fills.setdefault(f"{name} fill", []).append(fill[name])
        only = Budgets(**{name: limit * (1 if name == "tokens" else 1000) for name, limit in budgets._asdict().items()})
        fill = fill_of(Plan([source], [1.0], only, 64, settings.seed), source, only)
        fills.setdefault("with no budget but tokens", []).append(fill["tokens"])
    note = f"the last sample's rows: {budgets}; a document is {source.total_tokens / len(source):.0f} tokens"
    return Measured({name: Figure(samples, "") for name, samples in fills.items()}, [note])


def fill_of(plan: Plan, source: Lengths, budgets: Budgets) -> dict[str, float]:
    """What the rows of one pass hold of each budget."""
    needs, k = np.zeros(len(budgets)), 0
    while k == 0 or sum(plan.seen(k)) < len(source):
        examples = plan.batch_arrays(k, k + 1).pieces.example
        needs += source.in_order(source.needs(np.asarray(examples)), budgets.names).sum(0)
        k += 1
    rows = k * plan.batch_size
    shares = zip(budgets.names, needs.tolist(), budgets, strict=True)
    return {name: need / (rows * limit) for name, need, limit in shares if limit}


def memory(settings: Settings) -> Measured:
    """What a process holds while it makes batch after batch of films."""
    folder, batches = Path(settings.folder), max(settings.count(BATCHES), 10)
    rng = np.random.default_rng(settings.seed)
    for n in range(A_BATCH):
        film(folder / f"{n}.mp4", 64 + 8 * n, GROUPS[n % 2], rng, (240, 320))
    command = [sys.executable, "-m", "benchmarks.clips", str(folder), str(batches)]
    done = subprocess.run(command, check=True, cwd=TOOLS, capture_output=True, text=True)
    measured = json.loads(done.stdout)
    held = np.array(measured["MiB"])
    warm = len(held) // 5
    slope = float(np.polyfit(np.arange(len(held) - warm), held[warm:], 1)[0])
    return Measured(
        {
            "growth by 1,000 batches": Figure([1000 * slope], "MiB"),
            "after a fifth of the batches": Figure([held[warm]], "MiB"),
            "at the end": Figure([held[-1]], "MiB"),
        },
        [f"{batches} batches in {measured['seconds']:.0f} s; growth: the slope through the last four fifths"],
    )


def make_batches(folder: str, batches: str) -> None:
    """Makes batches, and prints how much memory this process holds after each."""
    media = [Video(path=str(path)) for path in sorted(Path(folder).glob("*.mp4"))]
    make = assembly(media, SPEC.only(["video"]))
    held, began = [], time.perf_counter()
    for _ in range(int(batches)):
        make()
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20)
    print(json.dumps({"MiB": held, "seconds": time.perf_counter() - began}))


FILM = f"an H.264 film of {SECONDS} s, {WIDTH} x {HEIGHT} at {FRAME_RATE} a second: a camera that moves over a picture"
SOUND = f"{SECONDS} s of a made voice, {CHANNELS} channels at {SOUND_RATE} Hz"
ROWS = [
    Row("clip_headers", f"{FILM}; {SOUND}", {"mp4": ">= 200", "wav": ">= 5000", "mp3": ">= 1000"}, headers, NEEDS),
    Row("video", FILM, {f"keyframes every {group}: ours / PyAV": "<= 1.15" for group in GROUPS}, video, NEEDS),
    Row(
        "audio",
        SOUND,
        {f"{kind}: ours / alone": "<= 1.3" for kind in ("wav", "flac", "mp3")}
        | {"log-mel: transformers / ours": ">= 4"},
        audio,
        NEEDS,
    ),
    Row(
        "fill_clips",
        "131,072 documents of lognormal text (mean 298, sigma 0.9) with 0 to 4 images, 0 or 1 film of 2 to 60 s and 0 "
        f"to 2 recordings of 1 to 30 s, rows of {ROW} tokens, the other budgets picked",
        {"fill of the binding budget": ">= 0.99"},
        fill,
    ),
    Row(
        "video_memory",
        f"{BATCHES} batches of {A_BATCH} films of 320 x 240, 2 to 3 s, decoded each time, in a process of its own",
        {"growth by 1,000 batches": "<= 10"},
        memory,
        NEEDS,
    ),
]

if __name__ == "__main__":
    make_batches(*sys.argv[1:])
