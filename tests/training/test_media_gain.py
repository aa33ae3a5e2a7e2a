"""What media are worth: compared over the same targets, of the right sign, and told where it is nothing."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import jax
import numpy as np
import PIL.Image
import pytest
from conftest import IMAGE, chat, picture, plain, rows_of

from jaxmm import sharding
from jaxmm.clip_spec import VideoSpec
from jaxmm.corpus import Corpus
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Image, Text, Video
from jaxmm.data.packing.plan import Budgets, Lengths, Piece
from jaxmm.data.packing.swapped import Swapped, swap
from jaxmm.data.prepare.index import InMemory
from jaxmm.training import evaluator as rooms
from jaxmm.training.evaluator import Evaluator, closing_rows
from jaxmm.training.media_gain import Scored, idle_lines, is_idle, media_gain, worth
from jaxmm.training.optimizer import make_optimizer, make_schedule
from jaxmm.training.step import init_state, make_train_step

BUDGETS = Budgets(tokens=128, patches=128, items=4, targets=96)
ANSWERS = "abcdefgh"


def flat(shade: int, height: int = 16, width: int = 16) -> Image:
    """A picture of one grey."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), (shade, shade, shade)).save(file, "PNG")
    return Image(data=file.getvalue())


def evaluator_of(tiny, template, *sources: Lengths, image=IMAGE) -> Evaluator:
    recipe = SimpleNamespace(model=tiny.spec, image=image, template=template, compute=tiny.compute)
    corpus = Corpus(list(sources), [1.0] * len(sources), [])
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return Evaluator(corpus, recipe, mesh, seq_len=96, batch_size=4, examples=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def asked(lengths_of) -> Lengths:
    """Each shade has an answer of its own; the question is always the same."""
    return lengths_of([chat((flat(30 * n), "?"), letter) for n, letter in enumerate(ANSWERS)], "asked")


@pytest.fixture(scope="module")
def learnt(tiny, asked):
    """Parameters that have learnt these pictures by heart."""
    batch = Assembler([asked], BUDGETS, IMAGE)(rows_of(asked, *([e] for e in range(len(asked))))).batch
    optimizer = make_optimizer(make_schedule(rate=1e-2, steps=60, warmup=4, name="constant"))
    options = {"target_budget": BUDGETS.targets, "sources": 1, "z_loss": 1e-3}
    step = jax.jit(make_train_step(tiny.forward, optimizer, **options))
    state = init_state(tiny.params, optimizer)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert float(metrics.loss_sum / metrics.weight_sum) < 0.3
    return state.params


def test_a_model_that_answers_from_the_picture_loses_by_another_one(tiny, template, asked, learnt, lengths_of):
    """Beside it: text alone, which is not run again; pages of several pictures; and a kind that nobody else has."""
    text = lengths_of([plain("only text"), plain("more of it")], "text")
    pages = lengths_of(
        [plain(flat(40 * n), "x", flat(20 * n, 8, 24), "some words") for n in range(5)] + [plain("a page without")],
        "pages",
    )
    lone = lengths_of([plain(flat(7), "x"), plain("y")], "lone")
    evaluate = evaluator_of(tiny, template, asked, text, pages, lone)
    assert evaluate.notes == [
        "lone: what images are worth is measured without 1 of 1 documents: no other example has such ones that would "
        "fit in their place"
    ]
    ran: list[list[str]] = []
    original = evaluate._run

    def run(params, lengths, which=None, backwards=False):
        ran.append(sorted(which) if which is not None else [source.name for source in lengths])
        return original(params, lengths, which, backwards)

    evaluate._run = run
    figures = evaluate(learnt)
    assert ran == [["asked", "text", "pages", "lone"], ["asked", "pages"]]
    assert evaluate._step._cache_size() == 1, "compiled once"
    own = figures["asked"]
    assert own["answer_accuracy"] == 1
    assert own["media_gain"]["image"] > 1
    blind = own["blind"]["image"]
    assert blind["loss"] == pytest.approx(own["loss"] + own["media_gain"]["image"], rel=1e-5)
    assert (blind["answer_accuracy"], blind["answers"], blind["documents"], blind["left_out"]) == (0, 8, 8, 0)
    assert "modalities" not in own
    assert "media_gain" not in figures["text"]
    assert "media_gain" not in figures["lone"]
    assert figures["pages"]["blind"]["image"]["documents"] == 5
    told = figures["pages"]["modalities"]
    assert set(told) == {"text", "image"}
    targets = sum(one["targets"] for one in told.values())
    assert sum(one["loss"] * one["targets"] for one in told.values()) / targets == pytest.approx(
        figures["pages"]["loss"]
    )
    assert list(worth(own)) == [f"images worth {own['media_gain']['image']:.2f} nats"]
    rows = dict(closing_rows(figures))
    assert rows["asked media_gain image"] == own["media_gain"]["image"]
    assert rows["asked blind image loss"] == blind["loss"]
    assert rows["pages modalities text targets"] == told["text"]["targets"]
    assert not any("documents" in name for name in rows)


def test_a_picture_that_is_not_looked_at_is_worth_nothing(tiny, template, asked, learnt, monkeypatch):
    monkeypatch.setattr(rooms, "make_model", lambda spec: (None, unseeing))

    def unseeing(params, batch, compute, target_positions_BR):
        black = batch.patches._replace(values=0 * batch.patches.values)
        return tiny.apply(params, batch._replace(patches=black), compute, target_positions_BR)

    figures = evaluator_of(tiny, template, asked)(learnt)
    assert figures["asked"]["media_gain"]["image"] == pytest.approx(0, abs=1e-5)


def scored(lengths: Lengths, example: int, nll: float | list[float], first: int = 0, last: int = 0) -> Scored:
    """A piece as an evaluation has it, by what the assembler lays out."""
    piece = Piece(0, example, first, last or int(lengths.tokens_E[example]))
    loaded = Assembler([lengths], BUDGETS, IMAGE)([[piece]])
    at = np.flatnonzero(loaded.batch.weights_BT[0])
    weights = loaded.batch.weights_BT[0][at]
    return Scored(piece, at + first, loaded.batch.targets_BT[0][at], weights, np.full(len(at), nll), [True])


def test_only_targets_behind_a_medium_of_the_modality_count(lengths_of):
    lengths = lengths_of([plain("abc", picture(16, 16, n), "de") for n in range(3)])
    one = swap(lengths, "image", BUDGETS)
    seen = [scored(lengths, e, 2.0) for e in range(3)]
    image_at = int(lengths.prepared.image_at_I[0])
    behind = int((seen[0].places >= image_at).sum())
    assert 0 < behind < len(seen[0].nll)
    blind = [s._replace(nll=np.where(s.places >= image_at, 3.0, 99.0)) for s in seen]
    found = media_gain(lengths, one, seen, blind, "image")
    assert (found.gain, found.loss, found.documents, found.left_out) == (1.0, 3.0, 3, 0)
    assert found.standard_error == pytest.approx(0)
    uneven = [s._replace(nll=s.nll + shift) for s, shift in zip(blind, (0.0, 0.3, 0.6), strict=True)]
    found = media_gain(lengths, one, seen, uneven, "image")
    assert found.gain == pytest.approx(1.3)
    assert found.standard_error == pytest.approx(np.std([1.0, 1.3, 1.6], ddof=1) / 3**0.5)


def test_documents_without_the_same_targets_in_both_passes_are_left_out_and_counted(lengths_of):
    lengths = lengths_of([plain(picture(16, 16, n), "abcdef") for n in range(5)] + [plain("abcdef")])
    one = swap(lengths, "image", BUDGETS)
    seen = [scored(lengths, e, 2.0) for e in range(6)]
    blind = [s._replace(nll=s.nll + 1) for s in seen[:4]]  # one was not run, or could not be read
    blind[1] = blind[1]._replace(tokens=blind[1].tokens + 1)
    blind[2] = Scored(*(field[1:] if isinstance(field, np.ndarray) else field for field in blind[2]))
    found = media_gain(lengths, one, seen, blind, "image")
    assert (found.documents, found.left_out, found.gain) == (2, 3, 1.0)
    none = media_gain(lengths, one, seen, [], "image")
    assert (none.gain, none.documents, none.left_out) == (None, 0, 5)


def test_a_split_document_counts_where_both_passes_cut_the_same_text(lengths_of):
    pages = [plain("abcd", picture(16, 16, 0), "efgh", picture(16, 16, 1), "ijkl")]
    lengths = lengths_of([*pages, plain(picture(24, 24, 2), picture(24, 24, 3))])
    from_I = np.array([2, 3, 2, 3])
    larger = Lengths(Swapped(lengths.prepared, from_I, 2), IMAGE)
    one = swap(lengths, "image", BUDGETS)._replace(lengths=larger)
    edge = int(lengths.prepared.image_at_I[1]) + int(lengths.slots()[0]) - 2  # in the text between both
    grown = int(larger.slots()[0] - lengths.slots()[0])
    assert grown > 0
    seen = [scored(lengths, 0, 2.0, 0, edge), scored(lengths, 0, 2.0, edge)]
    alike = [scored(larger, 0, 3.0, 0, edge + grown), scored(larger, 0, 3.0, edge + grown)]
    assert media_gain(lengths, one, seen, alike, "image")[:3] == (1.0, 3.0, None)
    elsewhere = [scored(larger, 0, 3.0, 0, edge + grown - 1), scored(larger, 0, 3.0, edge + grown - 1)]
    assert media_gain(lengths, one, seen, elsewhere, "image").left_out == 1
    whole = [scored(larger, 0, 3.0)]
    assert media_gain(lengths, one, seen, whole, "image").left_out == 1


def blind(gain: float, error: float | None = 0.002, documents: int = 100, loss: float = 1.0) -> dict:
    told = {"loss": loss, "standard_error": error, "documents": documents}
    return {"media_gain": {"image": gain}, "blind": {"image": told}}


@pytest.mark.parametrize(
    ("figures", "idle"),
    [
        (blind(0.001), True),
        (blind(-0.003), True),
        (blind(0.5), False),
        (blind(0.008), False),  # small, and no chance
        (blind(0.008, error=0.005), True),
        (blind(0.0008, error=0.0001), True),  # no chance, and slight
        (blind(0.001, error=0.1), False),  # nobody knows
        (blind(0.001, documents=19), False),
        (blind(0.001, error=None, documents=1), False),
        ({}, False),
    ],
)
def test_media_are_idle_where_their_gain_is_small_sure_and_no_more_than_chance(figures, idle):
    assert is_idle(figures, "image") is idle


def test_a_run_whose_pictures_change_nothing_says_so_after_two_evaluations_of_it():
    nothing, much = {"a": blind(0.001)}, {"a": blind(0.5)}
    assert list(idle_lines([much, nothing], 560)) == []
    assert list(idle_lines([nothing, much], 560)) == []
    assert list(idle_lines([], 560)) == []
    (alone,) = idle_lines([nothing], 8)
    assert "the images of a change nothing: after 8 steps" in alone
    (line,) = idle_lines([much, nothing, nothing], 560, ("vision", "connector"))
    assert "config.optimizer.freeze (vision, connector frozen here)" in line


def test_a_source_of_two_modalities_has_a_pass_and_a_gain_for_each(tiny, template, learnt):
    """Films of two frames with time stamps, of which some have a picture beside them."""
    video = VideoSpec(
        frames=1, fps=2.0, min_frames=1, max_frames=4, min_pixels=64, max_pixels=256, stamp="<{seconds:.1f}>"
    )  # fmt: skip
    spec = dataclasses.replace(IMAGE, video=video)
    documents = []
    for n in range(6):
        film = Video(frames=tuple(flat(40 * n + m) for m in range(1 + n % 3)), fps=2.0)
        documents.append(chat((film, flat(10 * n), "?") if n % 2 else (film, "?"), ANSWERS[n]))  # type: ignore[arg-type]
    media = [[part for turn in d.turns for part in turn.parts if not isinstance(part, Text)] for d in documents]
    index = InMemory("films", [template.encode(d) for d in documents], media, template.fingerprint)
    lengths = Lengths(index, spec, encode=template.stamp)
    assert lengths.inner_I.any(), "time stamps are text inside"
    evaluate = evaluator_of(tiny, template, lengths, image=spec)
    figures = evaluate(learnt)["films"]
    assert set(figures["media_gain"]) == {"image", "video"}
    assert set(figures["modalities"]) == {"video", "image+video"}
    documents_of = {name: one["documents"] for name, one in figures["blind"].items()}
    assert documents_of == {"image": 3, "video": 6}
    assert all(one["left_out"] == 0 for one in figures["blind"].values())
