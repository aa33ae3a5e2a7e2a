"""The demo corpus: the same for everyone, true, balanced, and silent about the pairs that the test asks for."""

import collections
import io
import itertools
import json
import re

import numpy as np
import PIL.Image
import pytest

from jaxmm.data import demo, demo_baselines, demo_pictures
from jaxmm.data.documents import Document, Image, Text

ROUNDS = 3000


@pytest.fixture(scope="module")
def training() -> list[demo.Draft]:
    return [demo.draft(0, demo.TRAINING, index) for index in range(ROUNDS)]


@pytest.fixture(scope="module")
def held_out() -> list[demo.Draft]:
    return [demo.draft(0, demo.TEST, index) for index in range(600)]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(demo.training_source(examples=200).documents())


def pictures(drafts) -> list[demo_pictures.Scene]:
    return [part for one in drafts for _, parts in one.turns for part in parts if isinstance(part, demo_pictures.Scene)]


def texts(one) -> list[str]:
    return [part for _, parts in one.turns for part in parts if isinstance(part, str)]


def dialogues(drafts) -> list[tuple[demo_pictures.Scene, list[demo.Question]]]:
    """The questions of each picture, as the scene itself has them: a text that no scene has is a KeyError."""
    found = []
    for one in drafts:
        role, parts = one.turns[0]
        if role == "user" and isinstance(parts[0], demo_pictures.Scene):
            known = {question.text: question for question in demo.questions(parts[0])}
            found.append((parts[0], [known[asked[-1]] for role, asked in one.turns if role == "user"]))
    return found


def images(document: Document) -> list[Image]:
    return [part for turn in document.turns for part in turn.parts if isinstance(part, Image)]


def test_a_document_depends_on_nothing_but_seed_split_and_number():
    few, many = (list(demo.training_source(seed=3, examples=n).documents()) for n in (5, 30))
    assert many[:5] == few
    assert list(demo.training_source(seed=3, examples=30).documents()) == many
    assert list(demo.test_source(seed=3, examples=5).documents()) == list(demo.test_source(3, 130).documents())[:5]
    assert list(demo.training_source(seed=4, examples=5).documents()) != few


def test_a_pass_over_a_source_can_be_repeated():
    source = demo.test_source(examples=10)
    assert list(source.documents()) == list(source.documents())


def test_the_entry_tells_sources_apart_and_is_canonical():
    sources = [demo.training_source(), demo.training_source(1), demo.training_source(0, 7), demo.test_source(0, 7)]
    assert len({source.entry for source in sources}) == 4
    assert [source.name for source in sources] == ["demo", "demo", "demo", "demo_test"]
    for source in sources:
        assert source.files == ()
        assert source.entry == json.dumps(json.loads(source.entry), sort_keys=True, separators=(",", ":"))


def test_held_out_pairs_are_one_of_each_shape_and_leave_every_colour_several_shapes():
    assert sorted(shape for _, shape in demo.HELD_OUT) == sorted(demo_pictures.SHAPES)
    assert len({colour for colour, _ in demo.HELD_OUT}) == len(demo.HELD_OUT)
    assert len(demo.SEEN) == len(demo_pictures.COLOURS) * len(demo_pictures.SHAPES) - len(demo.HELD_OUT)
    assert min(collections.Counter(colour for colour, _ in demo.SEEN).values()) >= 4


def test_training_never_shows_a_held_out_pair(training):
    shown = collections.Counter(o.pair for picture in pictures(training) for o in picture.objects)
    assert set(shown) == set(demo.SEEN)
    assert max(shown.values()) < 2 * min(shown.values())


def test_training_never_names_a_held_out_pair(training):
    named = re.compile("|".join(" ".join(pair) for pair in demo.HELD_OUT))
    assert not any(named.search(text) for one in training for text in texts(one))


def test_the_label_unseen_is_true_of_the_scene(held_out):
    for one, (picture, (question,)) in zip(held_out, dialogues(held_out), strict=True):
        strange = {o for o in picture.objects if o.pair in demo.HELD_OUT}
        assert strange <= set(question.about)  # only what is asked about may be new
        assert one.labels == ((question.kind, "unseen") if strange else (question.kind,))


