"""What stands for an image in a record: a path, a URL, bytes, a struct of them, a data URI or bare base64."""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Image
from jaxmm.data.readers.parts import LeftOut, text

# Where an object names its image, in the order of trust: the Hugging Face struct first.
KEYS = ("bytes", "path", "url", "image", "image_url", "data", "base64", "source", "value")
LOCAL_SCHEMES = ("file://", "local://")
# How base64 of JPEG, PNG, GIF, WebP, BMP and TIFF begins. A path may begin so too, but has a dot or is short.
MAGIC = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A")
SHORTEST_BASE64 = 80
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


@dataclass(frozen=True)
class Pictures:
    """Where images named by path lie, and what a record may name.

    A path is relative to ``folder``. It may lead nowhere but into ``folder`` or ``data_folder``, by ``..``, a symlink
    or an absolute path: data from elsewhere must not decide which files of this machine are read. Absolute paths are
    common in LLaMA-Factory's files; where they do not lie under the data, ``media_dir`` names their folder, or
    ``follow_outside`` allows all. A URL is no file of this machine, and is taken as it is.

    Attributes:
      folder: absolute path or URL.
      data_folder: of the dataset_info.json or the data file.
      follow_outside: whether to take any path.
    """

    folder: str
    data_folder: str
    follow_outside: bool = False

    def image(self, value: Any) -> Image:
        """Returns the image that a record's value stands for.

        Raises:
          LeftOut: for what lies outside, or base64 that is none.
          ValueError: if the value stands for no image.
        """
        if isinstance(value, str) and value:
            return self._from_text(value)
        if isinstance(value, bytes) and value:
            return Image(data=value)
        if isinstance(value, Mapping):
            for key in KEYS:
                found = value.get(key)
                if key in ("data", "base64") and isinstance(found, str) and found and not found.startswith("data:"):
                    return Image(data=_decoded(found))
                if found:
                    return self.image(found)
        raise ValueError(f"an image must be a path, a URL, bytes or base64, not {value!r:.40}")

    def _from_text(self, value: str) -> Image:
        if value.startswith("data:"):
            head, comma, content = value.partition(",")
            if not comma or not head.endswith(";base64"):
                raise LeftOut("unreadable")
            return Image(data=_decoded(content))
        if len(value) >= SHORTEST_BASE64 and value.startswith(MAGIC) and _BASE64.fullmatch(value):
            return Image(data=_decoded(value))
        text("an image", "its path", value)  # a file's name has no NUL and no half of a pair either
        for scheme in LOCAL_SCHEMES:
            if value.startswith(scheme):
                value = value[len(scheme) :]
        if "::" in value:  # a chain of fsspec's may end in a local file
            raise LeftOut("outside")
        if files.is_remote(value):
            return Image(path=value)
        path = files.join(self.folder, value)
        if not files.is_remote(path):
            path = os.path.normpath(path)
        if not self.follow_outside and not self._is_inside(path):
            raise LeftOut("outside")
        return Image(path=path)

    def _is_inside(self, path: str) -> bool:
        if files.is_remote(path):
            return any(path.startswith(folder.rstrip("/") + "/") for folder in (self.folder, self.data_folder))
        if os.path.islink(path):
            path = os.path.realpath(path)
        else:  # only the folder needs resolving, and it is the last image's too
            path = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
        return any(
            path.startswith(_real(folder).rstrip(os.sep) + os.sep)
            for folder in (self.folder, self.data_folder)
            if not files.is_remote(folder)
        )


@functools.lru_cache(maxsize=1 << 12)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _decoded(encoded: str) -> bytes:
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise LeftOut("unreadable") from error
    if not data:
        raise LeftOut("unreadable")
    return data
