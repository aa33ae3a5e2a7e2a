"""The demo of preferences: the same for everyone, its answers true, and only the picture tells the better one."""

import collections
import functools
import json

import pytest
import small_run

from jaxmm import command, train
from jaxmm.data import demo, demo_pictures, demo_preferences
from jaxmm.data.demo_preferences import FORMS, ROUND, TEST, TRAINING, Preference
from jaxmm.data.documents import Document, Image, Text
from jaxmm.errors import UserError

ROUNDS = 2400  # whole blocks
each_kind = pytest.mark.parametrize("kind", demo_preferences.KINDS)


@pytest.fixture(scope="module")
def training() -> list[Preference]:
    return [demo_preferences.draft(0, TRAINING, index) for index in range(ROUNDS)]


@pytest.fixture(scope="module")
def held_out() -> list[Preference]:
    return [demo_preferences.draft(0, TEST, index) for index in range(600)]


def asked_about(one: Preference) -> demo_pictures.Object:
    """The shape that the question is about, as the scene itself has it."""
    (question,) = (q for q in demo.questions(one.picture) if q.text == one.question)
    return question.about[0]


def said(document: Document) -> tuple[str, str, str]:
    """The question, and both answers; they stand behind the same prompt."""
    prompt, answer = document.turns
    assert document.other[0] == prompt
    image, question = prompt.parts
    assert isinstance(image, Image)
    texts = [question, *answer.parts, *document.other[1].parts]
    assert all(isinstance(text, Text) for text in texts)
    assert [turn.target for turn in (prompt, answer, document.other[1])] == [False, True, True]
    return tuple(text.text for text in texts)


def of_source(kind: str, split: str, seed: int, examples: int) -> list[Document]:
    return list(getattr(demo_preferences, f"{split}_source")(kind, seed, examples).documents())


@each_kind
def test_a_document_depends_on_nothing_but_seed_split_and_number(kind):
    few, many = of_source(kind, "training", 3, 5), of_source(kind, "training", 3, 30)
    assert many[:5] == few
    assert of_source(kind, "training", 3, 30) == many
    assert of_source(kind, "training", 4, 5) != few
    tests = of_source(kind, "test", 3, 30)
    shown = [{document.turns[0].parts[0] for document in split} for split in (many, tests)]
    assert len(shown[0]) == len(shown[1]) == 30
    assert not shown[0] & shown[1]


def test_the_entry_tells_sources_apart_and_is_canonical():
    made = demo_preferences.training_source, demo_preferences.test_source
    sources = [
        *(source(kind) for source in made for kind in demo_preferences.KINDS),
        made[0]("pairs", 1), made[0]("pairs", 0, 7), demo.training_source(),
    ]  # fmt: skip
    assert len({source.entry for source in sources}) == len(sources)
    for source in sources:
        assert source.entry == json.dumps(json.loads(source.entry), sort_keys=True, separators=(",", ":"))
    with pytest.raises(ValueError, match="none of"):
        demo_preferences.training_source("ranked")


def test_both_answers_are_true_and_the_better_one_is_by_the_shape_alone(training, held_out):
    for one in training + held_out:
        shape = asked_about(one)
        assert one.answers == (f"It is {shape.colour}.", f"{shape.colour.capitalize()} it is.")
        assert (one.better, one.worse) == (one.answers if shape.shape in ROUND else one.answers[::-1])


def test_no_text_names_a_shape_and_answers_are_of_one_length(training, held_out):
    for one in training + held_out:
        texts = " ".join((one.question, *one.answers)).lower()
        assert not any(shape in texts for shape in demo_pictures.SHAPES)
        assert len(one.better) == len(one.worse)


def test_form_question_colour_and_size_of_the_picture_tell_nothing(training):
    """Of all that can be known without looking, each value has the first form as often as the second."""
    blind = {
        "form": lambda one: "",
        "colour": lambda one: one.answers[0],
        "question": lambda one: one.question,
        "number": lambda one: len(one.picture.objects),
        "size": lambda one: (one.picture.width, one.picture.height),
    }
    for name, value_of in blind.items():
        counts = collections.Counter(value_of(one) for one in training)
        first = collections.Counter(value_of(one) for one in training if one.is_round)
        for value, count in counts.items():
            exact = name in ("form", "colour")
            assert abs(first[value] / count - 0.5) <= (0 if exact else 2.5 * 0.5 / count**0.5), (name, value)


def test_what_is_judged_has_no_better_form_colour_or_neighbour(training):
    """A verdict goes with the shape and the form together, and with neither of them alone."""
    wanted = [one.judged == one.better for one in training]
    for value_of in (lambda one: one.says_first, lambda one: one.is_round, lambda one: one.judged):
        counts = collections.Counter(map(value_of, training))
        right = collections.Counter(value_of(one) for one, good in zip(training, wanted, strict=True) if good)
        assert all(right[value] == count / 2 for value, count in counts.items())


def test_pairs_have_the_better_answer_first_and_judged_ones_another_prompts_beside(training):
    pairs, judged = (of_source(kind, "training", 0, 48) for kind in demo_preferences.KINDS)
    for one, document in zip(training, pairs, strict=False):
        assert said(document) == (one.question, one.better, one.worse)
        assert document.verdict == "better"
    for index, document in enumerate(judged):
        one, neighbour = training[index], training[index ^ 1]
        assert said(document) == (one.question, one.judged, neighbour.judged)
        assert document.verdict == ("wanted" if one.judged == one.better else "unwanted")


def test_pairs_of_colour_and_shape_that_training_never_shows_are_labelled(training, held_out):
    shown = {o.pair for one in training for o in one.picture.objects}
    assert shown == set(demo.SEEN)
    for one in held_out:
        assert (asked_about(one).pair in demo.HELD_OUT) == ("unseen" in one.labels)
    unseen = [one.is_round for one in held_out if one.labels]
    assert 90 <= len(unseen) <= 150
    assert 0.4 < sum(unseen) / len(unseen) < 0.6
    assert sum(one.is_round for one in held_out) == 300


def test_forms_are_of_one_length():
    assert len({len(form) for form in FORMS}) == 1


def test_clips_have_no_preferences_and_the_config_says_so():
    config = f"--config={small_run.ROOT / 'configs' / 'video.py'}"
    with pytest.raises(UserError, match=r"the demo of preferences has pictures: leave out config\.data\.demo=video"):
        command.parse([config, "--config.objective=dpo"], {})
    command.parse([config, "--config.objective=dpo", "--config.data.path=pairs.json"], {})


@pytest.mark.parametrize("objective", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_a_run_without_data_learns_the_demo_of_its_objective(objective, tmp_path, monkeypatch):
    for source, count in (("training_source", 48), ("test_source", 24)):
        few = functools.partial(getattr(demo_preferences, source), examples=count)
        monkeypatch.setattr(demo_preferences, source, few)
    run = [
        f"--config={small_run.ROOT / 'configs' / 'dpo.py'}", *small_run.TINY, "--config.init_from=",
        f"--config.objective={objective}", "--config.steps=2", "--config.eval.every=0", "--config.adapter.rank=2",
        f"--config.data.cache={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert train.main(run) == 0
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["eval"]["demo_preferences_test"]
    assert figures["pairs"] == 24
    assert 0 <= figures["preference_accuracy"] <= 1
