"""The one table of a log line's figures as Prometheus' gauges: name, labels, and what each is.

docs/monitoring.md has it too, word for word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PREFIX = "jaxmm_"
OTHER = "other"


class Gauge(NamedTuple):
    """A row of the table.

    Attributes:
      figure: its path in a line of metrics.jsonl; ``{label}`` stands for any name there, or for the place in a list.
      name: of the gauge, behind PREFIX; with its unit, but for those that have none.
      help: what it is.
    """

    figure: str
    name: str
    help: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(part[1:-1] for part in self.figure.split("/") if part.startswith("{"))

    def values(self, path: tuple[str, ...]) -> tuple[str, ...] | None:
        """The labels' values of a figure's path; None where it is not of this row."""
        parts = self.figure.split("/")
        if len(parts) != len(path) or any(a != b for a, b in zip(parts, path, strict=True) if a[0] != "{"):
            return None
        return tuple(b for a, b in zip(parts, path, strict=True) if a[0] == "{")


# The first row that a figure is of counts. "window": the steps since the line of the log before.
GAUGES = (
    Gauge("step", "step", "the newest step that was logged"),
    Gauge("steps", "steps", "steps that the whole run has"),
    Gauge("time", "logged_timestamp_seconds", "when the newest line of the log was written; an old one: the run hangs"),
    Gauge("loss", "loss", "mean loss of a target in the window, in nats; with preferences of a pair"),
    Gauge("target_accuracy", "target_accuracy_ratio", "targets of the window that were the likeliest token"),
    Gauge("preference_accuracy", "preference_accuracy_ratio", "pairs of the window that were judged as the data does"),
    Gauge("learning_rate", "learning_rate", "of the newest step"),
    Gauge("grad_norm", "grad_norm", "of all gradients of the newest step"),
    Gauge("grad_norm_by_part/{part}", "part_grad_norm", "of the gradients of a part of the model"),
    Gauge("bad_steps", "bad_steps", "steps in a row, the newest last, whose loss or gradient was not finite"),
    Gauge("sources/{source}/loss", "source_loss", "mean loss of a source's targets in the window"),
    Gauge("sources/{source}/targets", "source_targets", "targets of a source in the window, by weight"),
    Gauge("modalities/{modality}/loss", "modality_loss", "mean loss of text and of discrete image tokens"),
    Gauge("modalities/{modality}/targets", "modality_targets", "targets of these in the window, by weight"),
    Gauge("preferences/{source}/pairs", "source_pairs", "pairs or judged answers of a source in the window"),
    Gauge("preferences/{source}/accuracy", "source_preference_accuracy_ratio", "of these judged as the data does"),
    Gauge("preferences/{source}/chosen_reward", "source_chosen_reward", "mean of the answers that are wanted"),
    Gauge("preferences/{source}/rejected_reward", "source_rejected_reward", "mean of the others"),
    Gauge("preferences/{source}/margin", "source_reward_margin", "what the first is above the second"),
    Gauge("preferences/{source}/chosen_nll", "source_chosen_nll", "loss of a target of wanted answers, in nats"),
    Gauge("preferences/{source}/kl", "source_kl_nats", "how far the model has gone from its reference, by KTO"),
    Gauge("balance/sources/{source}/{of}", "source_share_ratio", "its share: asked, of tokens, targets, loss"),
    Gauge("balance/modalities/{modality}/{of}", "modality_share_ratio", "the share of documents with these media"),
    Gauge("expert_load/most", "expert_load_most", "choices of the busiest expert over the mean of its layer"),
    Gauge("expert_load/least", "expert_load_least", "choices of the idlest expert over the mean of its layer"),
    Gauge("expert_load/layers/{layer}", "layer_expert_load_most", "the busiest expert's, of a layer"),
    Gauge("expert_load/experts/{expert}", "expert_load", "choices of an expert over the mean, all layers together"),
    Gauge("examples_seen", "examples_seen", "documents so far; a run that goes on after a kill does some again"),
    Gauge("examples_skipped", "examples_skipped", "documents that could not be used so far"),
    Gauge("tokens_per_second", "tokens_per_second", "positions that are not padding, soft tokens included"),
    Gauge("images_per_second", "images_per_second", "images and ready-made features"),
    Gauge("videos_per_second", "videos_per_second", "films, of a run that has such"),
    Gauge("recordings_per_second", "recordings_per_second", "recordings, of a run that has such"),
    Gauge("token_fill", "token_fill_ratio", "positions that are not padding"),
    Gauge("patch_fill", "patch_fill_ratio", "patches that are not padding"),
    Gauge("audio_fill", "audio_fill_ratio", "log-mel frames that are not padding"),
    Gauge("data_wait_fraction", "data_wait_ratio", "time of the window in which the first process waited for a batch"),
    Gauge("mfu", "mfu_ratio", "model FLOPs a second over the peak of all devices"),
    Gauge("step_seconds", "step_seconds", "mean of the window, without evaluating and saving"),
    Gauge("stragglers/process", "straggler_process", "number of the process that the others wait for"),
    Gauge("stragglers/cost", "straggler_cost_ratio", "part of the window that the others lost to it"),
    Gauge("stragglers/seconds/{of}/{process}", "process_seconds", "of a process in the window: data, barrier, step"),
    Gauge("peak_memory_bytes", "peak_memory_bytes", "of the first process's fullest device; on CPUs of the process"),
    Gauge("goodput/{kind}", "goodput_seconds", "of the run's whole life so far, by what they went to"),
    Gauge("attention/mean/entropy", "attention_entropy_nats", "mean over all layers and heads, at the newest look"),
    Gauge("attention/mean/{class}", "attention_ratio", "attention to a class of positions, all heads"),
    Gauge("attention/queries", "attention_queries", "target positions that were looked at"),
    Gauge("gradients/sources/{source}/{part}", "source_grad_norm", "of the newest evaluation's batch, by source"),
    Gauge("gradients/modalities/{modality}/{part}", "modality_grad_norm", "the same by media that documents have"),
    Gauge("losses/sources/{source}", "source_batch_loss", "mean loss of that batch, by source"),
    Gauge("losses/modalities/{modality}", "modality_batch_loss", "the same by media that documents have"),
    Gauge("eval/{source}/loss", "eval_loss", "held out: mean loss of a target, or of a pair"),
    Gauge("eval/{source}/media_gain/{modality}", "eval_media_gain_nats", "held out: what media are worth, a target"),
    Gauge("eval/{source}/blind/{modality}/standard_error", "eval_media_gain_error_nats", "standard error of it"),
    Gauge("eval/{source}/modalities/{modality}/loss", "eval_modality_loss", "held out: by media of documents"),
    Gauge("eval/{source}/modalities/{modality}/targets", "eval_modality_targets", "held out: targets, by weight"),
    Gauge("eval/{source}/answer_accuracy_by_kind/{kind}", "eval_kind_accuracy_ratio", "answers right, by label"),
    Gauge("eval/{source}/answer_accuracy", "eval_answer_accuracy_ratio", "held out: answers right"),
    Gauge("eval/{source}/answer_accuracy_blind", "eval_answer_accuracy_blind_ratio", "with other examples' media"),
    Gauge("eval/{source}/answer_accuracy_reversed", "eval_answer_accuracy_reversed_ratio", "with clips backwards"),
    Gauge("eval/{source}/unseen_pair_accuracy", "eval_unseen_pair_accuracy_ratio", "held out: of what no document had"),
    Gauge("eval/{source}/answers", "eval_answers", "held out: answers that were judged"),
    Gauge("eval/{source}/blind/{modality}/loss", "eval_blind_loss", "held out, with other examples' media: loss"),
    Gauge("eval/{source}/blind/{modality}/answer_accuracy", "eval_blind_answer_accuracy_ratio", "answers right"),
    Gauge("eval/{source}/blind/{modality}/answers", "eval_blind_answers", "answers that were judged so"),
    Gauge("eval/{source}/blind/{modality}/documents", "eval_blind_documents", "documents that were compared"),
    Gauge("eval/{source}/blind/{modality}/left_out", "eval_blind_left_out", "documents that could not be compared"),
    Gauge("eval/{source}/pairs", "eval_pairs", "held out: pairs or judged answers"),
    Gauge("eval/{source}/pairs_skipped", "eval_pairs_skipped", "held out: of these, that could not be used"),
    Gauge("eval/{source}/preference_accuracy", "eval_preference_accuracy_ratio", "held out: judged as the data does"),
    Gauge("eval/{source}/preference_accuracy_blind/{modality}", "eval_preference_accuracy_blind_ratio",
          "the same with other examples' media"),
    Gauge("eval/{source}/reference_accuracy", "eval_reference_accuracy_ratio", "held out: judged so by the reference"),
    Gauge("eval/{source}/chosen_reward", "eval_chosen_reward", "held out: mean of the answers that are wanted"),
    Gauge("eval/{source}/rejected_reward", "eval_rejected_reward", "held out: mean of the others"),
    Gauge("eval/{source}/margin", "eval_reward_margin", "held out: what the first is above the second"),
    Gauge("eval/{source}/chosen_nll", "eval_chosen_nll", "held out: loss of a target of wanted answers, in nats"),
    Gauge("eval/{source}/kl", "eval_kl_nats", "held out: how far the model has gone from its reference, by KTO"),
)  # fmt: skip

# By layer, head and source: too many series for a database. report.html has them.
LEFT_OUT = tuple(("attention", name) for name in ("layers", "heads", "classes", "mass", "entropy", "sources", "media"))


class Sample(NamedTuple):
    """A gauge with values of its labels."""

    gauge: Gauge
    labels: tuple[str, ...]
    value: float


_OTHER = Gauge("{figure}", OTHER, "any figure that has no row here, by its path in metrics.jsonl")


def samples(figures: Mapping[str, Any]) -> Iterator[Sample]:
    """The numbers of a line's nested figures; one that no row has comes as ``jaxmm_other`` with its path."""
    for path, value in _numbers(figures):
        if path[:2] in LEFT_OUT:
            continue
        for gauge in GAUGES:
            labels = gauge.values(path)
            if labels is not None:
                yield Sample(gauge, labels, value)
                break
        else:
            yield Sample(_OTHER, ("/".join(path),), value)


def table() -> str:
    """GAUGES as Markdown."""
    rows = ["| figure | gauge | what it is |", "|---|---|---|"]
    for gauge in (*GAUGES, _OTHER):
        labels = "{" + ", ".join(gauge.labels) + "}" if gauge.labels else ""
        figure = "" if gauge is _OTHER else f"`{gauge.figure}`"
        rows.append(f"| {figure} | `{PREFIX}{gauge.name}{labels}` | {gauge.help} |")
    return "\n".join(rows)


def _numbers(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """The numbers of nested mappings and lists, by their paths."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _numbers(one, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from _numbers(one, (*path, str(i)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)