def test_about_a_fifth_of_the_questions_about_shapes_are_about_unseen_pairs(held_out):
    for kind in ("colour", "shape", "relation"):
        unseen = sum(one.labels == (kind, "unseen") for one in held_out)
        assert 20 <= unseen <= 40
    asked = {o.pair for _, (question,) in dialogues(held_out) for o in question.about}
    assert asked >= set(demo.HELD_OUT)


def test_no_test_picture_occurs_in_training(training, held_out):
    assert not set(pictures(training)) & set(pictures(held_out))


def test_every_answer_is_true_of_its_picture(training, held_out):
    for drafts in (training, held_out):
        for one in drafts:
            role, parts = one.turns[0]
            if role != "user" or not isinstance(parts[0], demo_pictures.Scene):
                continue
            objects = parts[0].objects
            for (_, asked), (_, (answer,)) in zip(one.turns[::2], one.turns[1::2], strict=True):
                question = asked[-1]
                if match := re.fullmatch(r"What colour is the (\w+)\?", question):
                    assert [o.colour for o in objects if o.shape == match[1]] == [answer]
                elif match := re.fullmatch(r"What (colour|shape) is it\?", question):
                    assert [getattr(o, match[1]) for o in objects] == [answer]
                elif match := re.fullmatch(r"What shape is (\w+)\?", question):
                    assert [o.shape for o in objects if o.colour == match[1]] == [answer]
                elif match := re.fullmatch(r"What colour is on the (left|right)\?", question):
                    first, second, *_ = sorted(objects, key=lambda o: o.x, reverse=match[1] == "right")
                    assert first.colour == answer
                    assert abs(first.x - second.x) >= demo.CELL
                else:
                    assert question == "How many shapes?"
                    assert answer == str(len(objects))


def test_captions_are_true_of_their_pictures(training):
    checked = 0
    for one in training:
        role, parts = one.turns[0]
        for picture, text in itertools.pairwise(parts):
            if role == "document" and isinstance(picture, demo_pictures.Scene):
                colours, shapes = (
                    re.findall("|".join(names), text) for names in (demo_pictures.COLOURS, demo_pictures.SHAPES)
                )
                named = list(zip(colours, shapes, strict=False))[: len(picture.objects)]
                assert sorted(named) == sorted(o.pair for o in picture.objects)
                across = {o.pair: o.x for o in picture.objects}
                assert [across[pair] for pair in named] == sorted(across.values())
                checked += 1
    assert checked > 200


def test_no_question_is_answered_by_an_earlier_turn(training):
    for _, asked in dialogues(training):
        for k, question in enumerate(asked):
            for earlier in asked[:k]:
                assert not set(question.about) & set(earlier.about)


def test_test_answers_are_balanced_exactly(held_out):
    answers = collections.defaultdict(collections.Counter)
    for one in held_out:
        answers[one.labels[0]][one.turns[1][1][0]] += 1
    assert set(answers) == set(demo.KINDS)
    for kind, counts in answers.items():
        assert counts.total() == 150
        assert max(counts.values()) - min(counts[answer] for answer in demo.ANSWERS[kind]) <= 1


def test_training_answers_are_balanced(training):
    answers = collections.defaultdict(collections.Counter)
    for _, asked in dialogues(training):
        for question in asked:
            answers[question.kind][question.answer] += 1
    for kind in demo.KINDS:
        shares = np.array([answers[kind][answer] for answer in demo.ANSWERS[kind]]) / answers[kind].total()
        assert shares.max() <= 0.3
        assert shares.min() >= 0.5 / len(shares)
        assert answers[kind].total() >= 0.12 * sum(counts.total() for counts in answers.values())


