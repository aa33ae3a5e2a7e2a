"""How the model beneath a run's adapters is known again, and what a reference is known by."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import made
import numpy as np
import pytest
import safetensors.numpy

from jaxmm.checkpoints import references
from jaxmm.checkpoints.base import FILE, OF_FILES, SAMPLES, Base, found_again, keep, kept
from jaxmm.data.documents import Text
from jaxmm.data.packing.lengths import Reference
from jaxmm.data.packing.limits import Budgets
from jaxmm.errors import UserError
from jaxmm.models.trainable import EVERYTHING
from jaxmm.reference import known_pairs


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model's folder, of more tensors than its file has samples."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "made"}))
    write(made, -1)
    return made


def write(folder: Path, changed: int) -> None:
    """Writes its tensors, of which one is another one; -1 is none."""
    tensors = {f"{n:02d}": np.full((128, 256), n + (n == changed), np.float32) for n in range(2 * SAMPLES + 1)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_a_base_of_which_any_one_tensor_changed_is_another_one(folder):
    found = dict.fromkeys(range(-1, 2 * SAMPLES + 1))
    for changed in found:
        write(folder, changed)
        found[changed] = Base.find(str(folder)).fingerprint["model"]
    assert len(set(found.values())) == len(found)


def test_what_an_older_version_noted_is_compared_as_it_was_made_and_kept_so(folder, tmp_path):
    older = Base.find(str(folder), OF_FILES)
    keep(tmp_path, older)
    (tmp_path / FILE).write_text(json.dumps(json.loads((tmp_path / FILE).read_text()) | {"format": 1}))
    noted = kept(tmp_path)
    assert noted == older
    again = found_again(noted, "", tmp_path)
    assert (again, again.format) == (older, 1)
    assert Base.find(str(folder)).fingerprint != older.fingerprint
    write(folder, 0)
    with pytest.raises(UserError, match="holds adapters of another model than that in"):
        found_again(noted, "", tmp_path)


def test_a_reference_is_known_by_what_begins_anew_too(tiny):
    recipe = SimpleNamespace(model=tiny.spec)
    connector = dataclasses.replace(tiny.spec.connector, mlp=16)
    other = SimpleNamespace(model=dataclasses.replace(tiny.spec, connector=connector))
    parts, whole = (Base("", "", dict.fromkeys(of, "1f")) for of in (("vision", "decoder"), ("model",)))
    asked = [(recipe, 0), (recipe, 1), (other, 0)]
    assert len({references.fingerprint_of(parts, *one) for one in asked}) == 3
    assert len({references.fingerprint_of(whole, *one) for one in asked}) == 1
    with pytest.raises(UserError, match="that a run begins from: set config"):
        references.fingerprint_of(Base.find(""), recipe, 0)


def test_what_was_kept_without_checksums_is_not_found(lengths_of, tmp_path, monkeypatch):
    source = lengths_of([made.document(Text(name)) for name in "abc"])
    source.prepared.meta["fingerprint"] = "1f"
    recipe = SimpleNamespace(
        model=SimpleNamespace(frozen=None, matmul=""), compute=SimpleNamespace(dtype="float32"), cache=tmp_path
    )  # fmt: skip
    asked = Reference(np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3, dtype=np.uint32))
    with monkeypatch.context() as older:
        older.setattr(references, "KEPT", 1)
        references.save(source, "2e", recipe, asked)
    assert np.isnan(references.said(source, "2e", recipe).logps_E2).all()
    references.save(source, "2e", recipe, asked)
    for kept_before, wanted in zip(references.said(source, "2e", recipe), asked, strict=True):
        np.testing.assert_array_equal(kept_before, wanted)


def test_a_reference_that_is_not_found_says_what_differs_from_what_is_kept_and_what_helps(lengths_of, tmp_path):
    source = lengths_of([made.document(Text(name)) for name in "abc"])
    source.preferences, source.prepared.meta["fingerprint"] = "judged", "1f"
    recipe = SimpleNamespace(
        model=SimpleNamespace(frozen=None, matmul=""), compute=SimpleNamespace(dtype="float32"), cache=tmp_path,
        preference=SimpleNamespace(judges=True, asked=False), trainable=EVERYTHING,
    )  # fmt: skip

    def refused(fingerprint: str = "2e") -> str:
        with pytest.raises(UserError) as caught:
            references.attach([source], fingerprint, recipe, Budgets(64, 4, 1, 64))
        return str(caught.value)

    advice = "ask it by `jaxmm reference` with the same config; or train adapters alone (config.adapter.rank), beneath"
    assert f"not asked about 3 of 3 judged answers: {advice} which it is" == refused().partition("was ")[2]
    references.save(source, "2e", recipe, Reference(np.zeros((3, 2), np.float32), np.zeros(3, np.uint32)))
    assert "judged answers (what is kept was asked with other weights (config.init_from)): " in refused("2f")
    source.prepared.meta["fingerprint"] = "20"
    assert "judged answers (what is kept was asked with other data of this name): " in refused()


def test_pairs_whose_media_were_replaced_are_asked_about_again_and_those_that_cannot_be_read_stay():
    logps_E2 = np.array([[1, 2], [np.nan, np.nan], [np.inf, np.inf], [3, 4], [5, 6]])
    before = Reference(logps_E2, np.array([7, 0, 0, 8, 9], np.uint32))
    corpus = SimpleNamespace(lengths=[SimpleNamespace(name="pairs")])
    asked = SimpleNamespace(corpus=corpus, checksums=lambda which: [{0: 7, 3: 1}])
    assert known_pairs(asked, [before])["pairs"].tolist() == [True, False, False, False, True]


def test_a_run_does_not_see_its_pictures_otherwise_than_the_reference():
    def refused(media: str, jitter: float = 0.0, fast_decode: bool = False, init_from: str = "model") -> str:
        data = SimpleNamespace(jitter=jitter, fast_decode=fast_decode, boxes="")
        source = SimpleNamespace(name="pairs", media_counts=lambda: {media: 3})
        try:
            references.check_pictures(SimpleNamespace(data=data, init_from=init_from), [source])
        except UserError as error:
            return str(error)
        return ""

    assert not any((refused("image"), refused("image", -1.0), refused("audio", 0.1, True), refused("video", 0, True)))
    assert "config.data.jitter=0.1 and config.data.fast_decode=True: the run would see" in refused("image", 0.1, True)
    assert "leave config.data.jitter out, or train" in refused("video", 0.1, True)
