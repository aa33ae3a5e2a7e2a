"""The demos of video and audio: the same for everyone, true, balanced; no moment of a clip tells its place in time."""

from __future__ import annotations

import collections
import functools
import io
import itertools
import json
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jaxmm import command
from jaxmm.config import keys
from jaxmm.corpus import Corpus, read_budgets
from jaxmm.data import demo_audio, demo_clips, demo_video
from jaxmm.data.assemble import Assembler
from jaxmm.data.demo_pictures import COLOURS
from jaxmm.data.demos import DEMOS
from jaxmm.data.documents import Audio, Document, Video
from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.plan import Budgets, Pass, Piece
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.recipe import eval_corpus, read_data

ROUNDS = 2000
CLIPS = {"video": demo_video, "audio": demo_audio}

each = pytest.mark.parametrize("demo", CLIPS.values(), ids=CLIPS)


@functools.cache
def drafts(demo, split: int, count: int) -> list[demo_clips.Draft]:
    return [demo_clips.draft(demo.THEME, 0, split, index) for index in range(count)]


def clip_of(document: Document) -> Video | Audio:
    (clip,) = (part for turn in document.turns for part in turn.parts if isinstance(part, Video | Audio))
    return clip


def changing(demo) -> list[tuple[str, ...]]:
    """What comes in training clips that may be asked for an order."""
    return [one.things for one in drafts(demo, demo_clips.TRAINING, ROUNDS) if len(set(one.things)) > 1]


def test_every_demo_of_the_config_is_there():
    assert tuple(DEMOS) == keys.DEMOS


@each
def test_a_document_depends_on_nothing_but_seed_split_and_number(demo):
    few, many = (list(demo.training_source(seed=3, examples=n).documents()) for n in (5, 20))
    assert many[:5] == few
    assert list(demo.training_source(seed=3, examples=20).documents()) == many
    assert list(demo.test_source(seed=3, examples=5).documents()) == list(demo.test_source(3, 20).documents())[:5]
    assert list(demo.training_source(seed=4, examples=5).documents()) != few
    tests = {clip_of(document) for document in demo.test_source(3, 20).documents()}
    assert not tests & {clip_of(document) for document in many}
    assert len(tests) == 20


@each
def test_the_entry_tells_sources_apart_and_is_canonical(demo):
    sources = [demo.training_source(), demo.training_source(1), demo.training_source(0, 7), demo.test_source(0, 7)]
    assert len({source.entry for source in sources}) == 4
    assert [source.name for source in sources] == [demo.THEME.name] * 3 + [f"{demo.THEME.name}_test"]
    for source in sources:
        assert source.entry == json.dumps(json.loads(source.entry), sort_keys=True, separators=(",", ":"))


@each
def test_answers_are_true_and_one_does_not_give_the_other_away(demo):
    theme = demo.THEME
    for split in (demo_clips.TRAINING, demo_clips.TEST):
        for one in drafts(demo, split, ROUNDS):
            assert len(one.asked) <= (1 if split == demo_clips.TEST else 2)
            assert len({question.text for question in one.asked}) == len(one.asked)
            first, *_, last = (*one.things, *one.things[-1:])
            true = {theme.first: first, theme.last: last}
            if len(set(one.things)) == 1:
                true = {theme.identity: first, theme.count: str(len(one.things))}
            assert all(question.answer == true[question.text] for question in one.asked)


@each
def test_test_answers_are_balanced_exactly(demo):
    answers = collections.defaultdict(collections.Counter)
    for one in drafts(demo, demo_clips.TEST, 600):
        assert one.labels[0] == one.asked[0].kind
        answers[one.labels[0]][one.asked[0].answer] += 1
    assert set(answers) == set(demo_clips.KINDS)
    for kind, counts in answers.items():
        assert counts.total() == 200
        assert max(counts.values()) - min(counts[answer] for answer in demo.THEME.answers[kind]) <= 1


@each
def test_training_answers_are_balanced(demo):
    answers = collections.defaultdict(collections.Counter)
    for one in drafts(demo, demo_clips.TRAINING, ROUNDS):
        for question in one.asked:
            answers[question.text][question.answer] += 1
    for question, counts in answers.items():
        known = demo.THEME.answers["count" if question == demo.THEME.count else "order"]
        shares = np.array([counts[answer] for answer in known]) / counts.total()
        assert 0.8 / len(known) < shares.min()
        assert shares.max() < 1.2 / len(known)


