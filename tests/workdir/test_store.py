"""A workdir in an object store: its objects, its lock, and the spool that stands for it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import small_gcs

from jaxmm.command import parse
from jaxmm.errors import UserError
from jaxmm.workdir import holder, store_lock
from jaxmm.workdir import spool as spool_module
from jaxmm.workdir.folder import LOCK
from jaxmm.workdir.objects import CutShort, Objects, StoreAway, StoreError
from jaxmm.workdir.outgoing import outgoing
from jaxmm.workdir.place import Place
from jaxmm.workdir.spool import MARK, OWNER, Mirror, Spool, name_of, opened, publish
from jaxmm.workdir.store_lock import StoreLock


@pytest.fixture(autouse=True)
def own_spools(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "spools"))


@pytest.fixture
def server(monkeypatch):
    with small_gcs.serving() as server:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "x")
        yield server


@pytest.fixture(params=["file", "gs"])
def place(request, tmp_path):
    if request.param == "gs":
        request.getfixturevalue("server")
        return Place.read("--workdir", "gs://bucket/runs/a")
    return Place.read("--workdir", f"file://{tmp_path}/store/runs/a")


def contents(folder: Path) -> dict[str, bytes]:
    """The small files that count."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# URLs


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gcs://bucket/run", r"there is no store 'gcs://'; did you mean 'gs'\?"),
        ("https://bucket/run", "there is no store 'https://'"),
        ("gs://bucket", "names no folder in a store: give gs://BUCKET/FOLDER"),
        ("gs:///run", "give gs://BUCKET/FOLDER"),
        ("s3://bucket/a/../b", "give s3://BUCKET/FOLDER"),
        ("file://run", "give file:///FOLDER"),
    ],
)
def test_a_url_that_names_no_folder_of_a_store_is_one_line(url, told):
    with pytest.raises(UserError, match=rf"--workdir={url}.*{told}"):
        parse([f"--workdir={url}", "--config=base"], {"workdir": ("", "")})


def test_only_a_workdir_may_be_a_url():
    with pytest.raises(UserError, match="--output=gs://b/x: a URL is not supported here"):
        parse(["--output=gs://b/x"], {"output": ("", "")}, config="none")


def test_a_store_of_another_make_is_found_by_its_endpoint_and_the_keys_of_the_environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    place = Place.read("--workdir", "s3://bucket/a//b/")
    assert place.url == "s3://bucket/a/b"
    assert not {"endpoint", "aws_region", "aws_credentials"} & set(place.spec)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    found = place.spec
    assert (found["endpoint"], found["aws_region"]) == ("http://127.0.0.1:9000", "us-east-1")
    assert found["aws_credentials"] == {"type": "environment"}


# Objects


