"""What all tests share: eight virtual CPU devices, one compile cache, the options, and a tiny world."""

from __future__ import annotations

import importlib.metadata
import os

# Before anything imports jax; programs that tests start inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and run little. Without optimisation it takes half the time; without MLIR for fusions, which later
# releases cannot leave out, a third of that.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
)

import dataclasses
import importlib.util
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import PIL.Image
import pytest

from jaxmm.batch import Batch
from jaxmm.data.documents import Document, Image, Part, Text, Turn
from jaxmm.data.packing.plan import Lengths, Piece
from jaxmm.data.prepare.index import InMemory
from jaxmm.image_spec import ImageSpec
from jaxmm.machine import cores

hypothesis.settings.register_profile(
    "jaxmm", max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)  # fmt: skip
hypothesis.settings.load_profile("jaxmm")

FILE_SECONDS, FILE_SECONDS_SLOW = 20, 90  # of a file of tests, without and with --slow, on a quiet machine

# The files that take longest come first, so that none is left alone at the end.
LONGEST = (
    "test_families", "test_barrier", "test_step", "test_train", "test_tutorials", "test_recipes", "test_evaluator",
    "test_adapter_runs", "test_quantized_runs", "test_preference_runs", "test_moved", "test_loader", "test_cache",
    "test_faults", "test_estimate_formula", "test_preference_objective", "test_export", "test_check", "test_folders",
    "test_api", "test_benchmark",
)  # fmt: skip

IMAGE = ImageSpec(patch_size=4, merge=2, min_pixels=8 * 8, max_pixels=24 * 24)  # 1 to 9 soft tokens an image


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--full", action="store_true", help="also run the tests marked full, beside --slow or --parity")
    parser.addoption("--parity", action="store_true", help="also run the tests that need torch, where it is installed")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One more than the cores, as some tests wait for programs or for seconds to pass; 4 at most, for their memory."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else min(cores() + 1, 4)


def pytest_configure(config: pytest.Config) -> None:
    cache = config.cache.mkdir("compiled")  # type: ignore[union-attr]
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_torch = importlib.util.find_spec("torch") is not None
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    is_here = {
        name: importlib.util.find_spec(name) is not None
        for name in (
            "selenium", "ray", "wandb", "s3fs", "moto", "flask", "libtpu", "openai", "tokamax", "dew_flash_attn",
        )
    }  # fmt: skip
    run = {
        "slow": config.getoption("--slow"),
        "full": config.getoption("--full"),
        "parity": config.getoption("--parity") and has_torch,
        "browser": all(programs) and is_here["selenium"],
        "ray": is_here["ray"],
        "wandb": is_here["wandb"],
        "libtpu": is_here["libtpu"],
        "openai": is_here["openai"],
        "tokamax": is_here["tokamax"],
        "flash3": is_here["dew_flash_attn"],
        "s3": is_here["s3fs"] and is_here["moto"] and is_here["flask"],
    }
    out = [item for item in items if any(item.get_closest_marker(mark) and not on for mark, on in run.items())]
    if out:
        config.hook.pytest_deselected(items=out)
        left = set(out)
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the files that took longer than CONTRIBUTING gives them; it reports, and fails nobody."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                file = report.nodeid.partition("::")[0]
                seconds[file] = seconds.get(file, 0.0) + report.duration
    budget = FILE_SECONDS_SLOW if config.getoption("--slow") or config.getoption("--parity") else FILE_SECONDS
    over = sorted(((took, file) for file, took in seconds.items() if took > budget), reverse=True)
    if over:
        terminalreporter.section(f"files over their budget of {budget} s")
        for took, file in over:
            terminalreporter.line(f"{took:7.1f} s  {file}")


@pytest.fixture(scope="session")
def whole_transformers() -> None:
    """Where there is torch: a torchvision that does not load would keep ``transformers`` from many of its classes."""
    if importlib.util.find_spec("torch"):
        from parities.models import let_torchvision_import

        let_torchvision_import()


@pytest.fixture(scope="session")
def image_spec() -> ImageSpec:
    return IMAGE


@pytest.fixture(scope="session")
def template() -> Any:
    """Conversations over bytes; a vocabulary of 390."""
    from jaxmm.data.text.template import Template
    from jaxmm.data.text.tokenizer import load_tokenizer

    return Template(load_tokenizer(""), "sft")


