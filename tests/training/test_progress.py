"""What a run counts of its batches, and when it has met too much that cannot be used."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from conftest import IMAGE, random_documents, rows_of
from ml_collections import ConfigDict

from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets
from jaxmm.models.flops import batch_flops
from jaxmm.training import throughput
from jaxmm.training.progress import Progress, count


def test_the_counts_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(tiny, lengths_of):
    lengths = lengths_of(random_documents(16, seed=5))
    rows = rows_of(lengths, *((2 * row, 2 * row + 1) for row in range(8)))
    assemble = Assembler([lengths], Budgets(tokens=128, patches=128, items=8, targets=128), IMAGE)

    def counted(loaded) -> throughput.Counts:
        return count(loaded, 8, batch_flops(tiny.spec, loaded.batch))

    whole = counted(assemble(rows))
    parts = [counted(assemble(rows[at : at + 2])._replace(all_rows=rows)) for at in range(0, 8, 2)]
    assert len({part.images for part in parts}) > 1, "uneven parts"
    for name in throughput.OF_ROWS:
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name
    of_all = ("examples", "token_capacity", "patch_capacity")
    assert [[getattr(part, name) for name in of_all] for part in parts] == [[16, 8 * 128, 8 * 128]] * 4
    media = {"image": 1, "features": 2, "video": 4, "video_features": 8, "audio": 16, "audio_features": 32}
    of_clips = counted(assemble(rows)._replace(media=media))
    assert (of_clips.images, of_clips.videos, of_clips.recordings) == (3, 12, 48), "vectors are media, too"


@pytest.mark.parametrize(
    ("met", "seen", "part", "is_end", "stops"),
    [
        (10, 100, 0.05, False, True), (5, 100, 0.05, False, False), (10, 100, 0.1, False, False),
        (1, 100, 0.0, False, True), (20, 40, 0.05, True, False), (21, 40, 0.05, False, True),
        (3, 4, 0.05, False, False), (3, 4, 0.05, True, True), (2, 4, 0.05, True, False), (4, 4, 1.0, True, False),
    ],
)  # fmt: skip
def test_more_documents_that_cannot_be_used_than_the_config_allows_end_a_run(tmp_path, met, seen, part, is_end, stops):
    config = ConfigDict({"data": {"max_skipped": part}})
    run = SimpleNamespace(skipped=SimpleNamespace(met=met), config=config, workdir=tmp_path)
    told = Progress.too_many_skipped(SimpleNamespace(run=run, examples_seen=seen), is_end)
    most = part if seen >= 100 else 0.5
    assert stops is bool(told and f"more than {most:.1%}" in str(told) and "config.data.max_skipped" in str(told))
