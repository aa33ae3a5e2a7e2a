"""Makes the pictures of the docs from a trained run: its samples, the inspect page of its data, and its own page.

    python -m jaxmm.train --config=configs/base.py --workdir=runs/base
    python tools/make_pictures.py --workdir=runs/base --output=docs/pictures
    python tools/make_pictures.py --workdir=runs/sick --only=run --prefix=sick_

Writes ``samples.png``, the run's closing samples; ``inspect.png``, a screenshot of the page that ``jaxmm.inspect``
makes of the first rows, with one document open; and ``run.png``, one of ``report.html``: attention and samples. Each is
made smaller until it is under 300 KB. Screenshots need chromium, chromedriver and the extra 'test' (selenium).
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import PIL.Image

from jaxmm import command, inspect
from jaxmm.atomic import published
from jaxmm.errors import UserError
from jaxmm.report.run_page import NAME as REPORT

NAMES = ("samples", "inspect", "run")
FLAGS: command.Flags = {
    "workdir": ("", "folder of a trained run"),
    "output": ("docs/pictures", "folder for the pictures"),
    "only": (",".join(NAMES), "which of them, comma between them"),
    "prefix": ("", "of their names"),
    "rows": (12, "rows drawn on the inspect page"),
    "document": (0, "which document with a picture is open on the page, from 0"),
    "limit": (300_000, "bytes that a picture may have"),
}
WINDOW = 1320, 1000  # pixels of the browser's window, of which its frame takes some
RUN_WINDOW = 1600, 1260  # of the page of a run
COLOURS = 128  # of a picture with a palette: text and flat areas stay sharp


def read_samples(workdir: Path) -> PIL.Image.Image:
    """The sheet of the run's first held-out source.

    Raises:
      UserError: if the run has none.
    """
    sheets = sorted((workdir / "samples").glob("*.png"))
    if not sheets:
        raise UserError(f"{workdir / 'samples'} holds no picture: let the run come to its end first")
    return PIL.Image.open(sheets[0]).convert("RGB")


@contextlib.contextmanager
def headless(folder: Path) -> Iterator[Any]:
    """A browser without a window, whose profile lies in ``folder``."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError as error:
        raise UserError("the screenshot needs selenium: pip install -e '.[test]'") from error
    if not program or not driver:
        raise UserError("the screenshot needs chromium and chromedriver, and one of them is not on the PATH")
    options = webdriver.ChromeOptions()
    flags = "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "hide-scrollbars"
    for flag in (*flags, f"user-data-dir={folder}", f"window-size={WINDOW[0]},{WINDOW[1]}"):
        options.add_argument(f"--{flag}")
    options.binary_location = program
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def photograph_run(page: Path, folder: Path) -> PIL.Image.Image:
    """The page of a run from where its attention is shown."""
    with headless(folder) as browser:
        browser.set_window_size(*RUN_WINDOW)
        browser.get(page.as_uri())
        browser.execute_script("document.querySelector('#attention').scrollIntoView()")
        return PIL.Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


def photograph(page: Path, chosen: int, folder: Path) -> PIL.Image.Image:
    """The page with a document open that has a picture; ``chosen`` counts these from 0.

    Raises:
      UserError: if no document on the page has a picture.
    """
    with headless(folder) as browser:
        browser.get(page.as_uri())
        count = browser.execute_script("return document.querySelectorAll('.doc').length")
        for number in range(count):
            browser.execute_script("document.querySelectorAll('.doc')[arguments[0]].click()", number)
            chosen -= browser.execute_script("return document.querySelectorAll('#text img').length") > 0
            if chosen < 0:
                break
        else:
            raise UserError("too few documents on the page have pictures: lower --document, or raise --rows")
        browser.execute_async_script(
            "const done = arguments[0];"
            "Promise.all([...document.querySelectorAll('#text img')].map(i => i.decode())).then(() => done())"
        )
        browser.execute_script("document.querySelector('#rows').scrollIntoView()")
        return PIL.Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


def write(picture: PIL.Image.Image, path: Path, limit: int) -> int:
    """Writes a PNG with a palette, of as many pixels as ``limit`` bytes allow; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = io.BytesIO()
        picture.quantize(COLOURS, dither=PIL.Image.Dither.NONE).save(file, "PNG", optimize=True)
        if len(file.getvalue()) <= limit or min(picture.size) < 2:
            break
        picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10), PIL.Image.Resampling.LANCZOS)
    with published(path) as whole:
        whole.write_bytes(file.getvalue())
    return len(file.getvalue())


def pictures(args: Any, only: Collection[str]) -> Iterator[tuple[str, PIL.Image.Image]]:
    """The pictures by their names.

    Raises:
      UserError: if the run does not have what they show.
    """
    workdir = Path(args.workdir)
    if "samples" in only:
        yield "samples", read_samples(workdir)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        if "inspect" in only:
            page, batches = Path(folder) / "page.html", (0, -(-args.rows // args.config.batch_size))
            title = args.config.data.path or "the demo"
            inspect.write_page(page, inspect.make_report(args.config, title, batches, args.rows))
            yield "inspect", photograph(page, args.document, profile)
        if "run" in only:
            page = workdir / REPORT
            if not page.is_file():
                raise UserError(f"{page} is not there: let the run come to its end first")
            yield "run", photograph_run(page, profile)


def main(argv: list[str]) -> int:
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    only = args.only.split(",")
    if unknown := sorted(set(only) - set(NAMES)):
        raise UserError(f"--only: no picture '{unknown[0]}': there are {', '.join(NAMES)}")
    for name, picture in pictures(args, only):
        path = Path(args.output) / f"{args.prefix}{name}.png"
        print(f"{path}: {write(picture, path, args.limit):,} bytes")
    return 0


if __name__ == "__main__":
    command.run(main)
