"""Accuracies on the demo's questions without looking at the pictures: a model must beat them."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np

from jaxmm.data.demo import ANSWERS, TRAINING, draft, questions
from jaxmm.data.demo_pictures import Scene
from jaxmm.data.documents import Document, Text


def baselines(documents: Iterable[Document], seed: int = 0, examples: int = 9000) -> dict[str, dict[str, float]]:
    """Returns the accuracies of answers that ignore the picture, on test documents.

    Args:
      documents: of ``test_source``.
      seed, examples: the training split whose answers are counted.

    Returns:
      {way: {kind or "overall": accuracy, 0 to 1}}. The ways are "random" (expected accuracy of a random answer of the
      kind), "majority" (the kind's most frequent answer in training) and "question" (the most frequent training answer
      to that very question, or else the majority).
    """
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for index in range(examples):
        turns = draft(seed, TRAINING, index).turns
        if turns[0][0] != "user" or not isinstance(picture := turns[0][1][0], Scene):
            continue
        kind_of = {question.text: question.kind for question in questions(picture)}
        for (_, asked), (_, answered) in zip(turns[::2], turns[1::2], strict=True):
            for group in (str(asked[-1]), kind_of[str(asked[-1])]):
                answers[group][str(answered[0])] += 1
    scores: dict[str, dict[str, list[float]]] = {
        way: collections.defaultdict(list) for way in ("random", "majority", "question")
    }
    for document in documents:
        kind = document.labels[0]
        (text,) = (part.text for part in document.turns[0].parts if isinstance(part, Text))
        (answer,) = (part.text for part in document.turns[1].parts if isinstance(part, Text))
        majority = answers[kind].most_common(1)[0][0]
        guess = answers[text].most_common(1)[0][0] if text in answers else majority
        for group in (kind, "overall"):
            scores["random"][group].append(1 / len(ANSWERS[kind]))
            scores["majority"][group].append(float(answer == majority))
            scores["question"][group].append(float(answer == guess))
    return {way: {group: float(np.mean(hits)) for group, hits in groups.items()} for way, groups in scores.items()}
