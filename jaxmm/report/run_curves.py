"""Which charts the page of a run has, and where in its log their curves stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxmm.report.run_attention import MEDIA, classes_of
from jaxmm.report.run_chart import Chart, Curve
from jaxmm.report.run_data import TEXT, RunData, at, figure, names
from jaxmm.report.words import CLASSES

SHOWN_EXPERTS = 8  # a model with more shows the busiest and the idlest alone
LOG_FROM = 20  # times that the largest loss is the smallest: from here on its axis is logarithmic

Step = Mapping[str, Any]
Read = Callable[[Step], float | None]


def charts(runs: Sequence[RunData]) -> dict[str, list[Chart]]:
    """All that have values, by the section in which they stand."""
    made = {
        "curves": [*_learning(runs), *_optimizer(runs), *_speed(runs)],
        "attention": [_attention(runs)],
        "balance": [*_shares(runs)],
    }
    return {section: [one for one in of if one.curves] for section, of in made.items()}


def _curve(runs: Sequence[RunData], run: int, name: str, read: Read, **more: Any) -> Iterator[Curve]:
    """The curve of what ``read`` finds in the lines of a run; none where that is nothing."""
    steps, values = [], []
    for line in runs[run].lines:
        if (value := read(line)) is not None:
            steps.append(line["step"])
            values.append(value)
    if values:
        yield Curve(name, run, more.pop("place", 0), steps, values, **more)


def _at(*path: str) -> Read:
    return lambda line: figure(line, *path)


def _each(runs: Sequence[RunData], name: str, *path: str, **more: Any) -> list[Curve]:
    """A curve for each run of what stands at one path."""
    return [curve for run in range(len(runs)) for curve in _curve(runs, run, name, _at(*path), **more)]


def _by_name(
    runs: Sequence[RunData], above: Sequence[str], below: Sequence[str], told: str = "{}", first: int = 0, **more: Any
) -> list[Curve]:
    """A curve for each run and each name between two paths: of "sources", NAME, "loss"."""
    of_runs: list[dict[str, tuple[list[int], list[float]]]] = []  # of each run, by name
    known: dict[str, None] = {}
    for run in runs:
        of_run: dict[str, tuple[list[int], list[float]]] = {}
        for line in run.lines:
            inside = at(line, *above)
            for name in inside if isinstance(inside, dict) else ():
                known[name] = None
                if (value := figure(inside[name], *below)) is not None:
                    steps, values = of_run.setdefault(name, ([], []))
                    steps.append(line["step"])
                    values.append(value)
        of_runs.append(of_run)
    return [
        Curve(told.format(name), run, first + place, *of_run[name], **more)
        for place, name in enumerate(known)
        for run, of_run in enumerate(of_runs)
        if name in of_run
    ]


def _several(curves: list[Curve]) -> list[Curve]:
    """The curves, where they tell more than the sum of them does."""
    return curves if len({curve.place for curve in curves}) > 1 else []


def _learning(runs: Sequence[RunData]) -> Iterator[Chart]:
    trained = _each(runs, "trained on", "loss")
    held_out = _by_name(runs, ["eval"], ["loss"], "held out: {}", 1, dots=True)
    of = "nats a target" if not _each(runs, "", "preference_accuracy") else "of a target, or of a pair"
    yield _loss("loss", "Loss", of, trained + held_out)
    yield _loss("loss-sources", "Loss by source", of, _several(_by_name(runs, ["sources"], ["loss"])))
    unit = "nats a target, of batches that were looked at and held out"
    yield _loss("loss-modalities", "Loss by modality", unit, _several(_by_modality(runs)))
    right = _by_name(runs, ["eval"], ["answer_accuracy"], dots=True)
    yield Chart("answers", "Answers right", "of held-out questions", right, "percent", from_0=True)
    targets = _each(runs, "trained on", "target_accuracy")
    yield Chart("targets", "Targets right", "tokens that were the likeliest", targets, "percent", from_0=True)
    yield from _preferences(runs)
    yield Chart("media-gain", "Media gain", "nats a target that media are worth", _gains(runs), from_0=True)


def _preferences(runs: Sequence[RunData]) -> Iterator[Chart]:
    """How often the better answer is preferred, and by how much."""
    right = _each(runs, "trained on", "preference_accuracy")
    right += _by_name(runs, ["eval"], ["preference_accuracy"], "held out: {}", 1, dots=True)
    yield Chart("preferences", "Preferences right", "of pairs, or of judged answers", right, "percent", from_0=True)
    rewards: list[Curve] = []
    for place, name in enumerate(("chosen", "rejected")):
        rewards += _by_name(runs, ["preferences"], [f"{name}_reward"], f"{name}: {{}}", 2 * place)
    yield Chart("rewards", "Rewards", "beta times the log-ratio to the reference", rewards)
    margins = _by_name(runs, ["preferences"], ["margin"]) + _by_name(
        runs, ["eval"], ["margin"], "held out: {}", 1, dots=True
    )
    yield Chart("margins", "Margin", "of the chosen answer's reward", margins)
    far = _by_name(runs, ["preferences"], ["kl"])
    yield Chart("kl", "Divergence", "from the reference, in nats, by other prompts’ answers", far, from_0=True)


def _loss(key: str, title: str, unit: str, curves: list[Curve]) -> Chart:
    values = [value for curve in curves for value in curve.values]
    return Chart(key, title, unit, curves, is_log=bool(values) and 0 < LOG_FROM * min(values) <= max(values))


def _by_modality(runs: Sequence[RunData]) -> list[Curve]:
    """Of the batches that a run has looked at, and with dots of each held-out source, by modality."""
    evaluations = [figures for run in runs for _, figures in run.evaluations()]
    held_out = [name for name in names(({"eval": one} for one in evaluations), "eval")
                if any(names([one], name, "modalities") for one in evaluations)]  # fmt: skip
    known = names((line for run in runs for line in run.lines), "losses", "modalities")
    known += [one for source in held_out for one in names(evaluations, source, "modalities")]
    curves: list[Curve] = []
    for place, one in enumerate(dict.fromkeys(known)):
        told = _modality(one)
        for run in range(len(runs)):
            curves += _curve(runs, run, told, _at("losses", "modalities", one), place=place)
            for source in held_out:
                read = _at("eval", source, "modalities", one, "loss")
                curves += _curve(runs, run, f"held out: {source}: {told}", read, place=place, dots=True)
    return curves


def _modality(name: str) -> str:
    """Of documents that have a medium, or several."""
    return "text alone" if name == TEXT else f"with {name}"


def _gains(runs: Sequence[RunData]) -> list[Curve]:
    curves: list[Curve] = []
    pairs = list(dict.fromkeys(
        (source, modality)
        for run in runs for _, figures in run.evaluations()
        for source, of in figures.items() for modality in names([of], "media_gain")
    ))  # fmt: skip
    sources = {source for source, _ in pairs}
    for place, (source, modality) in enumerate(pairs):
        name = modality if len(sources) == 1 else f"{source}: {modality}"
        for run in range(len(runs)):
            read = _at("eval", source, "media_gain", modality)
            curves += _curve(runs, run, name, read, place=place, dots=True)
    return curves


def _optimizer(runs: Sequence[RunData]) -> Iterator[Chart]:
    name = "" if len(runs) > 1 else "rate"
    yield Chart("rate", "Learning rate", "", _each(runs, name, "learning_rate"), from_0=True)
    # A part whose norm is 0 cannot learn, which is worth a look, unless it has nothing to do.
    parts = _several([curve for curve in _by_name(runs, ["grad_norm_by_part"], [], first=1)
                      if any(curve.values) or runs[curve.run].learns_media])  # fmt: skip
    norms = _each(runs, "all" if len(runs) == 1 or parts else "", "grad_norm") + parts
    title, unit = ("Gradient norms", "by part, of a line's last step") if parts else ("Gradient norm", "of a last step")
    yield Chart("gradients", title, unit, norms, is_log=True)
    by_data: list[Curve] = []
    for kind in ("sources", "modalities"):
        groups = list(dict.fromkeys(name for run in runs for name in names(run.lines, "gradients", kind)))
        for one in groups if len(groups) > 1 else ():
            place = len({curve.place for curve in by_data})
            told = one if kind == "sources" else _modality(one)
            for run in range(len(runs)):
                by_data += _curve(runs, run, told, _norm("gradients", kind, one), place=place)
    yield Chart("gradients-data", "Gradient norms by data", "of sources and modalities", by_data, is_log=True)
    yield Chart("expert-load", "Load of experts", "choices over the mean of a layer's", _loads(runs), from_0=True)


def _loads(runs: Sequence[RunData]) -> list[Curve]:
    """Of the busiest and the idlest expert of a layer; of one run with few experts, of each over all layers too."""
    extremes = {"busiest": "most", "idlest": "least"}
    curves = [
        curve
        for place, (name, key) in enumerate(extremes.items())
        for curve in _each(runs, name, "expert_load", key, place=place)
    ]
    loads = runs[0].last("expert_load", "experts") if len(runs) == 1 else None
    for number in range(len(loads)) if isinstance(loads, list) and len(loads) <= SHOWN_EXPERTS else ():
        curves += _curve(runs, 0, f"expert {number}", _nth(number, "expert_load", "experts"), place=2 + number)
    return curves


def _nth(number: int, *path: str) -> Read:
    """One of the figures of a list."""

    def read(line: Step) -> float | None:
        values = at(line, *path)
        return figure({"": values[number]}, "") if isinstance(values, list) and number < len(values) else None

    return read


def _norm(*path: str) -> Read:
    """Of all parts together: "all", which stands among them, or where a log lacks it what they give."""

    def read(line: Step) -> float | None:
        parts = at(line, *path)
        if (whole := figure(parts, "all")) is not None:
            return whole
        values = (
            [norm for part in parts if (norm := figure(parts, part)) is not None] if isinstance(parts, dict) else []
        )
        return math.hypot(*values) if values else None

    return read


def _speed(runs: Sequence[RunData]) -> Iterator[Chart]:
    def one(key: str, title: str, unit: str, name: str, field: str, form: str = "plain") -> Chart:
        curves = _each(runs, name if len(runs) == 1 else "", field)
        return Chart(key, title, unit, curves, form, from_0=True)

    def some(key: str, title: str, unit: str, fields: Mapping[str, str], form: str) -> Chart:
        curves = [
            curve
            for place, (field, name) in enumerate(fields.items())
            for run in range(len(runs))
            for curve in _curve(runs, run, name, _at(field), place=place)
            if any(curve.values)
        ]
        return Chart(key, title, unit, curves, form, from_0=True)

    yield one("throughput", "Throughput", "tokens a second", "tokens", "tokens_per_second", form="count")
    media = {"images_per_second": "images", "videos_per_second": "videos", "recordings_per_second": "recordings"}
    yield some("media", "Media a second", "pictures and clips", media, "count")
    fills = {"token_fill": "tokens", "patch_fill": "patches", "audio_fill": "audio frames"}
    yield some("fill", "Fill", "of what rows have room for", fills, "percent")
    yield one("wait", "Waiting for data", "of the steps’ time", "waiting", "data_wait_fraction", form="percent")
    yield one("step", "A step", "seconds", "step", "step_seconds")
    yield one("mfu", "MFU", "of the devices’ peak", "MFU", "mfu", form="percent")
    yield one("memory", "Peak memory", "of a device", "memory", "peak_memory_bytes", form="bytes")
    cost = _each(runs, "waiting" if len(runs) == 1 else "", "stragglers", "cost")
    yield Chart("straggler", "Waiting for the slowest process", "of a step", cost, "percent", from_0=True)


def _shares(runs: Sequence[RunData]) -> Iterator[Chart]:
    got = _by_name(runs, ["balance", "sources"], ["tokens"])
    asked = _by_name(runs, ["balance", "sources"], ["asked"], dashed=True) if len(runs) == 1 else []
    yield Chart("shares", "Tokens by source", "share of them", _several(got) and got + asked, "percent", from_0=True)


def _attention(runs: Sequence[RunData]) -> Chart:
    """Of one run where attention goes, by class; of several, how much goes to media."""
    if len(runs) > 1:
        seeing = [run for run, of in enumerate(runs) if set(MEDIA) & set(classes_of(of))]
        curves = [curve for run in seeing for curve in _curve(runs, run, "", _mean_mass(*MEDIA))]
        return Chart("attention", "Onto media", "mean over layers and heads", curves, "percent", from_0=True)
    curves = [
        curve
        for one in classes_of(runs[0])
        for curve in _curve(runs, 0, CLASSES[one], _mean_mass(one), key=one)
    ]  # fmt: skip
    return Chart("attention", "Over the steps", "mean over layers and heads", curves, "percent", from_0=True)


def _mean_mass(*classes: str) -> Read:
    """The mean over layers and heads of what goes to these classes together; 0 where a look has none of them."""

    def read(line: Step) -> float | None:
        if not at(line, "attention", "mass"):
            return None
        tables = [table for one in classes if isinstance(table := at(line, "attention", "mass", one), list)]
        means = [[cell for row in table for cell in row] for table in tables if all(isinstance(r, list) for r in table)]
        means = [cells for cells in means if cells and all(isinstance(cell, int | float) for cell in cells)]
        return max(0.0, sum(sum(cells) / len(cells) for cells in means))

    return read