def test_objects_are_whole_and_conditions_hold(place, tmp_path):
    objects = Objects(place)
    assert objects.names() == []
    assert objects.read("a/b") is None
    tag = objects.write("a/b", b"one")
    assert objects.read_tagged("a/b") == (b"one", tag)
    assert objects.read_tagged("a/b", but=tag) == (b"", tag)
    assert objects.write_if("a/b", b"two", None) is None
    newer = objects.write_if("a/b", b"two", tag)
    assert newer not in (None, tag)
    assert objects.write_if("a/b", b"three", tag) is None
    assert objects.write_if("a/b", None, tag) is None
    assert objects.read("a/b") == b"two"
    objects.write("a/c", bytes(100))
    objects.write("ab", b"")
    assert objects.names() == ["a/b", "a/c", "ab"]
    assert objects.names("a/") == ["a/b", "a/c"]
    assert Objects(place._replace(path=f"{place.path}/a")).names() == ["b", "c"]
    assert objects.write_if("a/b", None, newer) is not None
    objects.delete_all(["a/c", "never there"])
    assert objects.names() == ["ab"]
    with pytest.raises(FileNotFoundError, match=r"runs/a/a/c"):
        objects.download("a/c", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_empty_objects_that_consoles_make_for_folders_are_no_files(server):
    for name in ("run/", "run/samples/", "run/checkpoints/", "run/config.json"):
        server.objects[name] = b"", 1
    spool = Spool.make(Place.read("", "gs://bucket/run"))
    spool.own()
    assert contents(spool.folder) == {"config.json": b""}


def test_a_large_object_is_fetched_in_blocks(place, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmm.workdir.objects._BLOCK", 1000)
    data = os.urandom(3500)
    Objects(place).write("x", data)
    Objects(place).download("x", tmp_path / "x", len(data))
    assert (tmp_path / "x").read_bytes() == data
    for size in (3500, 4500, 6000):  # it was longer once: its end lies in a block, and blocks lie behind its end
        assert b"".join(Objects(place).blocks("x", size)) == data[: 3500 if size == 3500 else 3000]


def test_a_store_that_is_away_is_asked_again_with_a_line_and_then_given_up(server, monkeypatch):
    monkeypatch.setattr("jaxmm.workdir.objects._TELL", 0.0)
    place, lines, left = Place.read("", "gs://bucket/run"), [], [6]

    def fail(method, name):
        left[0] -= 1
        return 503 if left[0] > 0 else 0

    server.fail = fail
    Objects(place, patience=30, say=lines.append).write("x", b"1")
    assert server.objects["run/x"][0] == b"1"
    assert len(lines) == 1
    assert "warning: gs://bucket/run is away (writing x" in lines[0]
    server.fail = lambda method, name: 503
    with pytest.raises(StoreAway, match="gs://bucket/run is away since"):
        Objects(place, patience=0.1, say=lines.append).read("x")


@pytest.mark.parametrize(
    ("status", "told"), [(403, "may not be used.*gcloud auth"), (401, "may not be used"), (404, "there is no bucket")]
)
def test_a_refusal_is_told_at_once_and_says_what_to_do(server, status, told):
    asked: list[str] = []
    server.fail = lambda method, name: asked.append(method) or status
    with pytest.raises(StoreError, match=f"gs://bucket/run.*{told}"):
        Objects(Place.read("", "gs://bucket/run"), patience=60).write("x", b"1")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("told", "status", "kind"),
    [
        ("ABORTED: RequestTimeout: of S3", 400, None),
        ("ABORTED: ConditionalRequestConflict: of S3", 409, None),
        ("ABORTED: All 3 retry attempts failed: Forbidden", 403, StoreError),
        ("ExpiredToken: of S3", 400, StoreError),
        ("OUT_OF_RANGE: Range Not Satisfiable", 416, CutShort),
    ],
)
def test_an_answer_that_may_change_by_itself_is_no_refusal(told, status, kind):
    objects = Objects(Place.read("", "s3://bucket/run"))
    with pytest.raises(kind) if kind else contextlib.nullcontext():
        objects._refuse(f"{told} [http_response_code='{status}']", told)


def test_a_conflict_is_asked_again_and_a_lost_race_stays_lost(server):
    objects, left = Objects(Place.read("", "gs://bucket/run")), [2]

    def fail(method, name):
        left[0] -= 1
        return 409 if left[0] >= 0 else 0

    server.fail = fail
    tag = objects.write_if("x", b"1", None)
    assert server.objects["run/x"][0] == b"1"
    left[0] = 1
    server.objects["run/x"] = b"2", 7  # another's, meanwhile
    assert objects.write_if("x", b"3", tag) is None
    assert server.objects["run/x"][0] == b"2"


# The lock

HOLDER = """
import sys, time
from jaxmm.workdir.objects import Objects
from jaxmm.workdir.place import Place
from jaxmm.workdir.store_lock import StoreLock
with StoreLock(Objects(Place.read("", sys.argv[1])), beat=0.2):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_train_says_who_holds_the_store_and_a_killed_one_blocks_nobody(place):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, place.url], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    lines: list[str] = []
    with pytest.raises(UserError, match=rf"{place.url} is being trained in by process {first.pid} on .*--workdir"):
        StoreLock(Objects(place), lines.append, silence=20).__enter__()
    assert "waiting up to 20 s for a sign of life" in lines[0]
    first.kill()
    first.communicate()
    assert Objects(place).names() == [LOCK]
    with StoreLock(Objects(place), silence=60):
        pass
    assert Objects(place).names() == []


def test_of_many_that_want_the_lock_at_once_one_gets_it(place):
    got, refused, done = [], [], threading.Event()

    def want():
        try:
            with StoreLock(Objects(place), lambda line: None, beat=0.05, silence=5):
                got.append(1)
                done.wait(60)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(refused) < 3 and len(got) < 2:
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)


def test_a_holder_elsewhere_that_gives_no_sign_is_passed_over_and_ends_when_it_comes_back(place, monkeypatch):
    ended, lines = [], []
    monkeypatch.setattr(store_lock, "end_at_once", ended.append)
    objects = Objects(place)
    note = {"host": "node7", "pid": 4, "machine": "m", "token": "t", "since": "2026-01-01"}
    objects.write(LOCK, json.dumps(note).encode())
    with StoreLock(objects, lines.append, beat=0.05, silence=0.4):
        assert "process 4 on node7" in lines[0]
        assert "gives no sign of life any more" in lines[1]
        objects.write(LOCK, json.dumps(note).encode())  # it was frozen, and now it is us who are gone
        while not ended:
            time.sleep(0.01)
    assert "another train has taken over" in ended[0]
    assert objects.names() == [LOCK]


@pytest.mark.parametrize(
    ("other", "is_known"),
    [
        ({}, True),
        ({"pids": "pid:[1]"}, False),
        ({"host": "b"}, False),
        ({"machine": "b"}, False),
        ({"pids": None}, False),
    ],
)
def test_a_holder_has_ended_only_where_its_number_is_one_of_ours_and_nobodys(tmp_path, other, is_known):
    """Containers may share a host name, a kernel and this store, and each numbers its own processes."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    objects, lines = Objects(Place.read("", f"file://{tmp_path}/store")), []
    objects.write(LOCK, json.dumps(holder.note() | {"pid": gone.pid, **other}).encode())
    with StoreLock(objects, lines.append, silence=0.1):
        pass
    assert lines == [] if is_known else "waiting up to" in lines[0]
    assert not holder.has_ended(holder.note())


# The spool


def written(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_what_a_run_writes_is_in_the_store_by_its_names_and_comes_back_elsewhere(place, monkeypatch, tmp_path):
    spool = Spool.make(place)
    assert not spool.own()
    written(spool.folder, {"base.json": "{}", "samples/4.json": "[]", "checkpoints/4/x": "no", ".x-1": "half"})
    (spool.folder / "model").mkdir()
    (spool.folder / "model/.of_this_run").touch()
    with Mirror(spool, every=0.02):
        while "samples/4.json" not in spool.objects.names():
            time.sleep(0.01)
    assert spool.objects.names() == ["base.json", "model/.of_this_run", "samples/4.json", OWNER]
    (spool.folder / "base.json").unlink()
    written(spool.folder, {"samples/4.json": "[1]", "metrics.jsonl": "{}\n"})
    spool.send()
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "another machine"))
    other = Spool.make(place)
    assert not other.own()
    assert contents(other.folder) == {"samples/4.json": b"[1]", "metrics.jsonl": b"{}\n"}
    assert (other.folder / "model/.of_this_run").exists()
    assert name_of(other.folder) == place.url
    assert name_of(tmp_path) == str(tmp_path)