def test_pictures_at_a_fixed_distance_tell_nothing_about_an_answer(held_out):
    """A blind test swaps pictures by some distance: no distance may bring the answers back."""
    answers = np.array([one.turns[1][1][0] for one in held_out])
    for distance in range(1, 300):
        assert (answers == np.roll(answers, distance)).mean() < 0.16


def test_answers_without_the_picture_score_low():
    scores = demo_baselines.baselines(demo.test_source().documents(), examples=ROUNDS)
    for way in ("random", "majority", "question"):
        assert set(scores[way]) == {*demo.KINDS, "overall"}
        assert max(scores[way].values()) <= 0.3
        assert scores[way]["overall"] <= 0.25


def test_every_kind_of_document_has_its_share(training):
    kinds = collections.Counter()
    for one in training:
        seen = len(pictures([one]))
        if not seen:
            kinds["text"] += 1
        elif one.turns[0][0] == "user":
            kinds["conversation"] += 1
        else:
            kinds["caption" if seen == 1 else "interleaved"] += 1
    assert kinds["conversation"] >= 0.65 * ROUNDS
    for kind in ("caption", "interleaved", "text"):
        assert kinds[kind] >= 0.04 * ROUNDS


def test_pictures_vary_in_size_and_aspect_and_show_one_to_four_shapes_apart(training):
    found = pictures(training)
    assert {(picture.width, picture.height) for picture in found} == set(itertools.product(demo.SIDES, demo.SIDES))
    assert {len(picture.objects) for picture in found} == {1, 2, 3, 4}
    assert {picture.texture for picture in found} == set(demo.TEXTURES)
    for picture in found:
        for o in picture.objects:
            assert 14 <= o.size <= min(2 * o.x, 2 * o.y, 2 * (picture.width - o.x), 2 * (picture.height - o.y))
            for other in picture.objects:
                apart = max(abs(o.x - other.x), abs(o.y - other.y)) - (o.size + other.size) / 2
                assert o is other or apart >= 2


def test_the_number_of_shapes_does_not_show_in_the_size_of_the_picture(training):
    areas = collections.defaultdict(list)
    for picture in pictures(training):
        areas[len(picture.objects)].append(picture.width * picture.height)
    means = [np.mean(areas[count]) for count in (1, 2, 3, 4)]
    assert max(means) < 1.1 * min(means)


def test_all_formats_occur_and_decode_to_the_drawn_picture(documents):
    formats = collections.Counter()
    for index, document in enumerate(documents):
        drawn = pictures([demo.draft(0, demo.TRAINING, index)])
        for image, picture in zip(images(document), drawn, strict=True):
            with PIL.Image.open(io.BytesIO(image.data)) as opened:
                formats[opened.format] += 1
                assert opened.size == (picture.width, picture.height)
                error = np.abs(np.asarray(opened.convert("RGB"), int) - np.asarray(demo_pictures.draw(picture), int))
                assert error.max() == 0 if opened.format == "PNG" else error.mean() < 7
    assert set(formats) == {"PNG", "JPEG", "WEBP"}
    assert formats["PNG"] > 0.7 * formats.total()


def test_shapes_stand_out_from_their_ground(held_out):
    for picture in pictures(held_out[:100]):
        pixels = np.asarray(demo_pictures.draw(picture), int)
        for o in picture.objects:
            top = pixels[o.y - o.size // 2 + 1 : o.y, o.x - 1 : o.x + 2]  # in every shape some ink is above its centre
            ink = np.abs(top - np.array(demo_pictures.COLOURS[o.colour])).max(axis=-1) <= 10
            assert ink.any()
            assert np.abs(np.array(demo_pictures.COLOURS[o.colour]) - np.array(picture.ground)).max() > 90


def test_turns_are_targets_where_the_contract_says(documents):
    for document in documents:
        roles = [turn.role for turn in document.turns]
        assert roles == ["document"] or roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(turn.target == (turn.role in ("document", "assistant")) for turn in document.turns)
        assert all(part.text for turn in document.turns for part in turn.parts if isinstance(part, Text))
        assert document.labels == ()
    assert documents[7].origin == "demo, document 7"
