"""What stands for an image in a record: a path, a URL, bytes, an object with one of them, a data URI or bare base64.

Feature vectors and clips are given in the same ways, and discrete image tokens as a list of ids.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmm.data import files, urls
from jaxmm.data.documents import AUDIO_PLACEHOLDER, PLACEHOLDER, VIDEO_PLACEHOLDER, Features, Image, Media, Tokens
from jaxmm.data.readers import clips
from jaxmm.data.readers.columns import BASE64, FEATURES, SHORTEST_BASE64, TOKENS
from jaxmm.data.readers.kinds import AUDIO, CLIPS, IMAGE, VIDEO, Kind
from jaxmm.data.readers.parts import SkipRecord, decoded, text

# The keys of an object that may give its image, in the order of trust: the Hugging Face struct first.
KEYS = ("bytes", "path", "url", "image", "image_url", "data", "base64", "source", "value")
LOCAL_SCHEMES = ("file://", "local://")


class NoMedium(ValueError):
    """A value that stands for no medium at all: its column may be about something else."""


@dataclass(frozen=True)
class Pictures:
    """Where images and clips given by path lie, and which paths and URLs a record may name.

    A path is relative to ``folder``. It may only lead into ``folder`` or ``data_folder``, whether by ``..``, a symlink
    or an absolute path: data from elsewhere must not decide which files of this machine are read. Absolute paths are
    common in LLaMA-Factory's files; if they do not lie under the data, ``media_dir`` names their folder, or
    ``follow_outside`` allows all paths. A URL outside of the data is fetched only with ``allow_urls``.

    Attributes:
      folder: of the media, an absolute path or URL.
      data_folder: of the dataset_info.json or the data file.
      follow_outside: whether any path may be read.
      allow_urls: whether URLs may be fetched.
      url_hosts: private addresses that may be fetched from.
      placeholder: the string that stands for a picture; '' for none.
      of_clips: those that stand for a video and for a recording; one may be that of pictures.
      bare_is_text: whether a placeholder is only text in a record without a medium of its kind.
      has_boxes: whether a record's objects are read, to be written at its marks.
    """

    folder: str
    data_folder: str
    follow_outside: bool = False
    allow_urls: bool = False
    url_hosts: tuple[str, ...] = ()
    placeholder: str = PLACEHOLDER
    of_clips: tuple[str, str] = (VIDEO_PLACEHOLDER, AUDIO_PLACEHOLDER)
    bare_is_text: bool = False
    has_boxes: bool = False

    def mark(self, kind: Kind, media: Sequence[Media] = ()) -> str:
        """Returns the placeholder that counts in the strings of a record with these media of a kind."""
        mark = self.placeholder if kind is IMAGE else self.of_clips[CLIPS.index(kind)]
        return mark if media or not self.bare_is_text else ""

    def image(self, value: Any) -> Image:
        """Returns the image that a record's value stands for.

        Raises:
          SkipRecord: for a path outside of the allowed folders, or base64 that cannot be decoded.
          ValueError: if the value is no image, or is a URL that may not be fetched.
        """
        if isinstance(value, Mapping):
            clips.check_settings(value, IMAGE)
            for key in KEYS:
                inner = value.get(key)
                if key in ("data", "base64") and isinstance(inner, str) and inner and not inner.startswith("data:"):
                    return Image(data=decoded(inner))
                if inner:
                    return self.image(inner)
        return self.file(value, IMAGE)

    def file(self, value: Any, kind: Kind) -> Image:
        """Returns the file of any kind that a path, a URL, bytes or base64 stands for. Raises as ``image``."""
        if isinstance(value, str) and value:
            return self._from_text(value, kind)
        if isinstance(value, bytes) and value:
            return Image(data=value)
        raise NoMedium(
            f"{kind.article} must be a path, a URL, bytes or base64{', or a list of frames' * (kind is VIDEO)}, "
            f"not {value!r:.40}"
        )

    def medium(self, kind: str, value: Any) -> Media:
        """Returns the medium of a value: features, image tokens, a clip, or else an image. Raises as ``image``."""
        if kind == VIDEO.name:
            return clips.video(value, self)
        if kind == AUDIO.name:
            return clips.audio(value, self)
        if kind == FEATURES:
            image = self.image(value.get(FEATURES) or value if isinstance(value, Mapping) else value)
            return Features(image.data, image.path)
        if kind == TOKENS:
            if isinstance(value, Mapping):
                value = next((value[key] for key in ("ids", TOKENS, "value") if value.get(key)), None)
            if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
                raise ValueError(f"image tokens must be a list of ids, not {value!r:.40}")
            return Tokens(tuple(value))
        return self.image(value)

    def _is_of_the_data(self, url: str) -> bool:
        folder = url.rpartition("/")[0]
        return "/../" not in url and _is_inside(folder, self.folder, self.data_folder)

    def _from_text(self, value: str, kind: Kind) -> Image:
        if value.startswith("data:"):
            head, comma, content = value.partition(",")
            if not comma or not head.endswith(";base64"):
                raise SkipRecord("unreadable")
            return Image(data=decoded(content))
        starts = kind.base64 if kind is not AUDIO else (*kind.base64, "//")  # as frames of MP3 begin
        if len(value) >= SHORTEST_BASE64 and value.startswith(starts) and BASE64.fullmatch(value):
            return Image(data=decoded(value))
        text(kind.article, "its path", value)  # a file's name may have no NUL and no lone surrogate either
        if value.startswith(LOCAL_SCHEMES):
            value = value.partition("://")[2]
        if "::" in value:  # a chain of fsspec's may end in a local file
            raise SkipRecord("outside")
        if files.is_remote(value):
            if not self._is_of_the_data(value):
                urls.check(value, self.allow_urls, self.url_hosts)
            return Image(path=value)
        # The file system is asked about a folder only once; about an image, only whether it is a link.
        head, slash, name = value.rpartition("/")
        if name in ("", ".", ".."):
            raise SkipRecord("outside")  # a folder
        folder = _joined(self.folder, head + slash)
        path = f"{folder.rstrip('/')}/{name}"
        if not self.follow_outside:
            if not _is_inside(folder, self.folder, self.data_folder):
                raise SkipRecord("outside")
            if not files.is_remote(path) and os.path.islink(path):
                target = os.path.dirname(os.path.realpath(path))
                if not _is_inside(target, self.folder, self.data_folder):
                    raise SkipRecord("outside")
        return Image(path=path)


@functools.lru_cache(maxsize=1 << 12)
def _joined(folder: str, head: str) -> str:
    joined = files.join(folder, head) if head else folder
    return joined if files.is_remote(joined) else os.path.normpath(joined)


@functools.lru_cache(maxsize=1 << 12)
def _is_inside(folder: str, *allowed: str) -> bool:
    """Whether a folder is one of those allowed, or lies in one, after following all links."""
    is_remote = files.is_remote(folder)
    place = folder if is_remote else os.path.realpath(folder)
    for other in allowed:
        if files.is_remote(other) == is_remote:
            root = (other if is_remote else os.path.realpath(other)).rstrip("/")
            if place == root or place.startswith(root + "/"):
                return True
    return False