def test_a_spool_sends_what_it_could_not_unless_another_has_written_since(place, monkeypatch, tmp_path):
    first = Spool.make(place)
    first.own()
    written(first.folder, {"metrics.jsonl": "1\n"})
    again = Spool.make(place)  # the process was killed before it sent that
    assert again.own()
    assert again.objects.read("metrics.jsonl") == b"1\n"
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "another machine"))
    other = Spool.make(place)
    other.own()
    written(other.folder, {"metrics.jsonl": "1\n2\n"})
    other.send()
    written(first.folder, {"metrics.jsonl": "1\nX\n", "lost.json": "{}", "checkpoints/9/x": "x"})
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "spools"))
    (first.folder / LOCK).write_text("ours")
    late = Spool.make(place)
    assert not late.own()
    assert contents(late.folder) == {"metrics.jsonl": b"1\n2\n", LOCK: b"ours"}


def test_a_spool_that_somebody_has_cleaned_deletes_nothing_from_the_store(place):
    files = {"config.json": b"{}", "metrics.jsonl": b"1\n", "samples/4.json": b"[]"}
    spool = Spool.make(place)
    spool.own()
    written(spool.folder, {name: data.decode() for name, data in files.items()})
    spool.send()
    for name in files:
        (spool.folder / name).unlink()
    spool.send()
    assert {name: spool.objects.read(name) for name in files} == files
    assert Spool.make(place).own()
    assert contents(spool.folder) == files