class Tiny(NamedTuple):
    """A model of a few thousand parameters, and its ways in."""

    spec: Any
    compute: Any
    init: Callable[..., Any]
    apply: Callable[..., Any]  # as of make_model
    params: Any  # numbers of our own, which no release of JAX changes

    def forward(self, params: Any, batch: Batch, target_positions_BR: Any = None) -> Any:
        """(hidden states at the places or everywhere, head_VD), as the steps want it."""
        return self.apply(params, batch, self.compute, target_positions_BR)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    import jax

    from jaxmm.models.connector import ConnectorSpec
    from jaxmm.models.decoder import DecoderSpec
    from jaxmm.models.multimodal import Compute, ModelSpec, logical_axes, make_model
    from jaxmm.models.towers.vit import VisionSpec

    spec = ModelSpec(
        VisionSpec(width=16, layers=2, heads=4, mlp=32, patch_size=IMAGE.patch_size, positions=4),
        ConnectorSpec(merge=IMAGE.merge, mlp=32),
        DecoderSpec(vocab_size=392, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48),
    )
    init, apply = make_model(spec)
    rng = np.random.default_rng(0)

    def draw(path: Any, described: Any) -> np.ndarray:
        noise = 0.2 * rng.standard_normal(described[0], np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    params = jax.tree_util.tree_map_with_path(draw, logical_axes(spec), is_leaf=lambda x: isinstance(x, tuple))
    return Tiny(spec, Compute(), init, apply, params)


@pytest.fixture
def job(monkeypatch) -> Any:
    """A job of five processes that are threads."""
    from thread_job import make_job

    return make_job(monkeypatch)


@pytest.fixture(scope="session")
def chat_speaker(tmp_path_factory) -> Any:
    """A tiny run that writes letters, loaded: model "tiny"."""
    from talking import make_run

    from jaxmm.chat.speaker import Speaker

    return Speaker("tiny", make_run(tmp_path_factory.mktemp("chat") / "tiny"))


@pytest.fixture(scope="session")
def chat_url(chat_speaker) -> Iterator[str]:
    """The address of a server over it."""
    from talking import serving

    with serving([chat_speaker]) as url:
        yield url


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Any]:
    """A browser for a file's tests of pages, which are marked ``browser``."""
    from chromium import start

    browser = start(tmp_path_factory.mktemp("chromium") / "profile")
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="session")
def qwen_vl(tmp_path_factory) -> Path:
    """A Qwen2.5-VL of random weights, as a folder that runs begin with."""
    from made_folders import folder_of

    return folder_of("qwen2.5-vl", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """The folder of a made run in which all went well; a file's tests of pages may write into it."""
    import made_run

    folder = tmp_path_factory.mktemp("runs") / "healthy"
    made_run.write_run(folder, samples=[made_run.looked()])
    return folder


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX says of a TPU chip."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def chips(slices: int) -> list[Chip]:
    """Slices of 4 x 4 chips."""
    return [Chip(16 * s + n, s, (n % 4, n // 4, 0)) for s in range(slices) for n in range(16)]


def picture(height: int, width: int, seed: int = 0) -> Image:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return Image(data=file.getvalue())


def plain(*parts: str | Image, origin: str = "made") -> Document:
    """A plain or interleaved document: every text token is a target."""
    return Document((Turn("document", _parts(parts), True),), origin)


def chat(question: Sequence[str | Image], answer: str, origin: str = "made") -> Document:
    """A question and its answer: the answer is the target."""
    turns = Turn("user", _parts(question), False), Turn("assistant", (Text(answer),), True)
    return Document(turns, origin)


def _parts(parts: Sequence[str | Image]) -> tuple[Part, ...]:
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def random_documents(count: int, seed: int, longest: int = 40) -> list[Document]:
    """Plain, text-only, interleaved and question documents of all kinds of lengths."""
    rng = np.random.default_rng(seed)

    def words(most: int) -> str:
        return bytes(rng.integers(97, 123, rng.integers(1, max(most, 2)), dtype=np.uint8)).decode()

    def image() -> Image:
        height, width = rng.integers(4, 40, 2)
        return picture(int(height), int(width), int(rng.integers(1 << 30)))

    kinds: list[Callable[[], Document]] = [
        lambda: plain(words(longest)),
        lambda: plain(image(), words(longest)),
        lambda: plain(words(longest // 2), image(), image(), words(longest // 2)),
        lambda: chat((image(), words(longest // 2)), words(longest // 4)),
    ]
    return [kinds[rng.integers(len(kinds))]() for _ in range(count)]


def rows_of(lengths: Lengths, *rows: Sequence[int]) -> list[list[Piece]]:
    """Rows of whole examples, which are given by their numbers."""
    return [[Piece(0, e, 0, int(lengths.tokens_E[e])) for e in row] for row in rows]


@pytest.fixture(scope="session")
def lengths_of(template: Any) -> Callable[..., Lengths]:
    """``lengths_of(documents, name="made")``: the documents as a source, sized for the tiny model's images."""

    def build(documents: Sequence[Document], name: str = "made") -> Lengths:
        media = [[part for turn in d.turns for part in turn.parts if not isinstance(part, Text)] for d in documents]
        source = InMemory(name, [template.encode(d) for d in documents], media, template.fingerprint)
        return Lengths(source, IMAGE)

    return build
