"""The questions that a run's samples ask."""

from __future__ import annotations

import copy

from conftest import chat, picture

from jaxmm.data.documents import Image
from jaxmm.training import samples


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
