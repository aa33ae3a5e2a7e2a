"""A LLaMA-Factory folder of films, recordings and pictures, written by PyAV, soundfile and Pillow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import films
import sounds
from conftest import picture

BAD = 5  # the document whose film is cut off in its middle


def write_clips(folder: Path, kinds: Sequence[str] = ("video", "audio", "image")) -> Path:
    """Documents with films, recordings and pictures of the kinds; each has some of them, and the first all."""
    records = []
    for i in range(9):
        own = [kind for n, kind in enumerate(kinds) if i == 0 or i % len(kinds) == n or i % 2]
        said, record = "", dict[str, Any]()
        if "video" in own:
            data = films.made(n=20 + 11 * i, size=(32, 48), rate=(30, 24, 10)[i % 3])
            (folder / f"{i}.mp4").write_bytes(data if i != BAD else data[: len(data) * 2 // 3])
            record["videos"], said = [f"{i}.mp4"], f"{said}<video>"
        if "audio" in own:
            music = sounds.written(sounds.music(0.3 + 0.4 * i, 16000), 16000, format="WAV")
            (folder / f"{i}.wav").write_bytes(music)
            record["audios"], said = [f"{i}.wav"], f"{said}Hear:<audio>"
        if "image" in own:
            (folder / f"{i}.png").write_bytes(picture(20 + i, 30, seed=i).data)
            record["images"], said = [f"{i}.png"], f"{said}<image>"
        turns = [{"role": "user", "content": f"{said}What?"}, {"role": "assistant", "content": f"number {i}"}]
        records.append(record | {"messages": turns})
    (folder / "clips.json").write_text(json.dumps(records))
    columns = {name: name for name in ("messages", "images", "videos", "audios")}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"clips": {"file_name": "clips.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder / "dataset_info.json"
