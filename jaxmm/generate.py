"""Greedy answers to prompts with images, as a command and for the samples of a run.

python -m jaxmm.generate --workdir=runs/base --image=cat.png --prompt="What is this?"
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmm import command, sharding
from jaxmm.batch import Batch, ImageSpec
from jaxmm.data.assemble import Assembler
from jaxmm.data.documents import Image, Part, Text, Turn
from jaxmm.data.plan import Budgets, Lengths, Piece
from jaxmm.data.prepared import InMemory
from jaxmm.data.text import Template
from jaxmm.errors import UserError
from jaxmm.models.multimodal import Compute, make_model
from jaxmm.parameters import saved_params
from jaxmm.recipe import read_recipe


class Prompt(NamedTuple):
    """What the user says: images first, then text."""

    images: tuple[Image, ...]
    text: str

    def turn(self) -> Turn:
        parts: tuple[Part, ...] = (*self.images, Text(self.text)) if self.text else self.images
        return Turn("user", parts, False)


def prompt_batch(prompts: Sequence[Prompt], template: Template, image: ImageSpec, max_tokens: int) -> tuple[Batch, Any]:
    """One prompt a row, with room for ``max_tokens`` after it; returns the Batch and each prompt's length.

    Raises:
      UserError: if an image cannot be read.
    """
    encoded = [template.encode_prompt((prompt.turn(),)) for prompt in prompts]
    source = InMemory("prompts", encoded, [prompt.images for prompt in prompts], template.fingerprint)
    lengths = Lengths(source, image)
    longest = int(lengths.tokens_E.max()) + max_tokens
    group = image.merge**2
    budgets = Budgets(
        tokens=-(-longest // 64) * 64,
        patches=-(-max(int(lengths.patches_E.max()), 64) // (16 * group)) * 16 * group,
        items=max(1, int(lengths.items_E.max())),
        targets=1,
    )
    rows = [[Piece(0, i, 0, int(length))] for i, length in enumerate(lengths.tokens_E)]
    loaded = Assembler([lengths], budgets, image)(rows)
    if loaded.skipped:
        raise UserError(f"{loaded.skipped[0].origin}: {loaded.skipped[0].reason}")
    # The answer's positions belong to the document from the start: causal attention keeps them unseen till written.
    inside = np.arange(budgets.tokens)[None] < (lengths.tokens_E + max_tokens)[:, None]
    positions = loaded.batch.text.positions.copy()
    for row, length in zip(positions, lengths.tokens_E, strict=True):  # what is written goes on after the prompt
        row[length:] = row[:length].max(initial=-1) + 1 + np.arange(len(row) - length)[:, None]
    text = loaded.batch.text._replace(segments=inside.astype(np.int32), positions=positions)
    return loaded.batch._replace(text=text), np.asarray(lengths.tokens_E, np.int32)


def make_generator(model_spec, compute: Compute, stop_ids: Sequence[int]) -> Callable[..., jax.Array]:
    """Builds ``generate(params, batch, lengths, max_tokens) -> tokens (B, T)``, compiled for each shape.

    The vision tower runs once; the decoder runs over the whole row for each token.
    """
    _, apply = make_model(model_spec)
    stops = jnp.array(list(stop_ids), jnp.int32)

    @functools.partial(jax.jit, static_argnums=3)
    def generate(params, batch: Batch, lengths_B, max_tokens: int):
        soft_BSD = apply(params, batch, compute, method="soft_tokens")
        rows = jnp.arange(lengths_B.shape[0])

        def more(carry):
            written, _, stopped_B = carry
            return (written < max_tokens) & ~stopped_B.all()

        def write(carry):
            written, tokens_BT, stopped_B = carry
            now = batch._replace(text=batch.text._replace(values=tokens_BT))
            hidden_BTD = apply(params, now, soft_BSD, compute, method="hidden")
            last_BD = hidden_BTD[rows, lengths_B + written - 1].astype(jnp.float32)
            chosen_B = (last_BD @ apply(params, method="projection").T).argmax(-1).astype(jnp.int32)
            chosen_B = jnp.where(stopped_B, stops[0], chosen_B)
            tokens_BT = tokens_BT.at[rows, lengths_B + written].set(chosen_B)
            return written + 1, tokens_BT, stopped_B | (chosen_B[:, None] == stops).any(-1)

        start = jnp.int32(0), batch.text.values, jnp.zeros(lengths_B.shape, bool)
        return lax.while_loop(more, write, start)[1]

    return generate


def answers(
    generate: Callable[..., jax.Array],
    params: Any,
    prompts: Sequence[Prompt],
    template: Template,
    image: ImageSpec,
    max_tokens: int,
) -> list[str]:
    """The model's answer to each prompt, as text up to the first stop token."""
    batch, lengths = prompt_batch(prompts, template, image, max_tokens)
    tokens_BT = np.asarray(generate(params, batch, lengths, max_tokens))
    found = []
    for tokens, length in zip(tokens_BT, lengths, strict=True):
        written = tokens[length : length + max_tokens].tolist()
        stop = next((i for i, token in enumerate(written) if token in template.stop_ids), len(written))
        found.append(template.decode(written[:stop]))
    return found


FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to ask"),
    "image": ((), "pictures, comma between them; may be left out"),
    "prompt": ("", "what to ask"),
    "max_tokens": (64, "longest answer, in tokens"),
    "step": (0, "checkpoint to ask; 0 is the newest"),
}


def main(argv: list[str]) -> int:
    """Prints the model's greedy answer to one prompt."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "")
    if not args.prompt and not args.image:
        raise UserError("nothing to answer: give --prompt, --image or both")
    if args.max_tokens < 1:
        raise UserError(f"--max_tokens is {args.max_tokens}: it must be at least 1")
    pictures = []
    for name in args.image:
        if not Path(name).is_file():
            raise UserError(f"--image {name}: there is no such file")
        pictures.append(Image(path=str(Path(name).resolve())))
    recipe = read_recipe(args.config, Path(args.workdir))
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = saved_params(Path(args.workdir), recipe, mesh, args.step or None)
        generate = make_generator(recipe.model, recipe.compute, recipe.template.stop_ids)
        prompt = Prompt(tuple(pictures), args.prompt)
        print(answers(generate, params, [prompt], recipe.template, recipe.image, args.max_tokens)[0])
    return 0


if __name__ == "__main__":
    command.run(main)
