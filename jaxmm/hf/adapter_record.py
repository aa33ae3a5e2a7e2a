"""The adapters that a run goes on from: what ``adapter.json`` in its workdir keeps, so that it is found again.

Of adapters that a run made itself its config says everything. These come from elsewhere, and the folder may go.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm.atomic import read_json, write_json
from jaxmm.errors import UserError
from jaxmm.models.adapters import AdapterSpec

FILE, FORMAT = "adapter.json", 1


class Begun(NamedTuple):
    """Adapters that a run goes on from.

    Attributes:
      source: ``config.adapter.init_from``.
      spec: of the adapters.
      whole: patterns of the parameters that were trained whole beside them, and go on so.
      told: lines for people; they are not kept.
    """

    source: str
    spec: AdapterSpec
    whole: tuple[str, ...] = ()
    told: tuple[str, ...] = ()


def keep(workdir: Path, begun: Begun | None) -> None:
    """Notes the adapters; None removes what a start that never came to a save has left."""
    if begun is None:
        (workdir / FILE).unlink(missing_ok=True)
        return
    spec = dataclasses.asdict(begun.spec)
    write_json(workdir / FILE, {"format": FORMAT, "source": begun.source, "spec": spec, "whole": list(begun.whole)})


def kept(workdir: Path) -> Begun | None:
    """What a run notes; None for a run whose adapters are its own."""
    if not (workdir / FILE).exists():
        return None
    noted: dict[str, Any] = read_json(workdir / FILE)
    if noted.get("format") != FORMAT:
        raise UserError(f"{workdir / FILE} is damaged, or of a newer version of jaxmm: it says what the adapters are")
    spec = dict(noted["spec"])
    spec |= {key: tuple(spec[key]) for key in ("targets", "frozen") if key in spec}
    spec["ranks"] = tuple((str(pattern), int(rank), float(alpha)) for pattern, rank, alpha in spec["ranks"])
    return Begun(str(noted["source"]), AdapterSpec(**spec), tuple(noted["whole"]))
