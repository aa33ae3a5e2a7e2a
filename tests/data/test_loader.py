"""The loader: what the plan says, laid out exactly; a broken image costs its own document and nothing else."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from conftest import IMAGE, chat, picture, plain, random_documents, rows_of

from jaxmm.batch import IGNORED
from jaxmm.data.assemble import REPLACED, Assembler, Loaded, Skipped
from jaxmm.data.documents import Image, Source, Unit
from jaxmm.data.layout import lay_out
from jaxmm.data.loader import batches
from jaxmm.data.media.image import JITTER_FROM
from jaxmm.data.media.opening import BLOCK, SAMPLES, checksum_of
from jaxmm.data.media.picture import decode
from jaxmm.data.packing.lengths import Reference
from jaxmm.data.packing.plan import Budgets, Lengths, Pass, Piece, Plan
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.workers import Workers
from jaxmm.errors import UserError

BUDGETS = Budgets(tokens=96, patches=96, items=6, targets=96)


def load(lengths: Lengths, *rows: list[int]) -> Loaded:
    """Whole documents, by number, in rows."""
    return Assembler([lengths], BUDGETS, IMAGE)(rows_of(lengths, *rows))


def assert_same(found: Loaded, wanted: Loaded):
    jax.tree.map(np.testing.assert_array_equal, found.batch, wanted.batch)
    np.testing.assert_array_equal(found.answers_BT, wanted.answers_BT)
    assert (found.rows, found.skipped) == (wanted.rows, wanted.skipped)


@hypothesis.given(st.integers(0, 1 << 30))
def test_rows_hold_what_the_plan_says(lengths_of, template, seed):
    lengths = lengths_of(random_documents(12, seed, longest=150))
    plan = Plan([lengths], [1], BUDGETS, 4, seed)
    loaded = Assembler([lengths], BUDGETS, IMAGE)(plan.batch(0))
    batch = loaded.batch
    separators = [template.own.image_start_id, template.own.image_end_id]
    for b, row in enumerate(loaded.rows):
        segments, slots = batch.text.segments[b], batch.slots_BT[b]
        lengths_in_row = np.bincount(segments, minlength=len(row) + 1)[1:]
        assert lengths_in_row.tolist() == [p.last - p.first for p in row]
        for s in range(1, len(row) + 1):
            here = segments == s
            np.testing.assert_array_equal(batch.text.positions[b, here, 0], np.arange(here.sum()))
        # Slots count the soft tokens of the row's patches, in order; each soft token stands in one place.
        soft = int((batch.patches.segments[b] > 0).sum()) // IMAGE.merge**2
        np.testing.assert_array_equal(slots[slots >= 0], np.arange(soft))
        assert not (slots[segments == 0] >= 0).any()
        # What a position predicts is the next token of its own piece, never a soft token or a separator.
        for t in np.flatnonzero(batch.weights_BT[b]):
            assert segments[t + 1] == segments[t]
            assert slots[t + 1] == IGNORED
            assert batch.targets_BT[b, t] == batch.text.values[b, t + 1]
            assert batch.targets_BT[b, t] not in separators
        # Each tile's patches are adjacent, positioned over its grid.
        for m, (frames, rows, columns) in enumerate(batch.grids_BM3[b]):
            positions = batch.patches.positions[b, batch.patches.segments[b] == m + 1]
            assert len(positions) == frames * rows * columns
            assert {tuple(p) for p in positions} == {(0, r, c) for r in range(rows) for c in range(columns)}


def test_a_question_with_an_image_is_laid_out_as_written_by_hand(lengths_of, template):
    lengths = lengths_of([chat(("ab", picture(8, 16, 1), "c"), "de")])
    loaded = load(lengths, [0])
    batch = loaded.batch
    user, assistant = template.own.role_ids["user"], template.own.role_ids["assistant"]
    a, b, c, d, e = (ord(x) + 3 for x in "abcde")  # ByT5's bytes begin at 3
    start, end, stop = template.own.image_start_id, template.own.image_end_id, template.end_id
    tokens = [user, a, b, start, 0, 0, end, c, stop, assistant, d, e, stop]
    assert batch.text.values[0, :13].tolist() == tokens
    assert batch.slots_BT[0, :13].tolist() == [-1] * 4 + [0, 1] + [-1] * 7
    assert batch.weights_BT[0].nonzero()[0].tolist() == [9, 10, 11]
    assert batch.targets_BT[0, 9:12].tolist() == [d, e, stop]
    assert loaded.answers_BT[0].nonzero()[0].tolist() == [9, 10, 11]
    assert batch.grids_BM3[0, 0].tolist() == [1, 2, 4]
    # Two merge groups of 2 x 2 patches, each group's patches side by side.
    assert batch.patches.positions[0, :8, 1:].tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3],
    ]  # fmt: skip


def test_patches_are_the_pixels_of_their_places(lengths_of):
    image = picture(8, 16, 5)
    batch = load(lengths_of([plain(image)]), [0]).batch
    pixels = np.asarray(decode(image))
    for values, (_, row, column) in zip(batch.patches.values[0, :8], batch.patches.positions[0, :8], strict=True):
        here = pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(values.reshape(4, 4, 3), here)


def test_a_literal_separator_in_user_text_gives_no_slots(lengths_of, template):
    words = "<|image_start|> </s> <|end|> <image> <|assistant|>"
    lengths = lengths_of([plain(words)])
    batch = load(lengths, [0]).batch
    assert int(lengths.tokens_E[0]) == len(words) + 1
    assert batch.text.values[0, : len(words)].tolist() == [ord(x) + 3 for x in words]
    assert (batch.slots_BT == IGNORED).all()
    assert (batch.patches.segments == 0).all()


def cut_short(image: Image) -> Image:
    return Image(data=image.data[: len(image.data) * 2 // 3])


def test_a_broken_image_becomes_padding_and_changes_nothing_else(lengths_of):
    documents = random_documents(3, 1, longest=12)
    whole, broken = picture(16, 24, 9), cut_short(picture(16, 24, 9))
    good = load(lengths_of([*documents, plain("x", whole, "y")]), [0, 3, 1], [2])
    bad = load(lengths_of([*documents, plain("x", broken, "y")]), [0, 3, 1], [2])
    assert [(s.origin, s.reason) for s in bad.skipped] == [("made, record 3", "truncated")]
    assert not good.skipped
    hole = good.batch.text.segments == 2
    assert hole.sum() == 1 + 2 + 6 + 1 + 1
    assert not bad.batch.text.segments[hole].any()
    assert not bad.batch.weights_BT[hole].any()
    assert (bad.batch.slots_BT[hole] == IGNORED).all()
    for name in ("values", "positions", "segments"):
        found, wanted = getattr(bad.batch.text, name), getattr(good.batch.text, name)
        np.testing.assert_array_equal(found[~hole], wanted[~hole])
    np.testing.assert_array_equal(bad.batch.weights_BT[~hole], good.batch.weights_BT[~hole])
    # The images of the others are the same, whatever place they move up to.
    slots = good.batch.slots_BT[0][hole[0]]
    first, last = slots[slots >= 0][0] * 4, slots.max() * 4 + 4
    real = [good.batch.patches.segments[b] > 0 for b in range(2)]
    real[0][first:last] = False
    for b in range(2):
        found = bad.batch.patches.values[b, bad.batch.patches.segments[b] > 0]
        np.testing.assert_array_equal(found, good.batch.patches.values[b, real[b]])


def test_pictures_move_from_their_fifth_pass_on_the_same_way_for_whoever_loads_them(lengths_of):
    lengths = lengths_of([plain(picture(24, 24, seed=1), "a", picture(16, 24, seed=2))])

    def loaded(epoch: int, seed: int = 0, jitter: float = 0.2) -> Loaded:
        assemble = Assembler([lengths], BUDGETS, IMAGE, jitter=jitter, seed=seed)
        return assemble([[Piece(0, 0, 0, int(lengths.tokens_E[0]), epoch)]])

    def pixels(found: Loaded) -> bytes:
        return found.batch.patches.values.tobytes()

    still = [pixels(loaded(epoch)) for epoch in range(JITTER_FROM)] + [pixels(loaded(9, jitter=0))]
    assert len(set(still)) == 1
    moved = [loaded(JITTER_FROM), loaded(JITTER_FROM + 1), loaded(JITTER_FROM, seed=1)]
    assert len({pixels(found) for found in moved} | set(still)) == 4
    assert pixels(loaded(JITTER_FROM)) == pixels(moved[0])
    np.testing.assert_array_equal(moved[0].batch.patches.segments, loaded(0).batch.patches.segments)


def test_a_document_that_is_nothing_but_a_broken_image_leaves_an_empty_row(lengths_of):
    loaded = load(lengths_of([plain(cut_short(picture(24, 24)))]), [0])
    assert len(loaded.skipped) == 1
    assert not loaded.batch.text.segments.any()
    assert not loaded.batch.weights_BT.any()


def test_a_source_weighs_in_the_loss_what_the_config_says(lengths_of):
    sources = [lengths_of([plain("abc")], "a"), lengths_of([plain("defg")], "b")]
    row = [Piece(0, 0, 0, 4), Piece(1, 0, 0, 5)]
    weights = Assembler(sources, BUDGETS, IMAGE, loss_weights=[1.0, 0.25])([row]).batch.weights_BT[0]
    even = Assembler(sources, BUDGETS, IMAGE)([row]).batch.weights_BT[0]
    assert weights[:9].tolist() == [1, 1, 1, 0, 0.25, 0.25, 0.25, 0.25, 0]
    np.testing.assert_array_equal(weights > 0, even > 0)


def test_answers_are_numbered_over_the_row_and_a_cut_one_is_none(lengths_of):
    lengths = lengths_of([chat(("a",), "first"), plain("text"), chat(("b",), "second"), chat(("c",), "")])
    loaded = load(lengths, [0, 1, 2, 3])
    answers, segments = loaded.answers_BT[0], loaded.batch.text.segments[0]
    assert {s: set(answers[segments == s]) for s in (1, 2, 3, 4)} == {1: {0, 1}, 2: {0}, 3: {0, 2}, 4: {0, 3}}
    assert [(answers == n).sum() for n in (1, 2, 3)] == [6, 7, 1]  # with the end marker, which is all of an empty one
    record = lengths.prepared.read(0)
    size = int(lengths.tokens_E[0])
    assert not lay_out(lengths, Piece(0, 0, 0, size - 2), record.tokens).answers.any()
    assert not lay_out(lengths, Piece(0, 0, size - 2, size), record.tokens).answers.any()


def test_pieces_of_a_split_document_predict_each_of_its_tokens_but_the_first_of_a_piece(lengths_of):
    lengths = lengths_of([plain("x" * 250)])
    rows = Pass([lengths], BUDGETS, 1).rows(0, 3)
    loaded = Assembler([lengths], BUDGETS, IMAGE)(rows)
    assert loaded.batch.weights_BT.sum() == 251 - 3
    assert loaded.batch.text.positions[:, 0].tolist() == [[0], [0], [0]]


def test_tokens_that_differ_from_the_index_raise_both_numbers(lengths_of):
    lengths = lengths_of([plain("abc")])
    with pytest.raises(ValueError, match="has 2 tokens, its index says 4"):
        lay_out(lengths, Piece(0, 0, 0, 4), np.zeros(2, np.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, template):
    """A prepared source on disk, as a run has it; one image in it is broken."""
    documents = [*random_documents(40, 3), plain(cut_short(picture(16, 16)), "broken")]
    source = Source("disk", (), "{}", lambda: [Unit("", 0, len(documents), 0)], lambda _: iter(documents))
    return prepare(source, template, tmp_path_factory.mktemp("prepared"))


def planned(folder):
    lengths = [Lengths(Prepared(folder), IMAGE)]
    return Plan(lengths, [1], BUDGETS, 4, 0, window_rows=8), Assembler(lengths, BUDGETS, IMAGE)


@pytest.mark.parametrize(("threads", "workers", "buffer"), [(1, 0, 1), (2, 0, 2), (3, 0, 1), (1, 1, 2), (1, 2, 3)])
def test_batches_are_the_same_from_any_number_of_threads_and_workers(folder, threads, workers, buffer):
    plan, assemble = planned(folder)
    found = list(batches(plan, assemble, 3, 9, threads=threads, workers=workers, buffer=buffer))
    assert len(found) == 6
    assert any(loaded.skipped for loaded in found)
    plan, assemble = planned(folder)
    for k, loaded in zip(range(3, 9), found, strict=True):
        assert_same(loaded, assemble(plan.batch(k)))


@hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 5))
@hypothesis.settings(max_examples=10)
def test_rows_are_the_same_after_any_stop(folder, taken, threads, buffer):
    """A run that takes so many batches, stops, and goes on from there, again and again."""
    at, found = 2, []
    for count in taken:
        source = batches(*planned(folder), at, 60, threads=threads, buffer=buffer)  # a new process would plan anew
        found += [next(source) for _ in range(count)]
        source.close()
        at += count
    plan, assemble = planned(folder)
    for k, loaded in enumerate(found, start=2):
        assert_same(loaded, assemble(plan.batch(k)))


def test_a_process_loads_its_own_rows_of_each_batch(folder):
    plan, assemble = planned(folder)
    (whole,) = batches(plan, assemble, 2, 3)
    (part,) = batches(plan, assemble, 2, 3, local_rows=[1, 3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[[1, 3]]), part.batch, whole.batch)
    assert part.rows == [whole.rows[1], whole.rows[3]]
    assert part.all_rows == whole.all_rows == plan.batch(2)


def test_fast_decoding_changes_pixels_of_large_jpegs_and_nothing_else(lengths_of):
    blurred = decode(picture(16, 16, 4)).resize((96, 96))
    file = io.BytesIO()
    blurred.save(file, "JPEG")
    lengths = lengths_of([plain("a", Image(data=file.getvalue()), picture(24, 24), "b")])
    rows = [[Piece(0, 0, 0, int(lengths.tokens_E[0]))]]
    exact = Assembler([lengths], BUDGETS, IMAGE)(rows).batch
    fast = Assembler([lengths], BUDGETS, IMAGE, fast_decode=True)(rows).batch
    same = fast._replace(patches=fast.patches._replace(values=exact.patches.values))
    jax.tree.map(np.testing.assert_array_equal, same, exact)
    difference = np.abs(fast.patches.values[0].astype(int) - exact.patches.values[0])
    assert difference[:36].any()
    assert difference.mean() < 4
    assert not difference[36:].any()  # the PNG after it


def test_a_bad_second_image_leaves_nothing_of_the_first(lengths_of):
    first, second = picture(16, 16, 1), picture(16, 24, 2)
    documents = [plain(first, cut_short(second)), plain(picture(8, 8, 3), "x")]
    loaded = load(lengths_of(documents), [0, 1])
    assert [skip.reason for skip in loaded.skipped] == ["truncated"]
    patches = loaded.batch.patches
    assert (patches.segments[0] > 0).sum() == 4  # the second document's, moved up to the start
    assert not patches.values[0, 4:].any()


def test_an_image_that_changed_size_is_skipped_with_its_reason(tmp_path, template):
    path = tmp_path / "a.png"
    path.write_bytes(picture(16, 16).data)
    documents = [plain(Image(path=str(path)), "a", origin="x, record 1"), plain("b" * 30)]
    source = Source("moved", (), "{}", lambda: [Unit("", 0, 2, 0)], lambda _: iter(documents))
    lengths = Lengths(Prepared(prepare(source, template, tmp_path / "cache")), IMAGE)
    path.write_bytes(picture(16, 24).data)
    assert load(lengths, [0, 1]).skipped == [Skipped("x, record 1", "changed")]
    path.unlink()
    assert load(lengths, [0, 1]).skipped == [Skipped("x, record 1", "missing")]


def test_a_pair_is_loaded_with_the_very_files_that_the_reference_was_asked_about(tmp_path, template):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for n, path in enumerate(paths):
        path.write_bytes(picture(16, 16, n).data)
    asked = [[Image(path=str(path)), "who?"] for path in paths] + [[picture(16, 16), "who?"], ["who?"]]
    documents = [
        chat(question, "me", origin=f"x, record {n}")._replace(verdict="better", other=chat(question, "you").turns)
        for n, question in enumerate(asked)
    ]
    unit = Unit("", 0, 4, 0)
    source = Source("pairs", (), "{}", lambda: [unit], lambda _: iter(documents))
    lengths = Lengths(Prepared(prepare(source, template, tmp_path / "cache")), IMAGE)
    rows = [[Piece(0, e, 0, int(lengths.tokens_E[e])) for e in pair] for pair in ([0, 1], [2, 3])]
    budgets = BUDGETS._replace(pairs=2)
    assert not Assembler([lengths], budgets, IMAGE)(rows).checksums
    found = Assembler([lengths], budgets, IMAGE, has_checksums=True)(rows).checksums
    assert {example for _, example in found} == {0, 1}, "those with media in files of their own"
    checksums = np.array([found.get((0, e), 0) for e in range(4)], np.uint32)
    lengths.reference = Reference(np.full((4, 2), -1, np.float32), checksums)
    assert not Assembler([lengths], budgets, IMAGE)(rows).skipped
    paths[1].write_bytes(picture(16, 16, 7).data)
    loaded = Assembler([lengths], budgets, IMAGE)(rows)
    assert loaded.skipped == [Skipped("x, record 1", REPLACED)]
    assert loaded.batch.pairs.segments_BC.tolist() == [[1, 0], [1, 3]]
    assert (loaded.batch.patches.segments[0] > 0).sum() == 16, "those of the first alone"


@pytest.mark.parametrize("size", [0, 5, BLOCK, 3 * BLOCK + 1, SAMPLES * BLOCK, SAMPLES * BLOCK + 7])
def test_a_checksum_tells_the_first_and_the_last_byte_of_a_file_and_its_size(size):
    content = bytearray(size)
    told = [checksum_of(io.BytesIO(content), size)]
    for at in (0, -1)[: min(size, 2)]:
        content[at] ^= 1
        told.append(checksum_of(io.BytesIO(content), size))
    told.append(checksum_of(io.BytesIO(bytes(size + 1)), size + 1))
    assert len(set(told)) == len(told)


# Memory and processes


def test_a_batch_that_jax_holds_is_never_written_over(folder):
    """On CPU JAX takes NumPy's memory as it is, so that the batch is in a slot as long as JAX needs it."""
    source = batches(*planned(folder), 0, 12, workers=1, buffer=2)
    plan, assemble = planned(folder)
    held, shared = [], 0
    for loaded in source:
        batch = jax.device_put(loaded.batch)
        pixels = loaded.batch.patches.values
        shared += batch.patches.values.unsafe_buffer_pointer() == pixels.ctypes.data
        held.append(batch)
        del loaded, pixels  # nothing but JAX holds the memory now
    assert shared == 12, "JAX copies: this test shows nothing"
    for k, batch in enumerate(held):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch), assemble(plan.batch(k)).batch)


