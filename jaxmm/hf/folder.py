"""A Hugging Face folder as a whole: reads its config as a family, its tensors as parameters, and writes both again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmm.errors import UserError
from jaxmm.hf import names, tensor_files, values, weights
from jaxmm.hf.families.family import Family, Layout
from jaxmm.hf.families.registry import FAMILIES, family_of
from jaxmm.hf.names import Rule
from jaxmm.json_text import parse_json
from jaxmm.models.multimodal import ModelSpec, abstract_params, flat_axes, holdings, kernel_dims
from jaxmm.models.tree import flat

CONFIG = "config.json"
LONGEST = 400  # characters, of an error of transformers
HEAD = "vision.head."  # the pooling head of a tower

Path_ = names.Path


def is_folder(folder: Path) -> bool:
    """Whether a folder looks like a Hugging Face model, and not like a run's workdir."""
    config = folder / CONFIG
    if not config.is_file():
        return False
    try:
        return "model_type" in parse_json(config.read_text())
    except (ValueError, TypeError):
        return False


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)]


def read_config(folder: Path) -> Any:
    """The folder's config, as ``transformers`` reads it; no code of the folder is run.

    Raises:
      UserError: if it is not there, is broken, or is of an architecture that ``transformers`` does not know.
    """
    import transformers

    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}: give the folder of a Hugging Face model")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        written = parse_json(path.read_text())
        kind = written.get("model_type", "")
        if kind not in transformers.CONFIG_MAPPING:
            raise UserError(f"{path}: model '{kind}' is not supported: those are {', '.join(FAMILIES)}")
        values.check(written, path)
        for part in (written, *_parts(written)):
            if quantised := part.get("quantization_config") or part.get("compression_config"):
                known = quantised if isinstance(quantised, dict) else {}
                method = known.get("quant_method", "some method")
                raise UserError(f"{path}: weights quantised by {method} are not supported: take the release without")
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"transformers cannot read {path} here ({error.__cause__ or error}): most often torchvision does not "
            f"go with torch: install the one that does, or uninstall it"
        ) from error
    except Exception as error:  # transformers checks values with errors of many kinds
        told = " ".join(str(error).split())[:LONGEST] or type(error).__name__
        raise UserError(f"{path} cannot be read: {told}") from error


@contextlib.contextmanager
def of_folder(folder: Path) -> Iterator[None]:
    """Adds the folder to errors about its config."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # values of unexpected types
        raise UserError(f"{folder / CONFIG} has values that do not go together: {error}") from error


def is_tied(folder: Path, tied: bool) -> bool:
    """Whether the vocabulary projection is the embedding; False if a folder says so but has two tensors that differ."""
    if not tied or not tensor_files.is_there(folder):
        return tied
    checkpoint = tensor_files.Checkpoint(folder)
    by_common = {names.common_name(name): name for name in checkpoint.entries}
    if names.HEAD not in by_common or names.EMBEDDING not in by_common:
        return tied
    return checkpoint.are_equal(by_common[names.HEAD], by_common[names.EMBEDDING])


class Whole(NamedTuple):
    """What the config of a whole model's folder says: its family, its layout, and ``config.json`` itself."""

    family: Family
    layout: Layout
    config: dict[str, Any]


def read_whole(folder: Path) -> Whole:
    """Reads the config of a whole model. Whether its embeddings are tied is corrected by the tensors."""
    config = read_config(folder)
    with of_folder(folder):
        family = family_of(config)
        layout = family.layout(config)
    config_dict, decoder = config.to_dict(), layout.spec.decoder
    config_dict.pop("_name_or_path", None)  # the folder's place on this machine
    if is_tied(folder, decoder.tie_embeddings) != decoder.tie_embeddings:
        decoder = dataclasses.replace(decoder, tie_embeddings=False)
        layout = layout._replace(spec=dataclasses.replace(layout.spec, decoder=decoder))
        config_dict["tie_word_embeddings"] = config_dict["text_config"]["tie_word_embeddings"] = False
    return Whole(family, layout, config_dict)


# From a parameter's path and shape to its sharding; it is also asked for the parts of quantised ones.
ShardingOf = Callable[[Path_, tuple[int, ...]], Any]


class Read(NamedTuple):
    """What was read: the parameters by path, and the names of the tensors that our model does not use."""

    params: dict[Path_, jax.Array]
    spare: list[str]


def read_model(folder: Path, layout: Layout, where: ShardingOf) -> Read:
    """Reads a whole model."""
    return _read(folder, layout.rules, layout.spec, lambda path: True, where, kept=layout.kept)


def read_decoder(folder: Path, rules: Sequence[Rule], spec: ModelSpec, where: ShardingOf) -> Read:
    """Reads the decoder of ``spec`` from a language model's folder."""
    return _read(folder, rules, spec, lambda path: path[0] == "decoder", where, others=names.BESIDE_DECODER)


