"""The budgets of a row, by name: those of text, and those of the media in the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxmm.data.media.table import MEDIA
from jaxmm.image_spec import ImageSpec

# Checkpoints and saved lengths keep budgets in this order; the budgets of a new medium come after these.
FIRST = ("tokens", "patches", "items", "targets", "features")
PAIRS = "pairs"  # the budget of preferences: how many of them a row holds, each an answer and one to compare it with


def further_budgets(media: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the budgets that the given media add to FIRST, in the order of the table."""
    named = [name for key, medium in MEDIA.items() if key in media for name in medium.budgets]
    return tuple(dict.fromkeys(name for name in named if name not in FIRST))


def budgets_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The budgets that a prepared source takes of, by its meta.json: FIRST, those of its media, and PAIRS."""
    return (*FIRST, *further_budgets(meta.get("media", ())), *((PAIRS,) if meta.get("preferences") else ()))


def multiples(name: str, spec: ImageSpec) -> list[int]:
    """What the budget of a stream must be multiples of, so that it holds whole soft tokens; [] for other budgets."""
    return [medium.group(spec) for medium in MEDIA.values() if medium.stream == name]


class Budgets(tuple[int, ...]):
    """The most that a row holds: a tuple of numbers, each with a name.

    Attributes:
      names: of the numbers: FIRST, then those of further media, and PAIRS.
      tokens: text positions, soft tokens included; patches; items: tiles; targets; features: ready-made vectors. A
        budget is 0 if no source needs it.
    """

    names: tuple[str, ...]

    def __new__(cls, tokens: int, patches: int, items: int, targets: int, features: int = 0, **further: int) -> Budgets:
        """``further``: budgets beyond FIRST, by name. Raises TypeError for a name that nothing takes of."""
        known = (*further_budgets(MEDIA), PAIRS)
        for name in further:
            if name not in known:
                raise TypeError(f"nothing takes of a budget '{name}'")
        added = [name for name in known if name in further]
        made = super().__new__(cls, (tokens, patches, items, targets, features, *(further[name] for name in added)))
        made.names = (*FIRST, *added)
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), self._asdict()

    def __repr__(self) -> str:
        return f"Budgets({', '.join(f'{name}={number}' for name, number in self._asdict().items())})"

    tokens = property(lambda self: self[0])
    patches = property(lambda self: self[1])
    items = property(lambda self: self[2])
    targets = property(lambda self: self[3])
    features = property(lambda self: self[4])

    def get(self, name: str) -> int:
        """Returns one budget; 0 if it is not there."""
        return self[self.names.index(name)] if name in self.names else 0

    def of(self, names: Sequence[str]) -> tuple[int, ...]:
        """Returns several budgets, each as ``get`` does."""
        return tuple(self) if names == self.names else tuple(map(self.get, names))

    def _replace(self, **changed: int) -> Budgets:
        return Budgets(**(self._asdict() | changed))

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self.names, self, strict=True))

    @classmethod
    def most(cls, several: Sequence[Budgets]) -> Budgets:
        """The largest of each budget."""
        names = {name: None for budgets in several for name in budgets.names}
        return cls(**{name: max(budgets.get(name) for budgets in several) for name in names})
