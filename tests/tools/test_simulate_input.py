"""tools/simulate_input.py: the columns are an index that real code opens, and what is forecast follows from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import simulate_input
from simulation.columns import Columned, write
from simulation.forecast import Job, lines, table

from jaxmm.data.prepare.prepared import Prepared
from jaxmm.errors import UserError

JOB = Job(10**10, 4096, 64, 2048, 5.0, 100_000)
FOUND = {
    **dict.fromkeys(["column_bytes", "length_bytes", "count", "choose", "shards", "late_planned", "own"], 1.0),
    **dict.fromkeys(["mapped", "table", "pieces", "first", "own_rows", "late"], 1.0),
}


def test_a_made_folder_is_opened_and_checked_as_any_other(tmp_path):
    write(tmp_path / "made", 1001, 100, 0)
    opened = Columned(tmp_path / "made")
    assert (len(opened), len(opened.image_at_I), opened.meta["examples"]) == (1001, 500, 1001)
    assert opened.tokens_E.sum() == opened.meta["tokens"]
    assert np.diff(opened.images_E1).tolist() == [0, 1] * 500 + [0]
    with pytest.raises(UserError, match="of its 100 records"):
        Prepared(tmp_path / "made")
    column = tmp_path / "made" / "tokens_E.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="tokens_E"):
        Columned(tmp_path / "made")


def test_the_table_has_what_real_code_took_and_what_follows(tmp_path, capsys):
    output = tmp_path / "out.json"
    flags = ["--measured=20000", "--batch_size=64", "--seq_len=2048", "--batches=2", "--late=3"]
    assert simulate_input.main([*flags, f"--output={output}", f"--folder={tmp_path / 'columns'}"]) == 0
    report = json.loads(output.read_text())
    (found,), by_name = report["measured"], {line["name"]: line for line in report["lines"]}
    assert found["examples"] == 20000
    bytes_each = 4 + 8 + 2 * 8 + 2 * (4 + 1 + 4) + 4 * 4 / 2  # of each of COLUMNS, two runs and half an image
    assert found["column_bytes"] == pytest.approx(20000 * bytes_each, rel=0.01)
    columns = by_name["columns of the index, on disk"]
    assert columns["forecast"] == pytest.approx(found["column_bytes"] * 10**10 / 20000)
    assert by_name["a batch"]["forecast"] == found["batch"] > 0, "it depends on the batch, not on the data"
    printed = capsys.readouterr()
    assert "record reads, or requests where each is one" in printed.out
    assert "20,000 examples: step 3, by the table" in printed.err


def test_a_size_that_is_named_twice_is_measured_once(monkeypatch):
    measured = []

    def found(folder, size, job, args):
        measured.append(size)
        return {**FOUND, "examples": size, "check": 1, "open": 1, "batch": 1}

    monkeypatch.setattr(simulate_input, "_measured", found)
    assert simulate_input.main(["--measured=1e6,1000000,1e5"]) == 0
    assert measured == [10**5, 10**6]


def test_what_grows_faster_than_the_data_is_marked():
    small, large = (
        {**FOUND, "examples": n, "check": n / 1e6, "open": (n / 1e6) ** 2, "batch": 1.0} for n in (10**6, 10**7)
    )
    marked = [line.split("  ")[0] for line in table([small, large], JOB).splitlines() if " !" in line]
    assert marked == ["later start: lengths checked"]
    growth = {line.name: line.growth for line in lines([small, large], JOB)}
    assert growth["first start: columns checked"] == pytest.approx(1)
    assert growth["a batch"] is None


@pytest.mark.parametrize("flag", ["--measured=many", "--measured=10", "--measured=inf", "--step_seconds=0", "--late=0"])
def test_numbers_that_make_no_sense_are_told_in_a_line(flag):
    with pytest.raises(UserError, match=r"--measured|positive"):
        simulate_input.main([flag])
