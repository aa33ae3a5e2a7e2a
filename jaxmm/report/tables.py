"""The figures of a page as HTML: how full rows are, what each source and each modality has, and what was cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

import numpy as np

from jaxmm.data.media.table import MEDIA, noun
from jaxmm.data.packing.limits import PAIRS
from jaxmm.report.charts import Histogram
from jaxmm.report.content import Report
from jaxmm.report.words import duration, hue, plural

CLIPS = ("video", "audio")


def clips(report: Report) -> list[str]:
    """Which media with a length these batches hold."""
    return [name for name in CLIPS if report.tally.clip_total(name).clips]


def clip_counts(report: Report) -> list[str]:
    """``3 videos``, and so on."""
    counts = {name: report.tally.clip_total(name).clips for name in clips(report)}
    return [plural(count, noun(name)) for name, count in counts.items()]


def budgets(report: Report) -> Iterator[str]:
    side, group = report.image.patch_size, report.image.merge**2
    video, audio = report.image.video, report.image.audio
    films = f", in {plural(video.frames, 'frame')}" if video else ""
    told = {
        "tokens": ("Tokens", "text and soft tokens; <code>seq_len</code>"),
        "patches": ("Patches", f"of {side} × {side} pixels{films}; {group} make a soft token"),
        "items": ("Images", "and temporal patches of videos, at most" if video else "at most in a row"),
        "targets": ("Targets", "tokens the loss predicts"),
        PAIRS: ("Pairs", "two answers each, at most in a row"),
        "features": ("Features", f"ready-made vectors; {group} make a soft token"),
        "audio_features": ("Audio features", "ready-made vectors of recordings, each a soft token"),
    }
    if audio:
        told["audio"] = (
            "Log-mel frames", f"of {1000 * audio.hop / audio.rate:g} ms; {audio.chunk} make up to "
            f"{plural(audio.chunk_tokens, 'soft token')}",
        )  # fmt: skip
    for key, budget in report.tally.budgets._asdict().items():
        if not budget:
            continue  # no source has any
        name, note = told.get(key, (escape(key.capitalize()), "at most in a row"))
        column = report.tally.used_of(key)
        full = float(column.mean()) / budget
        yield (
            f'<div class="tile"><dt>{name} a row</dt><dd><b>{budget:,}</b>'
            f'<span class="meter" aria-hidden="true"><i style="width:{100 * full:.4g}%"></i></span>'
            f"<span>{full:.1%} full <small>{column.min():,} to {column.max():,}</small></span>"
            f"<small>{note}</small></dd></div>"
        )


def shares(report: Report) -> Iterator[str]:
    tokens = max(report.tally.total.tokens, 1)
    for i, (source, sums) in enumerate(zip(report.sources, report.tally.sources, strict=True)):
        share = sums.tokens / tokens
        passes = report.tally.epochs[i]
        yield (
            f'<tr><th scope="row"><i class="key shade0" style="--h:{hue(i)}"></i>{escape(source.name)}</th>'
            f"<td>{source.asked:.1%}</td><td>{share:.1%}</td>"
            f'<td class="bar"><span class="share" style="--h:{hue(i)}" aria-hidden="true">'
            f'<i style="width:{100 * share:.4g}%"></i><b style="--at:{100 * source.asked:.4g}%"></b></span></td>'
            f"<td>{source.documents:,}</td><td>{passes or '–'}</td><td>{sums.documents:,}</td>"
            f"<td>{sums.text:,}</td><td>{sums.soft:,}</td><td>{sums.targets:,}</td><td>{sums.images:,}</td>"
            f"<td>{sums.patches:,}</td></tr>"
        )


def modalities(report: Report) -> str:
    """One bar of all text positions, by what stands there."""
    total, positions = report.tally.total, len(report.tally.used) * report.tally.budgets.tokens
    soft = {name: report.tally.clip_total(name).soft for name in clips(report)}
    kinds = {
        "learnt": ("text, learnt", total.targets),
        "read": ("text, only read", total.text - total.targets),
        "soft": ("images (soft tokens)", total.soft - sum(soft.values())),
        **{f"soft {name}": (f"{MEDIA[name].plural} (soft tokens)", count) for name, count in soft.items()},
        "empty": ("padding", positions - total.tokens),
    }
    bar = "".join(f'<i class="{name}" style="width:{100 * n / positions:.4g}%"></i>' for name, (_, n) in kinds.items())
    items = "".join(
        f'<li><i class="key {name}"></i>{label} <b>{n / positions:.1%}</b> <small>{n:,}</small></li>'
        for name, (label, n) in kinds.items()
    )
    return f'<div class="modalities" aria-hidden="true">{bar}</div><ul class="legend">{items}</ul>'


def clip_table(report: Report) -> str:
    """What each source has of each modality, where these batches hold more than text and images."""
    if not clips(report):
        return ""
    rows = []
    for i, (source, sums) in enumerate(zip(report.sources, report.tally.sources, strict=True)):
        own = report.tally.clips[i]
        images = sums.soft - sum(each.soft for each in own.values())
        cells = [("images", sums.images, images, "–", "–", "–")] if images else []
        cells += [
            (MEDIA[name].plural, each.clips, each.soft, f"{each.frames:,}", duration(each.seconds),
             f"{each.soft / max(each.seconds, 1e-9):,.1f}")
            for name, each in own.items()
        ]  # fmt: skip
        for name, count, soft, *of_time in cells:
            key = f'<i class="key shade0" style="--h:{hue(i)}"></i>{escape(source.name)}'
            cells_of_time = "".join(f"<td>{cell}</td>" for cell in of_time)
            rows.append(
                f'<tr><th scope="row">{key}</th><td>{name}</td><td>{count:,}</td><td>{soft:,}</td>'
                f"<td>{soft / max(sums.tokens, 1):.1%}</td>{cells_of_time}</tr>"
            )
    head = ("source", "of", "here", "soft tokens", "of its tokens", "frames", "length", "soft tokens a second")
    return (
        '<h3 id="clips-title">By modality</h3><p class="note">Frames are those that the model gets: sampled from '
        "videos, log-mel ones of recordings. Time stamps in videos are text.</p>"
        '<div class="wide" role="region" aria-labelledby="clips-title" tabindex="0"><table class="modality"><thead><tr>'
        + "".join(f'<th scope="col">{name}</th>' for name in head)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def charts(report: Report) -> Iterator[Histogram]:
    tally, budgets = report.tally, report.tally.budgets
    longest = int(tally.lengths.max(initial=1))
    yield Histogram.of("Documents by length", "tokens", tally.lengths, 0, longest)
    yield Histogram.of("Rows by token fill", "part of the budget", tally.used_of("tokens") / budgets.tokens, 0, 1, 20)
    yield Histogram.of("Rows by patch fill", "part of the budget", tally.used_of("patches") / budgets.patches, 0, 1, 20)
    if audio := budgets.get("audio"):
        frames = tally.used_of("audio")
        yield Histogram.of("Rows by audio fill", "part of the budget", frames / audio, 0, 1, 20)
    if tally.used_of("items").any():
        images = tally.used_of("items")
        unit = "images and temporal patches" if "video" in clips(report) else "images"
        yield Histogram.of("Rows by images", unit, images, 0, int(images.max()))
    for name, seconds in sorted(tally.seconds.items(), reverse=True):
        title = f"{MEDIA[name].plural.capitalize()} by length"
        yield Histogram.of(title, "seconds", np.array(seconds), 0, max(seconds))


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {escape(name)}" for name, count in counts if count)


def left_out(report: Report) -> Iterator[str]:
    """What was cut, left out, or became padding, a line each."""
    fates = {"split": "cut into parts that fit", "truncate": "cut to their first part", "drop": "left out"}
    setting = f"(<code>data.long_documents={escape(report.long_documents)}</code>)"
    nouns = {"": "document", "pairs": "pair", "judged": "judged answer"}
    for source in report.sources:
        over = source.over["any"]
        name = f"<b>{escape(source.name)}</b>"
        if over:
            why = _counts((f"by {budget}", count) for budget, count in source.over.items() if budget != "any")
            fate = f"{fates[report.long_documents]} {setting}"
            if source.preferences:
                fate = "left out whole, as both answers must stand in one row"
            documents = plural(over, nouns[source.preferences])
            yield f"{name}: {documents} of {source.documents:,} over a row’s budgets ({why}): {fate}."
        if source.columns:
            told = "; ".join(
                f"<code>{escape(n)}</code> ({count:,}) {escape(what)}" for n, count, what in source.columns
            )
            yield f"{name}: columns of its records: {told}."
        for line in source.cut_short:
            yield f"{name}: {escape(line)}."
        if source.left_out:
            yield (
                f"{name}: {plural(sum(source.left_out.values()), 'document')} left out when prepared "
                f"({_counts(source.left_out.items())})."
            )
    parts = report.tally.parts
    if parts:
        yield f"These batches hold {plural(parts.total(), 'part')} of {plural(len(parts), 'long document')}."
    for skipped in report.tally.skipped:
        lost = f"its {noun(skipped.medium)} is {escape(skipped.reason)}"
        yield f"<code>{escape(skipped.origin)}</code> became padding: {lost}."
    if not (parts or report.tally.skipped or any(s.over["any"] or s.left_out or s.cut_short for s in report.sources)):
        yield "Nothing: every document stands whole in a row."
