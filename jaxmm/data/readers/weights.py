"""What a record itself says about what is learnt: weights, switches and labels of messages and of examples.

OpenAI's ``weight``, ms-swift's ``loss`` and Axolotl's ``train`` turn a message on or off; a number between weighs it.
``label: false`` beside an answer is KTO's: the answer should not be given. Pairs of answers are refused here: only
objectives of preferences learn from them (``preferences.py``), and these weigh nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jaxmm.data.documents import Document, Turn
from jaxmm.data.reading import OBJECTIVES
from jaxmm.errors import UserError

OF_MESSAGE = ("weight", "loss", "train", "loss_weight", "loss_scale")
OF_EXAMPLE = ("weight", "loss_weight", "sample_weight", "example_weight")
LABELS = ("label", "kto_tag")
PAIRS = ("chosen", "rejected", "rejected_response", "rejected_messages", "chosen_response", "rejected_images")
MOST = 1000.0
ALL, LAST, PROMPT = "", "last", "prompt"  # turns of a dataset: as LLaMA-Factory's mask_history and train_on_prompt say


class Learnt(NamedTuple):
    """What a dataset's description says of all its records: ALL, LAST or PROMPT, and their weight."""

    turns: str = ALL
    weight: float = 1.0


AS_SAID = Learnt()


def of_message(origin: str, message: Mapping[str, Any]) -> float:
    """Returns a message's weight; 0 if it is not to be learnt.

    Raises:
      UserError: for an invalid weight, or for two that differ.
    """
    said = [key for key in OF_MESSAGE if message.get(key) is not None and (key != "train" or not is_trained(message))]
    weights = {key: _weight(origin, key, message[key]) for key in said}
    if len(set(weights.values())) > 1:
        raise UserError(f"{origin}: a message has different weights in {' and '.join(weights)}: give one")
    return next(iter(weights.values()), 1.0)


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether a message is to be learnt, whatever its role, as in Axolotl."""
    return message.get("train") is True


def of_example(origin: str, record: Mapping[str, Any], document: Document) -> float:
    """Returns the weight of all turns of a record; 0 if its label says that its answer should not be given.

    A page has no answers: there, a column called label or chosen means something else.

    Raises:
      UserError: for an invalid weight, and for a pair of answers of which one is preferred.
    """
    is_said = any(turn.role != "document" for turn in document.turns)
    pairs = [key for key in PAIRS if is_said and record.get(key)]
    if pairs:
        raise UserError(
            f"{origin} has '{pairs[0]}': set {OBJECTIVES['pairs']} to learn from pairs of answers, or remove that "
            f"column to learn the rest as it is"
        )
    weight = 1.0
    for key in OF_EXAMPLE:
        if record.get(key) is not None:
            weight *= _weight(origin, key, record[key])
    return 0.0 if is_said and any(_is_off(record.get(key)) for key in LABELS) else weight


def check_unweighed(origin: str, record: Mapping[str, Any], *answers: Turn) -> None:
    """Raises UserError for answers to be compared or judged that have a weight, by their own word or the record's."""
    weights = {f"'{key}'": _weight(origin, key, record[key]) for key in OF_EXAMPLE if record.get(key) is not None}
    weights["its answer's weight"] = next((turn.weight for turn in answers if turn.weight != 1), 1.0)
    if heavy := next((key for key, weight in weights.items() if weight != 1), ""):
        raise UserError(
            f"{origin}: {heavy} is {weights[heavy]:g}: pairs are not weighed, nor judged answers: remove it, or leave "
            f"such records out"
        )


def _is_off(value: Any) -> bool:
    """Whether a label says no: false, or "false" as text."""
    return value is False or (isinstance(value, str) and value.strip().lower() == "false")


def read(keys: Iterable[str]) -> frozenset[str]:
    """Returns those of a record's columns that this file reads where no preferences are learnt."""
    return frozenset((*OF_EXAMPLE, *LABELS, *PAIRS)).intersection(keys)


def weighed(document: Document, weight: float, learnt: Learnt = AS_SAID) -> Document:
    """Returns a document with its turns' weights times ``weight``, and with the turns learnt that its dataset names."""
    weight *= learnt.weight
    last = max((n for n, turn in enumerate(document.turns) if turn.role == "assistant"), default=-1)
    turns = []
    for n, turn in enumerate(document.turns):
        target = turn.target
        if learnt.turns == PROMPT:
            target = target or (turn.role in ("user", "system", "tool") and turn.weight > 0)
        elif learnt.turns == LAST:
            target = target and n == last
        turns.append(turn._replace(target=target and weight > 0, weight=turn.weight * weight))
    return document._replace(turns=tuple(turns))


def _weight(origin: str, key: str, value: Any) -> float:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        value = not _is_off(value)
    if isinstance(value, list):  # of tokens, or of parts
        raise UserError(f"{origin}: '{key}' is a list: give one weight for the whole of it")
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= MOST:
        raise UserError(f"{origin}: '{key}' is {value!r:.40}: a weight in the loss is a number from 0 to {MOST:g}")
    return weight