def test_a_worker_imports_no_jax(folder):
    plan, assemble = planned(folder)
    needs = pickle.dumps((assemble, plan.batch(0)))
    made = f"(lambda assemble, rows: assemble(rows))(*__import__('pickle').loads({needs!r}))"
    workers = Workers(eval, 1)
    loaded, modules = workers(f"({made}, sorted(__import__('sys').modules))")
    workers.close()
    assert_same(loaded, assemble(plan.batch(0)))
    assert not [name for name in modules if name.split(".")[0] in ("jax", "jaxlib", "flax")]


def test_more_workers_than_a_machine_can_run_are_one_line_before_any_starts(folder):
    plan, assemble = planned(folder)
    with pytest.raises(UserError, match=r"data\.workers is 1000000: at most"):
        batches(plan, assemble, 0, 4, workers=1_000_000)


def test_a_worker_that_is_killed_is_one_line(folder):
    plan, _ = planned(folder)
    source = batches(plan, Slow(), 0, 9, workers=1)
    pid = next(source).batch
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(UserError, match=r"was killed.*memory.*config.data.workers") as caught:
        next(source)
    assert "\n" not in str(caught.value)
    source.close()


class Slow:
    """Gives a worker's process number as the first batch; the second takes a minute."""

    def __init__(self):
        self.calls = 0

    def __call__(self, rows):
        self.calls += 1
        return Loaded(os.getpid(), rows, rows, None, [], {}, {}) if self.calls == 1 else time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "count"), [(0, 4_000), pytest.param(1, 4_000, marks=pytest.mark.full)])
def test_memory_is_flat_over_thousands_of_batches(folder, workers, count):
    """In a process of its own, whose memory nothing else grows."""
    program = (
        "import pathlib, re, sys\n"
        "from jaxmm.image_spec import ImageSpec\n"
        "from jaxmm.data.assemble import Assembler\n"
        "from jaxmm.data.loader import batches\n"
        "from jaxmm.data.packing.plan import Budgets, Lengths, Plan\n"
        "from jaxmm.data.prepare.prepared import Prepared\n"
        f"spec, budgets = {IMAGE!r}, Budgets{tuple(BUDGETS)!r}\n"
        f"lengths = [Lengths(Prepared({str(folder)!r}), spec)]\n"
        "plan, assemble = Plan(lengths, [1], budgets, 2, 0, window_rows=8), Assembler(lengths, budgets, spec)\n"
        "def kilobytes():\n"
        "    return int(re.search(r'VmRSS:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
        f"for k, loaded in enumerate(batches(plan, assemble, 0, {count + 1}, workers={workers})):\n"
        f"    if k in (1000, {count}):\n"
        "        print(kilobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=True)
    early, late = map(int, done.stdout.split())
    assert late - early < 4096, f"{early} kB after 1,000 batches, {late} kB after {count:,}"
