"""What all processes of a job must be told, and must find, alike: else their collectives do not fit each other.

Each reads its own flags, its own view of the workdir and its own data. Where one has others, a step would wait for what
never comes, or put arrays of two runs together without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmm import command
from jaxmm.config.keys import flat
from jaxmm.corpus import Corpus
from jaxmm.errors import UserError
from jaxmm.runtime.barrier import Barrier

# What each machine may have for itself: where things lie, which content tells apart, and how fast they are read.
OWN = (
    "init_from", "adapter.init_from", "eval.path", "checkpoint.near_dir", "log.writers", "log.tensorboard",
    "log.prometheus",
    *(f"data.{name}" for name in ("path", "media_dir", "tokenizer", "cache", "threads", "workers", "url_hosts")),
)  # fmt: skip
MOST = 3  # differences that are told


def check_config(config: ConfigDict, **flags: str) -> None:
    """Ends all processes of a job with a line where one has other settings than the first.

    Args:
      flags: of the command, that must be the same.
    """
    keys = {f"--{name}": value for name, value in flags.items()}
    keys |= {f"config.{key}": value for key, value in flat(command.to_json(config)).items() if key not in OWN}
    _check(keys, "the settings", "has other settings than process 0", "give all processes the same command")


def check_start(found: Mapping[str, Any]) -> None:
    """Ends all processes of a job with a line where one is about to start from something else than the first.

    Args:
      found: what each has found, of JSON, by its name for people.
    """
    way = "do all machines see the same workdir, data and models?"
    _check(found, "the start", "has found something else than process 0", way)


def contents_of(corpus: Corpus | None, name: str) -> dict[str, str]:
    """The fingerprints of a corpus' sources, as ``check_start`` takes them."""
    sources = corpus.lengths if corpus else ()
    return {f"{name} {source.name}": source.prepared.meta["fingerprint"] for source in sources}


def _check(items: Mapping[str, Any], where: str, what: str, way: str) -> None:
    odd = Barrier(where).odd_one(dict(items), where)
    if odd is None:
        return
    lines = command.differences(odd.first, odd.other)
    told = "; ".join(lines[:MOST]) + (f"; and {len(lines) - MOST} more" if len(lines) > MOST else "")
    raise UserError(f"process {odd.process} {what} ({told}): {way}")