@each
def test_clips_at_a_fixed_distance_tell_nothing_about_an_answer(demo):
    """A blind test swaps clips by some distance: no distance may bring the answers back."""
    answers = np.array([one.asked[0].answer for one in drafts(demo, demo_clips.TEST, 600)])
    for distance in range(1, 300):
        assert (answers == np.roll(answers, distance)).mean() < 0.24


@each
def test_training_has_no_order_that_is_held_out_and_the_label_says_so(demo):
    theme = demo.THEME
    for place in (0, 1):
        assert sorted(pair[place] for pair in theme.held_out) == sorted(theme.things)
    ends = collections.Counter((things[0], things[-1]) for things in changing(demo))
    assert set(ends) == set(itertools.permutations(theme.things, 2)) - set(theme.held_out)
    assert max(ends.values()) < 2.5 * min(ends.values())
    unseen = 0
    for one in drafts(demo, demo_clips.TEST, 600):
        is_unseen = one.labels[0] == "order" and (one.things[0], one.things[-1]) in theme.held_out
        assert one.labels[1:] == ("unseen",) * is_unseen
        unseen += is_unseen
    assert 30 <= unseen <= 70


# No moment tells its place


def test_one_frame_tells_nothing_of_the_order():
    """Given what comes last, every other colour is as likely first; backwards, places and times are drawn the same."""
    orders = changing(demo_video)
    for last in COLOURS:
        first = collections.Counter(things[0] for things in orders if things[-1] == last)
        assert len(first) == len(COLOURS) - 2
        assert max(first.values()) < 1.8 * min(first.values())
    rng = np.random.default_rng(0)
    films = [demo_video.film(rng, things) for things in orders]
    places, times = (
        np.array([[of(film.sights[0], False), of(film.sights[-1], True)] for film in films])
        for of in (
            lambda sight, is_last: (sight.x, sight.y),
            lambda sight, is_last: (8 - sight.stop, 8 - sight.start) if is_last else (sight.start, sight.stop),
        )
    )
    for drawn in (places, times):
        spread = drawn.std((0, 1)) / np.sqrt(len(films))
        assert (abs(drawn[:, 0].mean(0) - drawn[:, 1].mean(0)) < 5 * spread).all()


def test_a_frame_shows_one_colour_at_most_and_a_film_those_of_its_sights():
    rng = np.random.default_rng(0)
    for one in drafts(demo_video, demo_clips.TRAINING, 60):
        film = demo_video.film(rng, one.things)
        frames = demo_video.frames_of(film)
        assert frames.shape == (demo_video.FRAMES, demo_video.SIDE, demo_video.SIDE, 3)
        seen = [
            {name for name, value in COLOURS.items() if (frame == value).all(-1).sum() > film.size**2 / 6}
            for frame in frames
        ]
        assert all(len(names) <= 1 for names in seen)
        runs = [names for names, _ in itertools.groupby(seen) if names]
        assert runs == [{name} for name in one.things]
        assert [sight.colour for sight in film.sights] == list(one.things)


def test_a_recording_backwards_is_drawn_as_one_forwards():
    """Its sounds are the same, and times are drawn alike; noise has no direction."""
    rng = np.random.default_rng(0)
    for name in demo_audio.SOUNDS:
        sound = demo_audio.Sound(name, 0.0, 0.2)
        made = demo_audio._wave(np.random.default_rng(0), sound, 440.0)
        assert len(made) == 3200
        if name in ("hiss", "rattle"):
            made = abs(made) > 1e-9  # when it is heard
        assert np.isclose(made, made[::-1]).mean() > 0.99, name
    recordings = [demo_audio.recording(rng, things) for things in changing(demo_audio)]
    ends = np.array([(r.sounds[0].start, 1.6 - r.sounds[-1].start - r.sounds[-1].length) for r in recordings])
    assert ends.min() >= demo_audio.EDGE - 1e-9
    assert abs(ends[:, 0].mean() - ends[:, 1].mean()) < 5 * ends.std() / np.sqrt(len(ends))
    for r in recordings:
        for before, after in itertools.pairwise(r.sounds):
            assert after.start - before.start - before.length >= demo_audio.PAUSE - 1e-9


def test_recordings_are_wav_of_one_length():
    for document in demo_audio.test_source(examples=20).documents():
        with wave.open(io.BytesIO(clip_of(document).data)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, demo_audio.RATE)
            assert file.getnframes() == demo_audio.RATE * demo_audio.SECONDS == 25600
            loud = np.abs(np.frombuffer(file.readframes(25600), "<i2")).max()
            assert 2000 < loud <= 32767


# As the configs have them


