"""How data is read: the keys of ``config.data`` that readers know, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxmm.data.documents import AUDIO_PLACEHOLDER, PLACEHOLDER, VIDEO_PLACEHOLDER
from jaxmm.data.text.boxes import KINDS, check
from jaxmm.errors import UserError, nearest
from jaxmm.image_spec import ImageSpec

# The names in ``config.data.columns``; each is given the column that holds it.
MEDIA = {"images": "image", "videos": "video", "audios": "audio"}  # two names of one thing
COLUMNS = (
    "image", "images", "video", "videos", "audio", "audios", "messages", "text", "prompt", "query", "response",
    "history", "system", "tools", "chosen", "rejected", "label",
)  # fmt: skip
ON_ERROR = ("stop", "skip")
PREFERENCES = ("", "pairs", "judged")
# The names in ``config.data.columns`` that one kind of preferences has alone.
OF_PREFERENCES = {"chosen": "pairs", "rejected": "pairs", "label": "judged"}
OBJECTIVES = {  # of ``config.objective``, for messages; ``jaxmm prepare`` knows the data alone
    "pairs": "config.objective=dpo (or ipo, simpo, orpo; --preferences=pairs of jaxmm prepare)",
    "judged": "config.objective=kto (--preferences=judged of jaxmm prepare)",
}
BARE = ("stop", "text")
MAX_SKIPPED = 0.05  # fraction of a source's documents; a single skipped one never stops the run


@dataclass(frozen=True)
class Reading:
    """Attributes, each the key of ``config.data`` of its name:

    media_dir: the folder that paths of media are relative to; '' is the folder of the dataset_info.json or of the data.
    follow_outside: whether a path in a record may lead out of the data's folder and ``media_dir``.
    columns: "image=img,prompt=question": which column holds what, for records in no known format.
    split: which split to read, where names of files or folders tell it; '' is train, or held-out for an evaluation.
    val_size: the fraction of a source's examples that is kept from training, chosen by a hash of each.
    allow_urls: whether pictures and clips that records name by URL are fetched.
    url_hosts: "host,host" of private addresses that may be fetched from too.
    placeholder: the string that stands for a picture; with '' there is none, and strings are only text.
    video_placeholder, audio_placeholder: the same of a video and a recording; ``placeholder`` may stand for both.
    bare_placeholder: what a placeholder does in a record without its medium: "stop", or count as "text".
    on_error: "stop", or "skip" for records that make no sense.
    max_skipped: the largest fraction of a source's documents that may be skipped.
    drop_image: whether an unusable picture or clip is removed from its page; if not, the page is skipped.

    Attributes that are not keys:

    boxes: how boxes in texts are written: "", "pixels" or "thousandths".
    image: how pictures are resized, needed for boxes in pixels.
    evaluation: whether the data is read for an evaluation.
    held_out: whether to read the part that ``val_size`` keeps from training.
    preferences: which preferences records must have, one of PREFERENCES: none, "pairs" of answers, of which one is
      better, or answers that are "judged" one by one. By ``config.objective``.
    """

    media_dir: str = ""
    follow_outside: bool = False
    columns: str = ""
    split: str = ""
    val_size: float = 0.0
    allow_urls: bool = False
    url_hosts: str = ""
    placeholder: str = PLACEHOLDER
    video_placeholder: str = VIDEO_PLACEHOLDER
    audio_placeholder: str = AUDIO_PLACEHOLDER
    bare_placeholder: str = "stop"
    on_error: str = "stop"
    max_skipped: float = MAX_SKIPPED
    drop_image: bool = False
    boxes: str = ""
    image: ImageSpec | None = None
    evaluation: bool = False
    held_out: bool = False
    preferences: str = ""

    def __post_init__(self) -> None:
        """Raises UserError for a value that its key may not have."""
        if self.on_error not in ON_ERROR:
            known = f"{' or '.join(ON_ERROR)}{nearest(self.on_error, ON_ERROR)}"
            raise UserError(f"config.data.on_error '{self.on_error}' must be {known}")
        if self.bare_placeholder not in BARE:
            known = f"{' or '.join(BARE)}{nearest(self.bare_placeholder, BARE)}"
            raise UserError(f"config.data.bare_placeholder '{self.bare_placeholder}' must be {known}")
        if self.preferences not in PREFERENCES:
            known = f"{' or '.join(filter(None, PREFERENCES))}{nearest(self.preferences, PREFERENCES)}"
            raise UserError(f"--preferences '{self.preferences}' must be {known}")
        if self.boxes not in KINDS:
            known = f"one of {', '.join(filter(None, KINDS))}{nearest(self.boxes, KINDS)}"
            raise UserError(f"config.data.boxes '{self.boxes}' must be {known}")
        if self.boxes and self.drop_image:
            raise UserError(
                "config.data.boxes cannot be used with config.data.drop_image: a box whose picture was removed would "
                "belong to another picture; leave one of them out"
            )
        if self.boxes and self.image:
            check(self.boxes, self.image)
        if not 0 <= self.val_size < 1:
            raise UserError(f"config.data.val_size is {self.val_size}: it must be a part of the examples, as 0.1, or 0")
        if not 0 <= self.max_skipped <= 1 or math.isnan(self.max_skipped):
            raise UserError(f"config.data.max_skipped is {self.max_skipped}: it must be a part, from 0 to 1")
        self.named()

    def named(self) -> dict[str, str]:
        """Returns ``columns`` as {name: column}, with images as image and so on; '' says that there is no such column.

        Raises:
          UserError: if it is not written as name=column,name=column.
        """
        columns: dict[str, str] = {}
        for entry in filter(None, (e.strip() for e in self.columns.split(","))):
            name, equals, column = (part.strip() for part in entry.partition("="))
            if not equals or name not in COLUMNS:
                known = f"{', '.join(COLUMNS)}{nearest(name, COLUMNS)}"
                raise UserError(f"config.data.columns: '{entry}': write NAME=COLUMN,... with NAME one of {known}")
            if name in columns:
                raise UserError(f"config.data.columns names '{name}' twice")
            columns[name] = column
        for many, one in MEDIA.items():
            if many in columns:
                if one in columns:
                    raise UserError(f"config.data.columns: {one} and {many} are the same: give one of them")
                columns[one] = columns.pop(many)
        for name, kind in OF_PREFERENCES.items():
            if name in columns and kind != self.preferences:
                raise UserError(f"config.data.columns: '{name}' is read with {OBJECTIVES[kind]} alone: leave it out")
            if columns.get(name) == "":
                raise UserError(f"config.data.columns: '{name}' must name a column, as {name}={name.upper()}")
        for name in ("text", "response"):
            if name in columns and self.preferences == "pairs":
                raise UserError(f"config.data.columns: pairs of answers have no '{name}': name chosen and rejected")
        if "text" in columns and self.preferences:
            raise UserError("config.data.columns: a text is no answer to judge: name prompt, response and label")
        if "response" in columns and "prompt" not in columns:
            raise UserError("config.data.columns: a response needs a prompt: add prompt=COLUMN")
        whole = [name for name in ("messages", "text", "prompt") if name in columns]
        if len(whole) > 1:
            raise UserError(f"config.data.columns: give one of {', '.join(whole)}")
        return columns

    def hosts(self) -> tuple[str, ...]:
        """Returns ``url_hosts`` one by one."""
        return tuple(sorted(host.strip().lower() for host in self.url_hosts.split(",") if host.strip()))