def read_tower(folder: Path, rules: Sequence[Rule], spec: ModelSpec, where: ShardingOf) -> Read:
    """Reads the tower of ``spec`` from a vision model's folder, or from one that has a text tower too."""

    return _read(folder, rules, spec, lambda path: path[0] == "vision", where, _of_tower, names.OTHERS)


def read_audio_tower(folder: Path, rules: Sequence[Rule], spec: ModelSpec, where: ShardingOf) -> Read:
    """Reads the audio tower of ``spec`` from a folder of its own, of a model that hears, or of a whole Whisper."""
    return _read(
        folder, rules, spec, lambda path: path[0] == "audio", where, _of_audio_tower, names.BESIDE_AUDIO
    )  # fmt: skip


def _of_audio_tower(name: str) -> str:
    """The common spelling of a name in the folder of an audio tower: of itself, or of Whisper's encoder."""
    common = names.common_name(name)
    if common.startswith("audio.") or names.is_beside_audio(common):
        return common
    return f"audio.{re.sub(r'^(model[.])?encoder[.]', '', name)}"


def _of_tower(name: str) -> str:
    """The common spelling of a name in a tower's own folder."""
    common = names.common_name(name)
    return common if common.startswith("vision.") or names.is_other(common) else f"vision.{name}"


def _read(
    folder: Path, rules: Sequence[Rule], spec: ModelSpec, is_read: Callable[[Path_], bool], where: ShardingOf,
    spelling: weights.Spelling = names.common_name, others: Sequence[str] = (), kept: Sequence[str] = (),
) -> Read:  # fmt: skip
    parameters = {
        path: (shape, where(path, shape)) for path, (shape, _) in flat_axes(spec.plain).items() if is_read(path)
    }  # fmt: skip
    arrays = flat(abstract_params(spec)) if spec.frozen else {}
    held = {}
    for path, one in holdings(spec).items():
        parts = {name: arrays[*path, name] for name in one.names}
        if path in parameters:
            places = {name: (x.shape, x.dtype, where((*path, name), x.shape)) for name, x in parts.items()}
            held[path] = weights.Held(one, places)
    vocabulary = [("decoder", "embedding"), ("decoder", "head"), ("decoder", "layer_inputs", "embedding")]
    if is_tied(folder, spec.decoder.tie_embeddings):
        others = [*others, names.HEAD]  # a copy of the embedding
    checkpoint = tensor_files.Checkpoint(folder)
    params_and_spare = weights.read_params(
        checkpoint, rules, parameters, spelling=spelling, others=others, grows=vocabulary, held=held, kept=kept
    )  # fmt: skip
    return Read(*params_and_spare)


def outgoing(
    layout: Layout, params: Mapping[Path_, Any], dtype: Any, spare: Path | None = None
) -> Iterator[weights.Outgoing]:
    """The tensors of a whole model, as its layout names them.

    Args:
      spare: a safetensors file of the tensors that our model does not use.
    """
    inputs = {path: len(into) for path, (into, _) in kernel_dims(layout.spec).items()}
    written = {tuple(path.split(".")) for rule in layout.rules for path in rule.paths}
    if lost := sorted(set(params) - written):
        raise UserError(
            f"this layout has no tensor for {'.'.join(lost[0])}, and {len(lost) - 1} more: they would be lost"
        )
    for tensor in weights.outgoing(params, layout.rules, inputs, dtype):
        yield tensor._replace(name=names.foreign_name(tensor.name, layout.prefixes))
    if spare is not None and spare.exists():
        with tensor_files.opened(spare) as opened:
            for name in opened.keys():  # noqa: SIM118
                value = opened.get_tensor(name)
                yield weights.Outgoing(name, value.nbytes, functools.partial(np.asarray, value))


def save_spare(source: Path, spare: Sequence[str], file: Path) -> None:
    """Saves the tensors that our model does not use, bit for bit."""
    if not spare:
        return
    checkpoint = tensor_files.Checkpoint(source)
    tensor_files.write_file(file, {name: np.asarray(checkpoint.raw(name)) for name in spare})


def save_spare_of_tower(source: Path, spare: Sequence[str], layout: Layout, file: Path) -> None:
    """As ``save_spare``, for a tower's own folder, under the names that the whole model gives them.

    The pooling head is left out: the whole model's config says that there is none.
    """
    if not spare:
        return
    checkpoint = tensor_files.Checkpoint(source)
    kept = [name for name in spare if not _of_tower(name).startswith(HEAD)]
    tensors = {names.foreign_name(_of_tower(n), layout.prefixes): np.asarray(checkpoint.raw(n)) for n in kept}
    if tensors:
        tensor_files.write_file(file, tensors)
