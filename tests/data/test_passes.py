"""Small sets: nothing comes again while other documents of its source still wait for their turn."""

from __future__ import annotations

import hashlib
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from made_index import BUDGETS, made, texts

from jaxmm.data.packing.mixture import make_mixture
from jaxmm.data.packing.plan import BY_MEDIA, FORMATS, UNTIL_PASSES, Budgets, Origin, Plan, formats_of

ROWS_OF_512 = Budgets(512, 4, 1, 512)


def ahead(plan: Plan, start: int, stop: int, seen: tuple[int, ...] = ()) -> list[int]:
    """By source, how far, at most, any of its examples is ahead of any other at the end of a batch."""
    counts = [Counter[int]() for _ in plan.lengths]
    for i, taken in enumerate(seen):
        counts[i].update(plan._streams.examples(i, 0, taken)[0].tolist() if taken else [])
    most = [0] * len(counts)
    for k in range(start, stop):
        pieces = plan.batch_arrays(k, k + 1).pieces
        for i, count in enumerate(counts):
            count.update(pieces.example[(pieces.source == i) & (pieces.first == 0)].tolist())
            least = min(count.values()) if len(count) == plan.mixture.examples[i] else 0
            most[i] = max(most[i], max(count.values(), default=0) - least)
    return most


def needed(plan: Plan) -> list[int]:
    """By source, how many of its passes one batch holds: 1 where it holds less than that."""
    batch = plan.batch_size * plan.budgets.tokens
    sizes = [source.tokens_E for source in plan.lengths]
    return [
        max(1, batch // max(1, int(np.sort(s)[:n].sum()))) for s, n in zip(sizes, plan.mixture.examples, strict=True)
    ]


@hypothesis.given(
    st.integers(0, 1 << 30), st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 9), st.data()
)
def test_no_example_comes_again_before_all_others_have_come(seed, sizes, batch_size, data):
    rng = np.random.default_rng(seed)
    sources = [texts(rng.integers(20, 200, size), f"s{i}") for i, size in enumerate(sizes)]
    caps = {f"s{i}": data.draw(st.integers(1, size)) for i, size in enumerate(sizes) if data.draw(st.booleans())}
    epochs = data.draw(st.sampled_from([0, 0, 1, 2.4, 3]))
    shares = rng.uniform(0.2, 3, len(sizes)).tolist()
    mixture = make_mixture(sources, [(0, shares)], max_examples=caps, epochs=epochs)
    plan = Plan(sources, mixture, ROWS_OF_512, batch_size, seed)
    stop = min(40, plan.batches()) if epochs else 40
    assert all(a <= b for a, b in zip(ahead(plan, 0, stop), needed(plan), strict=True))
    where = data.draw(st.integers(0, stop - 1))
    seen = plan.seen(where)
    after = Plan(sources, mixture, ROWS_OF_512, batch_size, seed, origin=Origin(where, seen))
    stop = min(where + 20, after.batches()) if epochs else where + 20
    assert all(a <= b for a, b in zip(ahead(after, where, stop, seen), needed(after), strict=True)), "from there on"


@hypothesis.given(st.integers(0, 1 << 30), st.sampled_from(["split", "truncate", "drop"]))
def test_long_documents_and_pictures_keep_their_turn_too(seed, long):
    sources = [made(seed, 24, "a"), made(seed + 1, 60, "b", ready=False)]
    plan = Plan(sources, [1, 1], BUDGETS, 2, seed, long)
    kept = [{p.example for row in Plan([s], [1], BUDGETS, 2, 0, long).rows(0, 200) for p in row} for s in sources]
    counts = [Counter[int]() for _ in sources]
    for k in range(100):
        for row in plan.batch(k):
            for piece in row:
                counts[piece.source][piece.example] += piece.first == 0
        for count, examples in zip(counts, kept, strict=True):
            assert max(count.values(), default=0) - min(count[e] for e in examples) <= 1


def test_forty_eight_documents_come_once_an_epoch_in_the_order_of_batches():
    documents = texts(np.random.default_rng(0).integers(20, 120, 48))
    plan = Plan([documents], [1], ROWS_OF_512, 8, 0)
    assert ahead(plan, 0, 200) == [1]
    assert max(Counter(p.example for row in plan.batch(0) for p in row).values()) <= 2
    three = Plan([documents], make_mixture([documents], [(0, [1])], epochs=3), ROWS_OF_512, 8, 0)
    assert ahead(three, 0, three.batches()) == [1]


@pytest.mark.parametrize(("size", "least"), [(5, 0.9), (48, 0.85), (600, 0.98), (3000, 0.99)])
def test_rows_stay_as_full_as_a_pass_allows(size, least):
    rng = np.random.default_rng(0)
    plan = Plan([texts(rng.integers(20, 120, size))], [1], ROWS_OF_512, 8, 0)
    pieces = plan.batch_arrays(0, 200).pieces
    assert (pieces.last - pieces.first).sum() / (200 * 8 * 512) > least


def test_sources_of_one_size_share_their_windows():
    rng = np.random.default_rng(0)
    sources = [texts(rng.integers(20, 120, 500), f"s{i}") for i in range(5)]
    plan = Plan(sources, [s.total_tokens for s in sources], ROWS_OF_512, 8, 0)
    rows = sum(s.total_tokens for s in sources) / 512
    plan.rows(0, int(10 * rows))
    assert len(plan._table.starts) <= 13, "their passes end together, so one window holds one of each"


def test_the_plan_of_a_run_from_version_0_1_is_still_to_be_had():
    sources = [made(1, 24, "a"), made(2, 8, "b")]
    capped = make_mixture(sources, [(0, [1, 1]), (40, [1, 5])], max_examples={"a": 20}, max_epochs={"a": 60.5})
    found = hashlib.sha256()
    for mixture in ([2, 1], capped):
        for long in ("split", "truncate", "drop"):
            plan = Plan(sources, mixture, BUDGETS, 4, 0, long, format=UNTIL_PASSES)
            found.update(repr(plan.batch_arrays(0, 60).listed()).encode())
    assert found.hexdigest()[:16] == "295f8f37b5aa2a80", "as its own code planned"
    with pytest.raises(ValueError, match="no plan of format 5"):
        Plan(sources, [1, 1], BUDGETS, 4, 0, format=max(FORMATS) + 1)


def test_plans_with_budgets_of_media_have_a_format_of_their_own():
    of_sound = Budgets(**BUDGETS._asdict(), audio=64)
    assert formats_of(of_sound) == (BY_MEDIA,)
    plan = Plan([made(1, 24, "a")], [1], BUDGETS, 4, 0)
    assert plan.format == max(FORMATS) != BY_MEDIA
    with pytest.raises(ValueError, match="no plan of format 4"):
        Plan([made(1, 24, "a")], [1], of_sound, 4, 0, format=max(FORMATS))
