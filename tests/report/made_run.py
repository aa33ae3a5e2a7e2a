"""The folder of a run that nobody has trained: a log, samples with maps, time and all that a page shows."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmm.atomic import read_json, read_lines
from jaxmm.config.file import load_file
from jaxmm.report.embedding import jpeg, png
from jaxmm.report.run_data import RunData, read_run

LAYERS, HEADS = 4, 4
CLASSES = ("image", "separators", "first", "turn", "earlier")
ATTACK = "<script>alert(1)</script></script><img src=x onerror=\"document.title='owned'\">"
ROWS, COLUMNS, LIT = 3, 4, 6  # of soft tokens, and the one that is looked at
LOOKING = ((1, 2), (2, 0), (2, 3))  # heads that learn to look at media


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def attention(rng: np.random.Generator, part: float, classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    """What the monitor logs when a ``part`` of the training is done."""
    weight = rng.uniform(0.5, 1.5, (len(classes), LAYERS, HEADS))
    for i, name in enumerate(classes):
        if name == "first":
            weight[i] *= 4 * np.linspace(0.2, 1.4, LAYERS)[:, None]
        if name in ("image", "video", "audio"):
            weight[i] *= 0.4
            for layer, head in LOOKING:
                weight[i, layer, head] *= 1 + 40 * part
        if name == "turn":
            weight[i] *= np.linspace(3, 1, LAYERS)[:, None]
    mass = weight / weight.sum(0)
    entropy = rng.uniform(0.4, 2.8, (LAYERS, HEADS))
    of = {name: mass[i].tolist() for i, name in enumerate(classes)}
    means = {name: float(np.mean(table)) for name, table in of.items()} | {"entropy": float(entropy.mean())}
    return {
        "queries": 812, "layers": LAYERS, "heads": HEADS, "classes": list(classes), "mean": means, "mass": of,
        "entropy": entropy.tolist(),
        "sources": {
            name: {"queries": 400, "mass": {key: np.mean(row, 1).tolist() for key, row in of.items()},
                   "entropy": entropy.mean(1).tolist()} for name in ("pages", "chats")
        },
        "media": {"image": {"queries": 600, "mass": (mass[0] ** 0.8).tolist()}} if "image" in classes else {},
    }  # fmt: skip


def sample(
    pixels: np.ndarray, tokens: Sequence[str], maps_MTS: np.ndarray, *, question: str, truth: str, kind: str = "image",
    grid: Sequence[int] | None = None, chosen: Sequence[Sequence[int]] = (), is_photo: bool = False, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A held-out sample.

    Args:
      maps_MTS: attention of each token onto each soft token: the mean first, then that of each chosen head.
    """
    scale = [max(float(one.max()), 1e-9) for one in maps_MTS]
    coded = np.stack([np.sqrt(one / top) * 255 for one, top in zip(maps_MTS, scale, strict=True)]).round()
    soft = maps_MTS.shape[2]
    onto = maps_MTS[0].sum(1)
    rest = {"separators": 0.1, "first": 0.5, "turn": 0.3, "earlier": 0.1}
    height, width = pixels.shape[:2]
    medium = {
        "kind": kind, "src": (jpeg if is_photo else png)(pixels), "width": width, "height": height, "frames": 1,
        "across": 1, "seconds": None, "grid": list(grid or (1, height // 16, width // 16)), "first": 0,
    }  # fmt: skip
    mass = {kind: onto.tolist(), **{name: ((1 - onto) * part).tolist() for name, part in rest.items()}}
    return {
        "question": question, "answer": "".join(tokens), "truth": truth, "tokens": list(tokens),
        "media": [medium | more], "soft": soft, "mass": mass,
        "maps": {"scale": scale, "data": base64.b64encode(coded.astype(np.uint8).tobytes()).decode()},
        "chosen": [list(one) for one in chosen],
    }  # fmt: skip


def looked(head: int = 2) -> dict[str, Any]:
    """A sample whose mean map lights one cell alone, LIT; that of one head of layer 1 lights the last cell."""
    maps = np.zeros((2, 2, ROWS * COLUMNS))
    maps[0, :, LIT], maps[1, :, -1] = 0.8, 0.5
    pixels = np.full((ROWS * 16, COLUMNS * 16, 3), 120, np.uint8)
    return sample(pixels, ["re", ATTACK], maps, question=ATTACK, truth="red", chosen=[(1, head)])


def looked_at_two() -> dict[str, Any]:
    """A sample of two pictures: LIT in the first, the last cell in the second, and a little beside the first."""
    maps = np.zeros((2, 2, 2 * ROWS * COLUMNS))
    maps[0, :, [LIT, LIT + 1, -1]] = np.array([0.2, 0.1, 0.5])[:, None]
    pixels = np.full((ROWS * 16, COLUMNS * 16, 3), 120, np.uint8)
    told = sample(pixels, ["re", "d"], maps, question="Which?", truth="red", chosen=[(1, 2)])
    told["media"].append(told["media"][0] | {"first": ROWS * COLUMNS})
    return told


def norms(**parts: float) -> dict[str, float]:
    """Gradient norms by part, and that of all together."""
    return {"all": math.hypot(*parts.values()), "connector": 0.0, "decoder": 0.0, "vision": 0.0} | parts


def log(steps: int, every: int, seed: int = 0, evaluations: int = 2, monitored: int = 8) -> list[dict[str, Any]]:
    """A healthy log: the loss falls, answers get right, media are worth more and more."""
    rng = np.random.default_rng(seed)
    lines, count = [], steps // every
    for n in range(1, count + 1):
        step, part = n * every, n / count
        loss = 0.2 + 6 * math.exp(-9 * part) + 0.04 * float(rng.standard_normal()) * (1 + 3 * (1 - part))
        rate = 4e-3 * min(1, part / 0.07) * (0.02 + 0.98 * (1 + math.cos(math.pi * part)) / 2)
        chats = 0.7 + 0.02 * float(rng.standard_normal())
        line: dict[str, Any] = {
            "step": step, "loss": loss, "target_accuracy": 1 - 0.8 * math.exp(-5 * part) - 0.05, "learning_rate": rate,
            "grad_norm": 1.2 + 8 * math.exp(-12 * part) + abs(float(rng.standard_normal())) * 0.2,
            "grad_norm_by_part": {"connector": 0.2 + math.exp(-8 * part), "decoder": 1 + 7 * math.exp(-12 * part),
                                  "vision": 0.15 + 2 * math.exp(-9 * part)},
            "bad_steps": 0, "sources": {"pages": {"loss": loss * 1.3, "targets": 2500.0},
                                        "chats": {"loss": loss * 0.85, "targets": 6500.0}},
            "examples_seen": 64 * step, "examples_skipped": 2,
            "tokens_per_second": 9000 + 300 * float(rng.standard_normal()),
            "images_per_second": 150 + 5 * float(rng.standard_normal()),
            "token_fill": 0.983 + 0.004 * float(rng.standard_normal()), "patch_fill": 0.83, "mfu": None,
            "data_wait_fraction": 0.006 + 0.003 * float(rng.random()), "step_seconds": 0.45,
            "peak_memory_bytes": 1186926592 + 1000 * n,
            "balance": {
                "sources": {
                    "pages": {"asked": 0.3, "tokens": 1 - chats, "targets": 0.38, "loss": 0.45, "gradient": 0.5},
                    "chats": {"asked": 0.7, "tokens": chats, "targets": 0.62, "loss": 0.55, "gradient": 0.5},
                },
                "modalities": {"text": {"tokens": 0.28, "targets": 0.35, "loss": 0.4, "gradient": 0.35},
                               "image": {"tokens": 0.72, "targets": 0.65, "loss": 0.6, "gradient": 0.65}},
            },
            "goodput": {"starting": 6.2, "compiling": 16.0, "data": 0.5 + 0.002 * step, "stepping": 0.45 * step,
                        "evaluating": 12 * part, "saving": 1.1 * part, "lost": 9.5, "down": 31.0},
        }  # fmt: skip
        if n % max(1, count // monitored) == 0 or n == count:
            line["attention"] = attention(rng, part)
            chats_too = norms(decoder=0.8, vision=0.6)
            line["gradients"] = {
                "sources": {"pages": norms(decoder=1.1, vision=0.3), "chats": chats_too},
                "modalities": {"text": norms(decoder=0.6), "image": norms(decoder=1.1, vision=0.3)},
            }
            line["losses"] = {"sources": {"pages": loss * 1.3, "chats": loss * 0.85},
                              "modalities": {"text": loss * 1.2, "image": loss * 0.9}}  # fmt: skip
        else:
            for groups in line["balance"].values():
                for entry in groups.values():
                    entry.pop("gradient")
            for entry in line["balance"]["modalities"].values():
                entry.pop("loss")  # both are of the batches that are looked at
        if n % max(1, count // evaluations) == 0 or n == count:
            gain = 3.2 * part**2
            line["eval"] = {"held_out": {
                "loss": loss + 0.05, "answer_accuracy": 0.05 + 0.9 * part**2, "answers": 600,
                "modalities": {"text": {"loss": loss + 0.4, "targets": 900.0},
                               "image": {"loss": loss - 0.02, "targets": 4100.0}},
                "media_gain": {"image": gain},
                "blind": {"image": {"loss": loss + 0.05 + gain, "standard_error": 0.02, "answer_accuracy": 0.12,
                                    "answers": 590, "documents": 590, "left_out": 10}},
                "answer_accuracy_by_kind": {"colour": 0.97 * part, "shape": 0.91 * part},
            }}  # fmt: skip
        lines.append(line)
    return lines


def write_run(
    folder: Path, steps: int = 560, every: int = 15, seed: int = 0, samples: Sequence[dict[str, Any]] = (),
    is_finished: bool = True, **config: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Writes a run into a folder; returns its log."""
    folder.mkdir(parents=True, exist_ok=True)
    base = load_file("base").to_dict() | {"steps": steps} | config
    (folder / "config.json").write_text(json.dumps(base))
    lines = log(steps, every, seed)
    write_lines(folder / "metrics.jsonl", lines)
    machine = {
        "config": "base", "steps": steps, "versions": {"jaxmm": "0.2.0", "jax": "0.10.2"}, "device": "NVIDIA H200",
        "devices": 8, "processes": 2, "mesh": {"data": 8}, "dtype": "bfloat16", "attention": "fused",
        "parameters": 1270000, "host": "node-3",
    }  # fmt: skip
    (folder / "machine.json").write_text(json.dumps(machine))
    write_lines(folder / "skipped.jsonl", [
        {"file": f"pictures/{i}.png", "record": i, "reason": "broken" if i % 3 else "too large"} for i in range(7)
    ])  # fmt: skip
    write_lines(folder / "slow_steps.jsonl", [
        {"step": 120, "seconds": 2.9, "median": 0.45, "batch": 119, "rows": [["pages:12"], ["chats:4", "chats:19"]]},
        {"step": 410, "seconds": 1.6, "median": 0.45, "batch": 409, "rows": [["chats:81"]]},
    ])  # fmt: skip
    write_lines(folder / "timeline.jsonl", [
        {"event": "start", "format": 1, "time": 1000.0, "step": 0},
        {"event": "beat", "time": 1100.0, "step": 180, "seconds": {"starting": 6.2, "stepping": 93.8}},
        {"event": "start", "format": 1, "time": 1131.0, "step": 160},
        {"event": "end", "time": 1330.0, "step": steps, "seconds": {"data": 4.0, "stepping": 190.0}, "why": "done"},
    ])  # fmt: skip
    if is_finished:
        last = lines[-1]
        kept = ("loss", "eval", "tokens_per_second", "images_per_second", "token_fill", "patch_fill",
                "data_wait_fraction", "mfu", "examples_seen", "examples_skipped", "peak_memory_bytes")  # fmt: skip
        summary = {"steps": steps, **{key: last[key] for key in kept}}
        summary |= {"first_step_seconds": 8.7, "wall_seconds": 299.0, "attention": "fused", "cut_short": {}}
        summary |= {"videos_per_second": None, "recordings_per_second": None, "audio_fill": None}
        summary["media_gain"] = {"held_out": last["eval"]["held_out"]["media_gain"]}
        summary["goodput"] = {"seconds": last["goodput"], "fraction": 0.9, "total_seconds": 330.0, "starts": 2}
        (folder / "summary.json").write_text(json.dumps(summary))
        last["step"] = steps
        write_lines(folder / "metrics.jsonl", lines)
    if samples:
        (folder / "samples").mkdir(exist_ok=True)
        held_out = {"step": steps, "source": "held_out", "layers": LAYERS, "heads": HEADS, "samples": list(samples)}
        (folder / "samples" / "held_out.json").write_text(json.dumps(held_out))
    return lines


def long_run(folder: Path) -> RunData:
    """A run of 10,000 lines that has not ended."""
    write_run(folder, steps=100_000, every=10, is_finished=False, seed=1)
    return read_run(folder)


def leave_text_alone(folder: Path) -> None:
    """Makes the run in a folder one of text alone, which has a tower that does nothing, as its log would be."""
    lines = read_lines(folder / "metrics.jsonl")
    for line in lines:
        line |= {"images_per_second": 0.0, "patch_fill": 0.0}
        line["grad_norm_by_part"] |= {"connector": 0.0, "vision": 0.0}
        of_text = line["balance"]["modalities"]["text"]
        line["balance"]["modalities"] = {"text": dict.fromkeys(of_text, 1.0)}
        for name in ("gradients", "losses"):
            line.get(name, {"modalities": {}})["modalities"].pop("image", None)
        for figures in line.get("eval", {}).values():
            for name in ("media_gain", "blind"):
                del figures[name]
            del figures["modalities"]["image"]
        if "attention" in line:
            line["attention"] = attention(np.random.default_rng(0), 0.5, ("separators", "first", "turn", "earlier"))
            for name, none in (("separators", 0.0), ("earlier", -0.0)):
                line["attention"]["mass"][name] = [[none] * HEADS] * LAYERS
    write_lines(folder / "metrics.jsonl", lines)
    summary = read_json(folder / "summary.json")
    summary |= {"images_per_second": 0.0, "patch_fill": 0.0, "media_gain": {}, "eval": lines[-1]["eval"]}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "skipped.jsonl").unlink()
