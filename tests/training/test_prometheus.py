"""Prometheus reads each figure of a log line as a gauge; docs and the dashboard name gauges that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from small_run import ROOT, free_port

from jaxmm.config.address import parse_address
from jaxmm.errors import UserError
from jaxmm.training.gauges import GAUGES, OTHER, PREFIX, samples, table
from jaxmm.training.prometheus import Endpoint

LABELS = {f"{PREFIX}{gauge.name}": gauge.labels for gauge in GAUGES}
# What runs of clips, of preferences, of experts and of several processes write besides.
FURTHER = {
    "videos_per_second": 3.0,
    "stragglers": {"process": 1, "cause": "data", "cost": 0.2, "seconds": {"data": [0.1, 2.0], "step": [3.0, 1.0]}},
    "expert_load": {"most": 2.0, "least": 0.1, "layers": {"0": 2.0}, "experts": [0.5, 1.5]},
    "preferences": {"pairs": {"pairs": 8.0, "accuracy": 0.5, "kl": 0.1}},
    "eval": {"pairs": {"loss": 0.7, "pairs": 3, "preference_accuracy_blind": {"image": 0.5}, "chosen_nll": 1.0}},
    "attention": {"queries": 4, "layers": 2, "mean": {"image": 0.2, "entropy": 1.5}, "mass": {"image": [[0.1]]}},
}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    one = Endpoint("127.0.0.1", free_port(), 'a "run"')
    yield one
    one.close()


def scrape(endpoint: Endpoint) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by gauge and by the labels' values, these in the order of their names."""
    with urllib.request.urlopen(endpoint.url) as answer:
        found = list(text_string_to_metric_families(answer.read().decode()))
    assert all(family.type == "gauge" and family.documentation for family in found)
    assert len({family.name for family in found}) == len(found)
    return {one.name: {tuple(s.labels.values()): s.value for s in one.samples} for one in found}


def test_a_scrape_has_the_newest_of_each_figure_by_its_labels(endpoint):
    assert set(scrape(endpoint)) == {"jaxmm_run_info"}, "while it compiles"
    endpoint.add(2, 10, {"loss": 1.5, "eval": {'a/b "c"\n': {"loss": 0.5}}, "mfu": 0.4, "goodput": {"data": 2.0}})
    endpoint.add(4, 10, {"loss": 1.25, "mfu": None, "goodput": {"stepping": 3.0}})
    found = scrape(endpoint)
    assert found["jaxmm_loss"] == {(): 1.25}
    assert (found["jaxmm_step"], found["jaxmm_steps"]) == ({(): 4.0}, {(): 10.0})
    assert found["jaxmm_eval_loss"] == {('a/b "c"\n',): 0.5}, "as long as there is no newer evaluation"
    assert "jaxmm_mfu_ratio" not in found, "which is not known"
    assert found["jaxmm_goodput_seconds"] == {("stepping",): 3.0}, "and not what the newest line lacks"
    assert found["jaxmm_run_info"].popitem()[0][0] == 'a "run"'


def test_what_further_runs_write_has_gauges_of_its_own_and_what_has_none_is_served_by_its_path(endpoint):
    endpoint.add(1, 1, FURTHER)
    found = scrape(endpoint)
    assert f"{PREFIX}{OTHER}" not in found
    assert found["jaxmm_process_seconds"][("data", "1")] == 2.0
    assert found["jaxmm_expert_load"] == {("0",): 0.5, ("1",): 1.5}
    assert found["jaxmm_attention_entropy_nats"] == {(): 1.5}
    assert not any("mass" in name for name in found)
    endpoint.add(2, 2, {"own": {"x": [1, 2.5]}})
    assert scrape(endpoint)[f"{PREFIX}{OTHER}"] == {("own/x/0",): 1.0, ("own/x/1",): 2.5}


NESTED = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["eval", "loss", "sources", "a", "b"]), inner) | st.lists(inner),
    max_leaves=12,
)


def numbers(value: Any) -> int:
    if isinstance(value, Mapping | list):
        return sum(map(numbers, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


@given(st.dictionaries(st.sampled_from(["eval", "loss", "sources", "own"]), NESTED))
def test_every_number_comes_once_and_no_two_share_a_gauge_and_labels(figures):
    found = list(samples(figures))
    assert len(found) == numbers(figures) == len({(one.gauge.name, one.labels) for one in found})


def test_names_are_of_prometheus_conventions_and_of_one_row_each():
    assert len(LABELS) == len(GAUGES)
    assert all(re.fullmatch(r"jaxmm(_[a-z]+)+", name) for name in LABELS)
    assert not any(name.endswith(("_total", "_count", "_sum", "_bucket", "_info")) for name in LABELS), "of other kinds"


def test_the_docs_have_the_table_of_gauges():
    text = (ROOT / "docs" / "monitoring.md").read_text()
    assert table() in text, f"give docs/monitoring.md this table:\n{table()}"


def test_the_dashboard_asks_for_gauges_and_labels_that_there_are():
    board = json.loads((ROOT / "tools" / "launch" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    assert len(queries) > 10
    for query in queries:
        names = re.findall(r"jaxmm_\w+", query)
        assert names, query
        assert set(names) <= {*LABELS, "jaxmm_run_info"}, query
        known = {"job", "run", "instance"}.union(*(LABELS.get(name, ()) for name in names))
        asked = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
        asked += [x.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", query) for x in group.split(",")]
        assert set(asked) <= known, query
    for panel in board["panels"]:
        for target in panel["targets"]:
            named = re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert set(named) <= set(LABELS[re.findall(r"jaxmm_\w+", target["expr"])[0]]), panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9400", ("", 9400)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("host:80", ("host", 80)),
    ],
)
def test_an_address_is_a_port_or_a_host_and_a_port(text, address):
    assert parse_address(text, "key") == address


@pytest.mark.parametrize("text", ["host", "0", "65536", "host:", "host:8e3", "-1", "²"])
def test_what_is_no_address_is_told_in_a_line(text):
    with pytest.raises(UserError, match=r"key is .*write PORT or HOST:PORT"):
        parse_address(text, "key")


def test_a_host_that_is_not_this_machine_s_and_a_missing_package_are_told_in_a_line(monkeypatch):
    for host in ("no.such.invalid", "a..b", "192.0.2.1"):
        way = r".*; give a name or an address of this machine"
        with pytest.raises(UserError, match=rf"config\.log\.prometheus: {host}:9400: {way}"):
            Endpoint(host, 9400, "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="give another port, or end what listens there"):
            Endpoint("127.0.0.1", taken.getsockname()[1], "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package is not installed: pip install 'jaxmm\[prometheus\]'"):
        Endpoint("", 9400, "")
