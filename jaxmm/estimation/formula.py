"""What a step needs, by its shapes: of GPUs, and where nobody waits for a compiler. All figures are a formula's."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

WIDE = ("embedding", "head")  # parameters whose gradients are summed in float32
# The parts that a gradient reaches through each; through the decoder, all.
BEFORE: dict[str, tuple[str, ...]] = {
    "vision": (), "connector": ("vision",), "audio": (), "audio_connector": ("audio",)
}  # fmt: skip


def total_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes."""
    import jax

    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def shard_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    import jax

    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))


def by_formula(
    program: Any, budgets: Any, rows: int, accumulation: int, mesh: Any, platform: str = "gpu"
) -> dict[str, Any]:  # fmt: skip
    """Memory of a device, and what it sends.

    The state, gradients, with several microbatches also those of one of them beside the sum, and what the forward pass
    keeps; then the larger of two: the head with its gradient and a chunk of logits, or one layer that is recomputed,
    with its parameters gathered, or dequantised. What is kept is counted by JAX, and taken to be split over the devices
    of ``data``, ``fsdp``, ``expert`` and ``context``, and what lies between two maps of a layer over ``tensor``, as
    ``split.share`` says; what a fused kernel or a compiler saves of it is not known here, nor are slots that a CPU
    leaves empty behind the choices of each expert. With remat "offload" a device keeps what "full" does, and its host
    the rest.

    Args:
      rows: of the global batch.
      platform: of the devices that the mesh's stand for.
    """
    from jaxmm.models.multimodal import holdings
    from jaxmm.training.loss import LOGITS, LOGITS_ELSEWHERE

    recipe, state = program.recipe, program.abstract_state(mesh)
    shards = math.prod(mesh.shape[axis] for axis in ("data", "fsdp", "expert", "context"))
    at_once = rows // accumulation
    trained = recipe.trainable.split(state.params)[0]
    decoder = recipe.model.decoder
    head = decoder.vocab_size * decoder.width // mesh.shape["tensor"]
    logits = 4 * budgets.targets * -(-at_once // shards) * decoder.vocab_size
    name = ("decoder", "embedding" if decoder.tie_embeddings else "head")
    of_head = _copied(recipe, state.params["decoder"][name[-1]], mesh) + 4 * recipe.trainable.learns(name)
    chunk = min(logits, LOGITS.get(platform, LOGITS_ELSEWHERE)) // mesh.shape["tensor"]
    # The logits and their gradient, and on a CPU what is between them, which compilers for the others fuse.
    of_loss = head * of_head + (3 * chunk if platform == "cpu" else chunk + chunk * _item(recipe) // 4)
    kept, again, offloaded = _kept_of_row(program, budgets, mesh)
    of_slots, of_gradients = _slot_bytes(recipe, budgets.tokens, mesh)
    if recipe.compute.remat == "none" and of_slots:
        kept += _kept_of_slots(recipe, budgets.tokens, mesh) * len(decoder.layers_of("experts"))
    again += of_gradients + of_slots * (recipe.compute.remat != "none")
    is_quantized = any(one.is_quantized for one in holdings(recipe.model).values())
    of_layer = again * at_once // shards + (_layer_bytes(recipe, state.params, mesh) if again or is_quantized else 0)
    gradients = shard_bytes(trained)
    figures = {
        "gradient_bytes": gradients,
        "microbatch_gradient_bytes": gradients * (accumulation > 1),
        "kept_bytes": kept * at_once // shards,
        "host_bytes": offloaded * at_once // shards,
        "loss_bytes": of_loss,
        "layer_made_again_bytes": of_layer,
    }
    activations = figures["microbatch_gradient_bytes"] + figures["kept_bytes"] + max(of_loss, of_layer)
    return {
        "source": "formula, nothing compiled",
        **figures,
        "activation_bytes": activations,
        "peak_bytes": shard_bytes(state) + gradients + activations,
        "sent_bytes": sent_by_formula(recipe, state.params, budgets, rows, accumulation, mesh),
    }


def _item(recipe: Any) -> int:
    """Bytes of an activation."""
    return 4 if recipe.compute.dtype == "float32" else 2


def _kept_of_row(program: Any, budgets: Any, mesh: Any) -> tuple[int, int, int]:
    """Bytes of a row that a device keeps for the backward pass, those of one layer that it makes again or gets from the
    host, of the larger kind, and those that are kept in the host's memory."""
    import dataclasses

    import jax

    from jaxmm.estimation.split import share
    from jaxmm.models.multimodal import abstract_params, make_model
    from jaxmm.models.tree import joined
    from jaxmm.training.program import abstract_batch

    recipe, model = program.recipe, share(program.recipe.model, mesh.shape["tensor"])
    params = abstract_params(model)
    _, apply = make_model(model)

    def of_row(remat: str, parts: list[str]) -> int:
        compute = dataclasses.replace(recipe.compute, remat=remat)
        trained, fixed = recipe.trainable.split(params)
        still = {part: trained.pop(part) for part in list(trained) if part not in parts}
        fixed = joined(fixed, still)

        def kept(trained: Any, fixed: Any, batch: Any) -> Any:
            return jax.vjp(lambda trained: apply(joined(trained, fixed), batch, compute), trained)[1]

        one, two = (  # what does not grow with rows is parameters
            total_bytes(jax.eval_shape(kept, trained, fixed, abstract_batch(recipe, budgets, rows, mesh)))
            for rows in (1, 2)
        )
        return two - one

    parts = list(recipe.trainable.split(params)[0])
    behind = [part for part in parts if part not in ("vision", "audio")]
    remat = recipe.compute.remat
    is_offloaded = remat == "offload"
    if is_offloaded:
        remat = "full"
    kept = of_row(remat, parts)
    if remat == "none":
        return kept, 0, 0
    offloaded = of_row("offload", parts) - kept if is_offloaded else 0
    recompute = of_row("none", parts) - kept
    of_decoder = of_row("none", behind) - of_row(remat, behind) if behind else 0
    layers = max((tower.layers for tower in (model.vision, model.audio) if tower), default=1)
    return kept, max(of_decoder // model.decoder.layers, (recompute - of_decoder) // layers, 0), offloaded


def _copied(recipe: Any, x: Any, mesh: Any) -> int:
    """Bytes of a number of a parameter in the copy that is computed with: 0 where it is held as that, and whole."""
    is_whole = mesh.shape["fsdp"] == 1
    return 0 if is_whole and str(x.dtype) == recipe.compute.dtype else _item(recipe)


def _layer_bytes(recipe: Any, params: Any, mesh: Any) -> int:
    """The largest layer's parameters, whole in the dtype of activations, and gradients of those that learn."""
    from jaxmm.models.multimodal import flat_axes, holdings
    from jaxmm.models.tree import flat

    by_path, quantized = flat(params), {path for path, one in holdings(recipe.model).items() if one.is_quantized}
    sizes: dict[tuple[str, int], int] = defaultdict(int)
    for path, (shape, names) in flat_axes(recipe.model.plain).items():
        if "blocks" in path:
            copied = _item(recipe) if path in quantized else _copied(recipe, by_path[path], mesh)
            size = math.prod(shape[1:]) * (copied + _item(recipe) * recipe.trainable.learns(path))
            size //= math.prod(mesh.shape[axis] for axis in _split_over(names, shape, mesh) & {"tensor", "expert"})
            for layer in recipe.model.decoder.layers_of(path[2]) if path[0] == "decoder" else (0,):
                sizes[path[0], layer] += size
    return max(sizes.values())


def _split_over(names: Any, shape: Any, mesh: Any) -> set[str]:
    """The axes of the mesh that a parameter is split over."""
    from jaxmm import sharding

    entries = sharding.partition(names, shape, mesh)
    return {axis for entry in entries for axis in ((entry,) if isinstance(entry, str) else entry or ())}


def _slots(recipe: Any, mesh: Any) -> tuple[int, int]:
    """(slots of a position, the part of an expert's width that a device has).

    Where experts are split over devices, each has room for all choices of all of them that it may be sent.
    """
    experts, tensor = recipe.model.decoder.experts, mesh.shape["tensor"]
    slots = mesh.shape["expert"] * min(experts.chosen, experts.count // mesh.shape["expert"])
    return slots, experts.mlp // tensor if experts.mlp % tensor == 0 else experts.mlp


def _slot_bytes(recipe: Any, tokens: int, mesh: Any) -> tuple[int, int]:
    """Of a row in a layer of experts: what slots hold beyond one for each choice, and the gradients of all slots.

    A slot holds what goes into its expert, three times the expert's width, and what comes out.
    """
    decoder = recipe.model.decoder
    if decoder.experts is None:
        return 0, 0
    slots, width = _slots(recipe, mesh)
    of_slot = _item(recipe) * tokens * (2 * decoder.width + 3 * width)
    return (slots - decoder.experts.chosen) * of_slot, slots * of_slot


def _kept_of_slots(recipe: Any, tokens: int, mesh: Any) -> int:
    """Of a row in a layer of experts: what the backward pass keeps beyond a slot for each choice, without remat.

    JAX keeps of a slot what each operation's derivative takes: more than what a layer holds that is made again. Where
    devices of ``expert`` make a part of each position's sum, each keeps what experts give to the choices of all.
    """
    import jax

    from jaxmm.models.experts import through_slots
    from jaxmm.models.grouped import Groups, Maps
    from jaxmm.models.layers import activation

    decoder, split = recipe.model.decoder, mesh.shape["expert"]
    (slots, width), k = _slots(recipe, mesh), decoder.experts.chosen

    def of(slots: int) -> int:
        def kept(x: Any, groups: Any, *kernels: Any) -> Any:
            def through(x: Any, gate: Any, up: Any, down: Any) -> Any:
                return through_slots(x, groups, (Maps(gate), Maps(up), Maps(down)), activation(decoder.activation))

            return jax.vjp(through, x, *kernels)[1]

        def shape(*shape: int, dtype: Any = recipe.compute.dtype) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        groups = Groups(shape(1, dtype="int32"), shape(1, dtype="int32"))
        into, out = shape(1, decoder.width, width), shape(1, width, decoder.width)
        return total_bytes(jax.eval_shape(kept, shape(slots, decoder.width), groups, into, into, out))

    of_choices = (split - 1) * k * decoder.width * _item(recipe) if split <= k else 0
    return tokens * ((slots - k) * (of(2) - of(1)) + of_choices)


def _keys_of(tower: Any) -> list[tuple[int, int, int]]:
    """(layers, heads of keys, width of a head) of a tower's attention."""
    return [(tower.layers, tower.heads, tower.width // tower.heads)]


def sent_by_formula(
    recipe: Any, params: Any, budgets: Any, rows: int, accumulation: int, mesh: Any
) -> dict[str, int]:  # fmt: skip
    """Bytes that collectives give a device in a step, by their kind and axis, as ``collectives`` counts them.

    ``fsdp`` gathers the parameters of a layer for its forward and again for its backward pass, all others once, and
    scatters the sums of gradients; ``data`` and ``context`` add these up. ``tensor`` adds up what attention and MLP
    give and, backwards, what they take; so it does for the stem of an audio tower. ``context`` gathers keys and values,
    ``expert`` the positions of a layer, and scatters the sums of what experts give, or sends a row for each choice and
    gets it back.
    Sums of a few numbers, and what Muon's iterations send, are left out. Of quantised parameters the dequantised ones
    are taken to be gathered, but of experts what these are held as.
    """
    from jaxmm.models.multimodal import flat_axes, holdings

    model, compute, sizes, item = recipe.model, recipe.compute, mesh.shape, _item(recipe)
    vision, audio, decoder = model.vision, model.audio, model.decoder
    sent: dict[str, int] = defaultdict(int)

    def send(kind: str, axes: tuple[str, ...], count: int) -> None:
        wide = [axis for axis in axes if sizes[axis] > 1]
        if wide:
            sent[f"{kind} over {'+'.join(wide)}"] += count

    learnt = recipe.trainable.split(params)[0]
    trained = {part: part in learnt for part in params}
    # Whether a gradient goes through a part, and whether it leaves it at its beginning.
    leaves = {
        part: any(on for other, on in trained.items() if other in BEFORE.get(part, params) and other != part)
        for part in params
    }
    passes = {part: trained[part] or leaves[part] for part in params}

    for path, (shape, names) in flat_axes(model.plain).items():
        part, size = path[0], math.prod(shape)
        used = _split_over(names, shape, mesh)
        size //= math.prod(sizes[axis] for axis in ("tensor", "expert") if axis in used)
        is_split = "fsdp" in used and sizes["fsdp"] > 1
        if is_split:
            kind = holdings(model)[path].kind if "expert" in names and path in holdings(model) else ""
            count = size * {"int8": 2, "nf4": 1}.get(kind, 2 * item) // 2  # bytes
            send("all-gather", ("fsdp",), count * (1 + ("blocks" in path and passes[part])))
        if recipe.trainable.learns(path):
            count = size * (4 if path[-1] in WIDE else item)
            count *= 1 + (path[-1] == "embedding" and decoder.tie_embeddings)  # of looking up, and of the loss
            if is_split:
                count //= sizes["fsdp"]
                send("reduce-scatter", ("fsdp",), count)
            rows_over = ("data", *([] if is_split else ["fsdp"]), *([] if "expert" in used else ["expert"]))
            send("all-reduce", (*rows_over, "context"), count)

    at_once = rows // (accumulation * sizes["data"] * sizes["fsdp"] * sizes["expert"])
    here = item * at_once // sizes["context"]  # bytes of one number at each position of a device
    patches, frames = budgets.patches if vision else 0, budgets.get("audio") if audio else 0
    heard = audio.outputs(frames) if audio else 0
    of_frames = heard * audio.pool * audio.width if audio else 0
    soft, of_patches = patches // recipe.image.merge**2 + heard, patches * vision.feature_width if vision else 0
    is_again = compute.remat != "none"
    # (layers, heads of keys, width of a head) of each kind of attention.
    of_decoder = [
        (len(decoder.layers_of(kind)), own.kv_heads, own.head_dim) for kind, own in decoder.attention_sizes().items()
    ]
    of_parts = [
        *([("vision", vision, _keys_of(vision), patches)] if vision else []),
        *([("audio", audio, _keys_of(audio), heard * audio.pool)] if audio else []),
        ("decoder", decoder, of_decoder, budgets.tokens),
    ]
    for part, spec, attentions, positions in of_parts:
        by_heads = spec.layers * (spec.heads % sizes["tensor"] == 0)
        by_mlp = spec.layers * (spec.mlp % sizes["tensor"] == 0)
        if part == "decoder" and decoder.experts:
            hidden = {"mlp": decoder.mlp, "experts": decoder.experts.mlp}
            by_mlp = sum(len(decoder.layers_of(name)) for name, n in hidden.items() if n % sizes["tensor"] == 0)
        sums = by_heads + by_mlp + passes[part] * (by_heads + by_mlp + by_heads * (compute.remat == "full"))
        send("all-reduce", ("tensor",), sums * positions * spec.width * here)
        numbers = 0
        for layers, key_heads, head_dim in attentions:
            numbers += layers * head_dim * key_heads // (sizes["tensor"] if key_heads % sizes["tensor"] == 0 else 1)
        keys = 2 * numbers * positions * item * at_once
        send("all-gather", ("context",), keys * (1 + (is_again and passes[part])))
        send("reduce-scatter", ("context",), keys // sizes["context"] * passes[part])
    if decoder.experts:
        count, k = (
            len(decoder.layers_of("experts")) * budgets.tokens * at_once // sizes["context"],
            decoder.experts.chosen,
        )
        passed, again = passes["decoder"], 1 + passes["decoder"] * is_again
        if sizes["expert"] > k:  # a row for each choice there and back, as a whole: some stay where they are
            send("ragged-all-to-all", ("expert",), 2 * count * k * decoder.width * item * (again + passed))
        else:  # positions and their choices to all devices of the axis, and what these make of them back
            there, back = (decoder.width + k) * item + 4 * k, decoder.width * item
            send("all-gather", ("expert",), count * sizes["expert"] * (there * again + passed * back))
            send("reduce-scatter", ("expert",), count * (back * (1 + passed) + passed * k * item))
    if audio and audio.stem == "whisper" and audio.width % sizes["tensor"] == 0:  # its two convolutions, as an MLP
        sums = 1 + passes["audio"] * (compute.remat == "full")
        send("all-reduce", ("tensor",), sums * of_frames * here)
    # Between the parts: looked-up rows of the embedding, soft tokens, and what goes back from the loss.
    tensor_numbers = (budgets.tokens + soft) * decoder.width + budgets.targets * decoder.width * passes["decoder"]
    of_heard = heard * audio.width if audio else 0
    tensor_numbers += of_patches * leaves.get("connector", False) + of_heard * leaves.get("audio_connector", False)
    send("all-reduce", ("tensor",), tensor_numbers * here)
    seen, hearing, table = (item * at_once * n for n in (of_patches, of_frames, soft * decoder.width))
    send("all-gather", ("context",), seen + hearing + table)
    of_towers = seen * trained.get("vision", False) + hearing * trained.get("audio", False)
    send("all-reduce", ("context",), of_towers + table * leaves["decoder"])
    send("all-to-all", ("context",), budgets.tokens * decoder.width * here * (1 + passes["decoder"]))
    return {name: count * accumulation for name, count in sorted(sent.items(), key=lambda each: -each[1]) if count}