def test_a_command_that_reads_takes_only_what_is_new_and_sends_what_it_writes(server):
    url = "gs://bucket/run"
    with pytest.raises(UserError, match=f"--workdir={url}: there is nothing in the store"):
        opened("--workdir", url, reads=True)
    objects = Objects(Place.read("", url))
    for name in ("config.json", "metrics.jsonl", LOCK, "checkpoints/4/state/d/x"):
        objects.write(name, b"{}")
    folder = Path(opened("--workdir", url, reads=True))
    assert contents(folder) == {"config.json": b"{}", "metrics.jsonl": b"{}", LOCK: b"{}"}
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name in ("config.json", LOCK)}
    objects.write("metrics.jsonl", b"{}{}")
    (folder / "config.json").write_text("changed here")
    objects.delete(LOCK)
    opened("--workdir", url, reads=True)
    assert contents(folder) == {"config.json": b"{}", "metrics.jsonl": b"{}{}"}
    assert times[folder / "config.json"] != (folder / "config.json").stat().st_mtime_ns
    (folder / "eval.json").write_text("[]")
    publish(folder / "eval.json")
    assert objects.read("eval.json") == b"[]"


def test_a_store_that_refuses_at_the_end_is_one_line_and_the_files_stay(server, capsys):
    spool = Spool.make(Place.read("", "gs://bucket/run"))
    spool.own()
    written(spool.folder, {"summary.json": "{}"})
    server.fail = lambda method, name: 403
    with pytest.raises(UserError, match=r"may not be used.*stays in .*the same command on this machine sends it"):
        Mirror(spool, every=60).__enter__().__exit__(None, None, None)
    mirror, failed = Mirror(spool, every=0.01).__enter__(), ZeroDivisionError()
    while "the run goes on" not in (said := capsys.readouterr().err):
        time.sleep(0.01)
    mirror.__exit__(ZeroDivisionError, failed, None)  # which is told by itself
    assert "stays in" in said
    assert "the same command on this machine" in capsys.readouterr().err
    server.fail = lambda method, name: 0
    assert Spool.make(Place.read("", "gs://bucket/run")).own()
    assert spool.objects.read("summary.json") == b"{}"


def test_a_spool_whose_disk_is_full_for_a_while_sends_again_afterwards(place, monkeypatch, capsys):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    mine = Spool.make(place)
    mine.own()
    with Mirror(mine, every=0.01), monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_json", full)
        while "No space left on device: the run goes on" not in capsys.readouterr().err:
            time.sleep(0.01)
        patch.undo()
        written(mine.folder, {"metrics.jsonl": "1\n"})
        while mine.objects.read("metrics.jsonl") != b"1\n":
            time.sleep(0.01)
    monkeypatch.setattr(spool_module, "write_json", full)
    with pytest.raises(UserError, match=rf"{mine.folder}: No space left on device: what is not there yet stays in"):
        Mirror(mine, every=60).__enter__().__exit__(None, None, None)


