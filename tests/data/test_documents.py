"""Documents and sources as types: what every reader shares."""

from jaxmm.data.documents import SKIP_ADVICE, SKIP_REASONS, Document, Source, Text, Turn, Unit, split_origin
from jaxmm.data.media import table


def test_an_origin_gives_its_file_and_record():
    assert split_origin("sub, folder/file.json, record 17") == ("sub, folder/file.json", 17)
    assert split_origin("demo, document 5") == ("demo", 5)
    assert split_origin("prompts") == ("prompts", "")


def test_a_source_is_its_units_one_after_the_other():
    def read(unit: Unit):
        for number in range(unit.start, unit.stop):
            yield Document((Turn("document", (Text(str(number)),), True),), f"made, document {number}")

    units = [Unit("", 0, 2, 0), Unit("", 2, 3, 2)]
    source = Source("made", (), "{}", lambda: units, read)
    assert [d.origin for d in source.documents()] == [f"made, document {number}" for number in range(3)]


def test_every_reason_has_its_advice():
    assert set(SKIP_REASONS) == set(SKIP_ADVICE)
    assert all(advice and "\n" not in advice for advice in SKIP_ADVICE.values())
    assert not set(SKIP_REASONS) & (set(table.reasons()) - {"empty", "unreadable"})  # the same words, the same thing
