"""Adapters of experts as PEFT has them (``target_parameters``): one of a parameter that all experts of a layer are.

Its first factor is that of all experts above each other, (experts * rank, inputs). Columns of the second are by rank,
then by expert: (outputs, rank * experts). PEFT wraps the module of experts once for each parameter that is adapted, in
the order in which the class has them; a wrapper's name does not say which parameter it is of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from jaxmm.errors import UserError
from jaxmm.hf.map_names import NamedMap
from jaxmm.hf.peft_layers import Factors

INNER = ".base_layer"  # behind a module's name: what its outer wrapper wraps


def wrappers(module: str, adapted: int) -> list[str]:
    """Names of the wrappers of a module of which so many parameters are adapted, in the order of these."""
    return [module + INNER * depth for depth in reversed(range(adapted))]


def joined(experts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The factors of all experts, (rank, inputs) and (outputs, rank) of each, as those of one adapter."""
    into, out = np.concatenate([into for into, _ in experts]), np.stack([out for _, out in experts], -1)
    return into, out.reshape(len(out), -1)


def split(whole: Factors, experts: int) -> Iterator[Factors]:
    """The inverse."""
    assert whole.into is not None
    assert whole.out is not None
    into = whole.into.reshape(experts, -1, whole.into.shape[-1])
    out = whole.out.reshape(len(whole.out), -1, experts)
    for expert in range(experts):
        yield Factors(whole.name, into[expert], out[:, :, expert])


def by_parameter(
    by_module: Mapping[str, Factors], maps: Sequence[NamedMap], targets: Collection[str], folder: object
) -> dict[str, Factors]:  # fmt: skip
    """Factors by module, in the common spelling, with those of experts by the parameter that they are of.

    Args:
      targets: ``target_parameters`` of the folder's config: whole names, or the ends of some.

    Raises:
      UserError: where a module has more wrappers or fewer than parameters that ``targets`` mean.
    """
    by_wrapped: dict[str, list[NamedMap]] = {}
    for one in maps:
        if one.experts:
            by_wrapped.setdefault(one.module, []).append(one)
    by_name, wrapped = dict[str, Factors](), dict[tuple[str, str], list[str]]()
    patterns = {
        module: re.compile(re.escape(module).replace(re.escape("{i}"), r"(\d+)") + rf"(?:{re.escape(INNER)})*")
        for module in by_wrapped
    }
    for name, factors in by_module.items():
        match = next(((module, m[1]) for module, p in patterns.items() if (m := p.fullmatch(name))), None)
        if match is None:
            by_name[name] = factors
        else:
            wrapped.setdefault(match, []).append(name)
    for (module, number), wrappers_of in wrapped.items():
        meant = [one for one in by_wrapped[module] if _is_meant(one.name.replace("{i}", number), targets)]
        expected = wrappers(module.replace("{i}", number), len(meant))
        if set(expected) != set(wrappers_of):
            names = " and ".join(one.name.replace("{i}", number) for one in meant) or "none of its parameters"
            raise UserError(
                f"{folder}: {by_module[wrappers_of[0]].name} has {len(wrappers_of)} adapters of experts, and "
                f"target_parameters mean {names}: save the adapters again"
            )
        for one, wrapper in zip(meant, expected, strict=True):
            factors = by_module[wrapper]
            name = one.common.replace("{i}", number)
            by_name[name] = Factors(one.name.replace("{i}", number), factors.into, factors.out, factors.magnitude)
    return by_name


def _is_meant(name: str, targets: Collection[str]) -> bool:
    """As PEFT finds parameters."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