def test_a_folder_that_a_command_writes_is_sent_whole_and_its_config_last(server, tmp_path):
    url = "gs://bucket/models/mine"
    with outgoing("--output", url) as folder:
        written(folder, {"config.json": "{}", "model.safetensors": "x", "deep/a": ""})
    puts = [name.removeprefix("models/mine/") for method, name in server.requests if method == "POST"]
    assert puts == ["deep/a", "model.safetensors", "config.json"]
    assert list((tmp_path / "spools").glob("outgoing-*")) == []
    with pytest.raises(UserError, match=f"--output {url} exists"), outgoing("--output", url):
        pass
    with outgoing("--output", str(tmp_path / "here")) as folder:
        assert folder == tmp_path / "here"
    with contextlib.suppress(ZeroDivisionError), outgoing("--output", "gs://bucket/models/other") as folder:
        written(folder, {"config.json": "{}"})
        raise ZeroDivisionError
    assert "models/other/config.json" not in server.objects


def test_what_a_killed_export_has_left_goes_with_the_next_but_not_what_another_writes(tmp_path):
    spools, url = tmp_path / "spools", f"file://{tmp_path}/models"
    written(spools / "outgoing-killed", {"model.safetensors": "x"})
    with outgoing("--output", f"{url}/a") as one:
        assert not (spools / "outgoing-killed").exists()
        written(one, {"config.json": "{}"})
        with outgoing("--output", f"{url}/b") as two:
            written(two, {"config.json": "{}"})
            assert (one / "config.json").exists()
    assert (tmp_path / "models/a/config.json").exists()


def test_seconds_that_are_none_are_one_line(monkeypatch):
    monkeypatch.setenv("JAXMM_STORE_SECONDS", "soon")
    with pytest.raises(UserError, match="JAXMM_STORE_SECONDS=soon: give seconds"):
        Objects(Place.read("", "gs://bucket/run"))


NAMES = st.sampled_from(["a.json", "b.jsonl", "samples/1.json", "samples/deep/2.png"])
EDITS = st.lists(st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=4)), st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("send")), st.tuples(st.just("killed")), st.tuples(st.just("moved")),
), max_size=12)  # fmt: skip


@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(EDITS)
def test_whatever_was_written_and_killed_the_store_has_what_was_sent_last(tmp_path_factory, edits):
    """Against a plain dict: a kill keeps what is in the spool, a move to another machine what was sent."""
    root = tmp_path_factory.mktemp("store")
    place, machines = Place.read("", f"file://{root}/store"), 0
    spool = Spool(_spool_folder(root, machines, place), place)
    spool.own()
    here: dict[str, bytes] = {}
    sent: dict[str, bytes] = {}
    for edit in edits:
        match edit:
            case ("write", name, data):
                written(spool.folder, {name: ""})
                (spool.folder / name).write_bytes(data)
                here[name] = data
            case ("remove", name):
                (spool.folder / name).unlink(missing_ok=True)
                here.pop(name, None)
            case ("send",):
                spool.send()
                sent = dict(here)
            case ("killed",):
                spool = Spool(spool.folder, place)
                assert spool.own()
                sent = dict(here)
            case ("moved",):
                machines += 1
                spool = Spool(_spool_folder(root, machines, place), place)
                assert not spool.own()
                here = dict(sent)
        assert contents(spool.folder) == here
        assert {name: spool.objects.read(name) for name in spool.objects.names() if name != OWNER} == sent


def _spool_folder(root: Path, number: int, place: Place) -> Path:
    folder = root / f"machine{number}"
    folder.mkdir()
    (folder / MARK).write_text(json.dumps({"url": place.url, "token": ""}))
    return folder