def config_of(name: str, cache: Path):
    return command.parse([f"--config={name}", f"--config.data.cache={cache}"], {}).config


@pytest.fixture(scope="module")
def lengths(tmp_path_factory) -> dict[str, Lengths]:
    """Some test questions of each, as its config takes them."""
    cache, made = tmp_path_factory.mktemp("cache"), {}
    for name, demo in CLIPS.items():
        recipe = read_data(config_of(name, cache))
        prepared = Prepared(prepare(demo.test_source(examples=24), recipe.template, cache, workers=1))
        made[name] = Lengths(prepared, recipe.image.only((name,)))
    return made


def test_clips_have_the_soft_tokens_that_the_configs_promise(lengths):
    assert set(lengths["video"].slots().tolist()) == {36}
    assert set(lengths["audio"].slots().tolist()) == {20}


def test_with_backwards_a_batch_has_the_clips_from_their_end(lengths, tmp_path):
    def loaded(source: Lengths, **how: bool):
        budgets = read_budgets_of(source, tmp_path)
        row = [Piece(0, i, 0, int(source.tokens_E[i])) for i in range(4)]
        return Assembler([source], budgets, source.spec, **how)([row]).batch

    films = lengths["video"]
    there, back = (loaded(films, backwards=way).patches for way in (False, True))
    tile = 36  # patches of a temporal patch
    count = 4 * 4 * tile
    # (clips, temporal patches, patches, frames, values): both axes of time turn round, and nothing else.
    values = [x.values[0, :count].reshape(4, 4, tile, 2, -1) for x in (there, back)]
    np.testing.assert_array_equal(values[1], values[0][:, ::-1, :, ::-1])
    assert (values[0] != values[1]).any()
    np.testing.assert_array_equal(there.positions, back.positions)
    np.testing.assert_array_equal(there.segments, back.segments)

    sounds = lengths["audio"]
    there, back = (loaded(sounds, backwards=way).media["audio"] for way in (False, True))
    turned = Lengths(_Turned(sounds.prepared), sounds.spec)
    np.testing.assert_array_equal(back.values, loaded(turned).media["audio"].values)
    assert (there.values != back.values).any()
    np.testing.assert_array_equal(there.positions, back.positions)


class _Turned:
    """Prepared recordings, each turned round as a file."""

    def __init__(self, prepared: Prepared):
        self._prepared = prepared

    def __getattr__(self, name: str):
        return getattr(self._prepared, name)

    def __len__(self) -> int:
        return len(self._prepared)

    def read(self, example: int):
        record = self._prepared.read(example)
        (clip,) = record.images
        head, samples = clip.data[:44], np.frombuffer(clip.data[44:], "<i2")
        return record._replace(images=[Audio(head + samples[::-1].tobytes())])


def read_budgets_of(source: Lengths, cache: Path) -> Budgets:
    return read_budgets(config_of("base", cache), Corpus([source], [1.0], []))


def test_a_pass_may_have_some_of_the_examples(lengths, tmp_path):
    source = lengths["audio"]
    label = 1 << source.prepared.meta["labels"].index("order")
    budgets = read_budgets_of(source, tmp_path)
    wanted = np.flatnonzero(source.prepared.labels_E & np.uint64(label))

    def taken(**how) -> list[int]:
        some = Pass([source], budgets, 2, which=lambda lengths: lengths.prepared.labels_E & np.uint64(label) > 0, **how)
        return sorted(piece.example for row in some.rows(0, len(some)) for piece in row)

    assert taken() == wanted.tolist()
    assert taken(examples=12) == [e for e in wanted if e < 12]
    assert Pass([source], budgets, 2, which=lambda lengths: np.zeros(len(lengths), bool)).rows(0, 0) == []


@pytest.mark.parametrize("name", CLIPS)
def test_a_config_evaluates_on_its_own_demo(name, tmp_path, monkeypatch):
    demo, few = CLIPS[name], CLIPS[name].test_source(examples=6)
    monkeypatch.setattr(demo, "test_source", lambda seed: few)
    config = config_of(name, tmp_path)
    corpus = eval_corpus(config, read_data(config))
    assert corpus is not None
    assert corpus.names == [f"demo_{name}_test"]
    assert corpus.media == {name}


def test_frames_are_png():
    clip = clip_of(next(demo_video.test_source(examples=1).documents()))
    assert isinstance(clip, Video)
    assert len(clip.frames) == demo_video.FRAMES
    for frame in clip.frames:
        with PIL.Image.open(io.BytesIO(frame.data)) as opened:
            assert (opened.format, opened.size) == ("PNG", (48, 48))
