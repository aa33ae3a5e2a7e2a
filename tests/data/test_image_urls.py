"""Pictures by URL: read as files are, and asked for again where a store stumbles."""

import io

import numpy as np
import PIL.Image
import pytest
from pictures import encoded

from jaxmm.data.documents import Image
from jaxmm.data.media import opening
from jaxmm.data.media import picture as media
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec

SPEC = ImageSpec(patch_size=4, merge=2, min_pixels=16 * 16, max_pixels=64 * 64)
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


class Flaky:
    """A store that fails so many times and then has the picture."""

    def __init__(self, failures: list[Exception], data: bytes = b""):
        self.failures, self.data, self.opened = failures, data, 0

    def __call__(self, url: str) -> io.BytesIO:
        self.opened += 1
        if self.failures:
            raise self.failures.pop(0)
        return io.BytesIO(self.data)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(opening.time, "sleep", found.append)
    return found


def test_an_image_by_url_is_the_image(tmp_path):
    import fsspec

    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(encoded(PICTURE).data)
    image = Image(path="memory://pictures/a.png")
    assert media.image_size(image) == (20, 30)
    assert media.decode(image).tobytes() == PICTURE.tobytes()
    with pytest.raises(media.BadMedia, match="missing"):
        media.image_size(Image(path="memory://pictures/none.png"))
    with pytest.raises(UserError, match="nosuchscheme"):
        media.image_size(Image(path="nosuchscheme://a.png"))


def test_a_store_that_stumbles_is_asked_again_and_one_that_is_down_gives_missing(monkeypatch, waits):
    image = Image(path="s3://bucket/a.png")
    store = Flaky([ConnectionResetError("reset"), TimeoutError("slow")], encoded(PICTURE).data)
    monkeypatch.setattr(opening.files, "open_binary", store)
    assert media.image_size(image) == (20, 30)
    assert (store.opened, waits) == (3, list(opening.RETRY_SECONDS))

    store = Flaky([OSError("truncated connection")] * 9)
    monkeypatch.setattr(opening.files, "open_binary", store)
    with pytest.raises(media.BadMedia, match="missing"):
        media.image_size(image)
    assert store.opened == 1 + len(opening.RETRY_SECONDS)

    store = Flaky([FileNotFoundError()] * 9)
    monkeypatch.setattr(opening.files, "open_binary", store)
    with pytest.raises(media.BadMedia, match="missing"):
        media.image_size(image)
    assert store.opened == 1  # it answered: asking again would not help
