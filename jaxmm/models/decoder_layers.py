"""The layers of a decoder, which may be of several kinds: what they are made of, and how they run in turn.

A component of layers (their attention, their MLP, a norm) is one module whose parameters have a leading dim: of the
layers that have it, in their order. So a path means the same whatever kinds there are: ``decoder.blocks.attention`` is
all attention, ``decoder.blocks.mlp`` all MLPs, ``decoder.blocks.experts`` those of all layers that have experts.

Layers run under scans over patterns that repeat: (convolution, convolution, attention) three times is one scan of three
steps, compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import lax

from jaxmm.models.block import Layer, component
from jaxmm.models.decoder_spec import COMPONENTS, DecoderSpec
from jaxmm.models.layers import checkpointed, stack

Call = Callable[[Layer, Any, Any], Any]  # (layer, carry, what differs besides parameters) to carry


class Block(nnx.Module):
    """One layer, where all are of one kind."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        for name in COMPONENTS:
            setattr(self, name, component(name, spec, rngs) if spec.layers_of(name) else None)


class MixedBlocks(nnx.Module):
    """Layers of several kinds: each component stacked over the layers that have it."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        for name in COMPONENTS:
            count = len(spec.layers_of(name))
            setattr(self, name, stack(count, functools.partial(component, name, spec), rngs) if count else None)


def make_blocks(spec: DecoderSpec, rngs: nnx.Rngs) -> Any:
    """All layers, each component with a leading dim of the layers that have it."""
    if all(len(spec.layers_of(name)) in (0, spec.layers) for name in COMPONENTS):
        return stack(spec.layers, lambda r: Block(spec, rngs=r), rngs)
    return MixedBlocks(spec, rngs=rngs)


class Run(NamedTuple):
    """A pattern of layers that repeats: ``pattern`` layers, ``repeats`` times, from layer ``first`` on."""

    first: int
    pattern: int
    repeats: int


def runs_of(kinds: Sequence[Hashable]) -> list[Run]:
    """Cuts layers into runs, first to last: the longest there is from each on, and of these the shortest pattern."""
    runs, at = list[Run](), 0
    while at < len(kinds):
        best = Run(at, 1, 1)
        for pattern in range(1, (len(kinds) - at) // 2 + 1):
            repeats = 1
            while kinds[at + repeats * pattern : at + (repeats + 1) * pattern] == kinds[at : at + pattern]:
                repeats += 1
            if repeats > 1 and pattern * repeats > best.pattern * best.repeats:
                best = Run(at, pattern, repeats)
        runs.append(best)
        at += best.pattern * best.repeats
    return runs


class Stacks:
    """The components of layers, split into what is static and their parameters."""

    def __init__(self, blocks: nnx.Module, spec: DecoderSpec):
        self.kinds = spec.kinds()
        self.parts = {
            name: nnx.split(module) for name in COMPONENTS if (module := getattr(blocks, name)) is not None
        }  # fmt: skip
        self._places = {name: {n: place for place, n in enumerate(spec.layers_of(name))} for name in self.parts}

    def layer(self, number: int) -> dict[str, Any]:
        """The parameters of one layer, by component."""
        return self._taken({name: at[number] for name, at in self._places.items() if number in at})

    def first_of(self, name: str) -> Any:
        """The component of the first layer that has it."""
        return self.merged(self._taken({name: 0}))[name]

    def _taken(self, places: Mapping[str, int]) -> dict[str, Any]:
        return {name: jax.tree.map(lambda x, n=n: x[n], self.parts[name][1]) for name, n in places.items()}

    def merged(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Components from their parameters."""
        return {name: nnx.merge(self.parts[name][0], state) for name, state in states.items()}

    def run(self, run: Run) -> tuple[dict[str, Any], list[dict[str, int]]]:
        """The parameters of a run, each with leading dims (repeats, of the component in the pattern), and where in the
        latter each layer of the pattern has its own. A dim of 1 is left out."""
        states, where = dict[str, Any](), [dict[str, int]() for _ in range(run.pattern)]
        for name, (_, state) in self.parts.items():
            mine = [n for n in range(run.pattern) if run.first + n in self._places[name]]
            if not mine:
                continue
            start, count = self._places[name][run.first + mine[0]], len(mine)

            def cut(x: jax.Array, start: int = start, count: int = count) -> jax.Array:
                x = x if x.shape[0] == count * run.repeats else x[start : start + count * run.repeats]
                return x if count == 1 else x.reshape(run.repeats, count, *x.shape[1:])

            states[name] = jax.tree.map(cut, state)
            for place, n in enumerate(mine):
                where[n][name] = place if count > 1 else -1
        return states, where


def apply_layers(
    stacks: Stacks, carry: Any, call: Call, remat: str, unroll: int, each: Any, stop: int | None = None, start: int = 0
) -> Any:  # fmt: skip
    """Runs ``carry`` through the layers from ``start`` to ``stop`` in turn: ``call(layer, carry, each of it)``.

    Args:
      remat: a key of ``layers.REMAT``, of each layer.
      unroll: layers per scan iteration.
      each: a pytree of arrays with a leading dim of layers: what differs between them, besides parameters.
    """

    def one(states: dict[str, Any], carry: Any, mine: Any) -> Any:
        return call(Layer(**stacks.merged(states)), carry, mine)

    one = checkpointed(one, remat)
    for one_run in runs_of(stacks.kinds[start:stop]):
        run = one_run._replace(first=one_run.first + start)
        end = run.first + run.pattern * run.repeats
        if run.repeats == 1:
            mine = jax.tree.map(lambda x, n=run.first: x[n], each)
            carry = one(stacks.layer(run.first), carry, mine)
            continue
        states, where = stacks.run(run)
        cut = jax.tree.map(
            lambda x, run=run, end=end: x[run.first : end].reshape(run.repeats, run.pattern, *x.shape[1:]), each
        )

        def body(carry: Any, taken: Any, where: Any = where) -> Any:
            states, mine = taken
            for n, places in enumerate(where):
                own = {
                    name: states[name] if place < 0 else jax.tree.map(lambda x, n=place: x[n], states[name])
                    for name, place in places.items()
                }
                carry = one(own, carry, jax.tree.map(lambda x, n=n: x[n], mine))
            return carry, None

        carry, _ = lax.scan(body, carry, (states, cut), unroll=max(1, unroll // run.pattern))
    return carry


def places_in_stacks(kinds: Sequence[Hashable]) -> np.ndarray:
    """int32 (layers,): of each layer, how many before it are of its kind."""
    return np.array([kinds[:n].count(kind) for n, kind in enumerate(kinds)], np.int32)
