"""Documents with images for parity: as one packed row of ours, and one by one as each family of ``transformers`` wants.

Written without the data side's code, whose order of patches and positions it is the oracle of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmm.batch import Batch, Mixed, Stream
from jaxmm.models.multimodal import ModelSpec
from parities.squares import Squares, drawn, reading_order
from parities.tiny.parts import IMAGE_TOKEN, QWEN, TEXT_TOKENS, Case


class Words(NamedTuple):
    ids: np.ndarray


class Picture(NamedTuple):
    pixels: np.ndarray  # uint8 (height, width, 3), whole merge groups
    row_break: int = 0  # the token between two rows of soft tokens; 0 is none


Document = list[Words | Picture | Squares]


def documents(
    spec: ModelSpec,
    rng: np.random.Generator,
    grid: int = 0,
    images: Sequence[int] = (1, 2, 0),
    row_break: int = 0,
    sizes: Sequence[Sequence[int]] = (),
    most: int = 0,
) -> list[Document]:
    """Documents with so many pictures each, text around them.

    Args:
      grid: patches on a side of every picture; 0 is pictures of mixed aspect ratio.
      row_break: as in ``Picture``.
      sizes: (height, width) in pixels of the squares that are read as one picture; () is pictures of one tile.
      most: above 0, so many squares' worth of soft tokens are read at most, and several pictures are one square each.
    """

    def words(low: int, high: int) -> Words:
        return Words(rng.integers(*TEXT_TOKENS, rng.integers(low, high)))

    def picture(count: int) -> Picture | Squares:
        vision, connector = spec.seeing
        side, merge = vision.patch_size, connector.merge
        if sizes:
            return drawn(rng, sizes, most, whole=most > 0 and count > 1)
        rows, columns = (grid,) * 2 if grid else (int(n) * merge for n in rng.integers(1, 5, 2))
        # On a CPU torch gives all rows of a square that it resizes to one column the first row's values.
        # Mistral 3's class takes one soft token alone for a vector of many.
        columns = columns if grid else max(columns, 2 * merge if row_break else 2)
        return Picture(rng.integers(0, 256, (rows * side, columns * side, 3)).astype(np.uint8), row_break)

    return [
        [part for _ in range(count) for part in (words(2, 6), picture(count))] + [words(3, 8)] for count in images
    ]  # fmt: skip


def suffix(document: Document) -> int:
    """Tokens behind the prefix, of a model that sees a prefix whole: half of those behind the last picture."""
    last = document[-1]
    assert isinstance(last, Words)
    return len(last.ids) // 2


def travelling_order(rows: int, columns: int, merge: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Raster indices of patches as they travel, and, for soft tokens in raster order, the place of each one's group."""
    groups = [(a, b) for a in range(rows // merge) for b in range(columns // merge)]
    side = window // merge if window else max(rows, columns)
    travelling = sorted(groups, key=lambda group: (group[0] // side, group[1] // side, *group))
    patches = [
        (a * merge + i) * columns + b * merge + j for a, b in travelling for i in range(merge) for j in range(merge)
    ]
    place = {group: n for n, group in enumerate(travelling)}
    return np.array(patches), np.array([place[group] for group in groups])


def cut(pixels: np.ndarray, side: int) -> np.ndarray:
    """(patches in raster order, side * side * 3)."""
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // side, side, width // side, side, 3).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(-1, side * side * 3)


def tile_patches(pixels: np.ndarray, spec: ModelSpec, number: int) -> list[tuple[np.ndarray, list[int], int]]:
    """(values, position, segment) of each patch of tile ``number``, of its class tokens, and of what fills their
    group."""
    vision, connector = spec.seeing
    side = vision.patch_size
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    pixels = pixels[: rows * side, : columns * side]  # a tower does not see the rest
    order, _ = travelling_order(rows, columns, connector.merge, vision.window)
    tokens = [
        (values, [0, index // columns, index % columns], number)
        for index, values in zip(order.tolist(), cut(pixels, side)[order], strict=True)
    ]
    nothing = np.zeros(side * side * 3, np.uint8)
    tokens += [(nothing, [0, -1, k], number) for k in range(vision.class_tokens)]
    return tokens + [(nothing, [0, 0, 0], 0)] * (-len(tokens) % connector.merge**2)


def packed(documents: Sequence[Document], spec: ModelSpec) -> Batch:
    """All documents in one row, each text position but a document's last a target."""
    (vision, connector), axes = spec.seeing, spec.decoder.text_axes
    side, merge, group = vision.patch_size, connector.merge, connector.merge**2
    text: list[tuple[int, list[int], int, int, int, int, float]] = []
    patches: list[tuple[np.ndarray, list[int], int]] = []
    grids: list[list[int]] = []
    mixed: dict[int, list[tuple[int, float]]] = {}
    for number, document in enumerate(documents, start=1):
        at, first = 0, len(text)
        for part in document:
            if isinstance(part, Words):
                for token in part.ids:
                    text.append((int(token), [at] * axes, number, -1, 0, 0, 0.0))
                    at += 1
                continue
            if isinstance(part, Squares):
                starts = []
                for tile in part.tiles:
                    starts.append(len(patches) // group + int(connector.newline))
                    patches += tile_patches(tile, spec, len(grids) + 1)
                    grids.append([1, tile.shape[0] // side, tile.shape[1] // side])
                across = grids[-1][1] // merge
                for soft in reading_order(part, across):
                    taken = [(starts[tile] + row * across + column, part) for (tile, row, column), part in soft]
                    mixed[len(text)] = taken
                    text.append((0, [at] * axes, number, taken[0][0] if taken else 0, len(grids), 0, 0.0))
                    at += 1
                continue
            rows, columns = part.pixels.shape[0] // side, part.pixels.shape[1] // side
            _, slots = travelling_order(rows, columns, merge, vision.window)
            start = len(patches) // group
            grids.append([1, rows, columns])
            patches += tile_patches(part.pixels, spec, len(grids))
            for n, slot in enumerate(slots):
                row, column = divmod(n, columns // merge)
                if part.row_break and row and not column:
                    text.append((part.row_break, [at] * axes, number, -1, 0, 0, 0.0))
                    at += 1
                place = [at] if axes == 1 else [at, at + row, at + column]
                text.append((0, place, number, start + int(slot), len(grids), 0, 0.0))
                at += axes == 1
            at += 0 if axes == 1 else max(rows, columns) // merge
        said = first
        if spec.decoder.prefix_blocks:
            said = len(text) - suffix(document)
            text[first:said] = [(*one[:4], 1, *one[5:]) for one in text[first:said]]
        for i in range(first, len(text) - 1):
            if text[i + 1][3] < 0 and i + 1 >= said:  # a soft token is no target, nor what a prefix sees
                text[i] = (*text[i][:5], text[i + 1][0], 1.0)
    nothing = np.zeros(side * side * 3, np.uint8)
    patches += [(nothing, [0, 0, 0], 0)] * (-len(patches) % (16 * group) or 16 * group * (not patches))
    text += [(0, [0] * axes, 0, -1, 0, 0, 0.0)] * (-len(text) % 16)
    values, places, segments = (np.stack(x)[None] for x in zip(*patches, strict=True))
    tokens, positions, numbers, slots, blocks, targets, weights = (np.array(x)[None] for x in zip(*text, strict=True))
    return Batch(
        text=Stream(_int(tokens), _int(positions), _int(numbers)),
        patches=Stream(values, _int(places), _int(segments)),
        grids_BM3=_int(np.array([grids or [[0, 0, 0]]])),
        slots_BT=_int(slots),
        blocks_BT=_int(blocks),
        targets_BT=_int(targets),
        weights_BT=weights.astype(np.float32),
        sources_BT=np.zeros(tokens.shape, np.int32),
        mixed=_mixed(mixed, len(text)) if connector.newline else None,
    )


def _mixed(taken: dict[int, list[tuple[int, float]]], length: int) -> Mixed:
    """The rows of the soft-token table behind the first one, with all weights, of the positions that have some."""
    others, weights = np.zeros((1, length, 3), np.int32), np.zeros((1, length, 4), np.float32)
    weights[..., 0] = 1
    for at, parts in taken.items():
        if len(parts) > 1:
            rows, own = (np.array(x) for x in zip(*parts, strict=True))
            others[0, at, : len(rows) - 1], weights[0, at, : len(own)] = rows[1:], own
    return Mixed(others, weights)


def _int(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int32)


def alone(document: Document, case: Case, spec: ModelSpec) -> dict[str, Any]:
    """One document as the arguments of the family's model."""
    import torch

    vision, connector = spec.seeing
    side, merge = vision.patch_size, connector.merge
    ids: list[int] = []
    kinds: list[int] = []
    for part in document:
        if isinstance(part, Words):
            ids += part.ids.tolist()
            kinds += [0] * len(part.ids)
        elif isinstance(part, Squares):
            ids += [IMAGE_TOKEN for _ in reading_order(part, part.tiles.shape[1] // side // merge)]
        else:
            count = part.pixels.shape[0] // side // merge * (part.pixels.shape[1] // side // merge)
            row = part.pixels.shape[1] // side // merge
            placed = [IMAGE_TOKEN] * count
            if part.row_break:
                placed = ([*[IMAGE_TOKEN] * row, part.row_break] * (count // row))[:-1]
            ids += placed
            kinds += [1] * len(placed)
    inputs = {"input_ids": torch.tensor([ids])}
    if case.family in (*QWEN, "gemma4", "paddleocr_vl"):
        inputs["mm_token_type_ids"] = torch.tensor([kinds])
    if case.family == "gemma3":
        inputs["token_type_ids"] = torch.tensor([kinds])
    if case.family == "paligemma":
        behind = suffix(document)
        inputs["token_type_ids"] = torch.tensor([[0] * (len(ids) - behind) + [1] * behind])
    squares = [part for part in document if isinstance(part, Squares)]
    if squares:  # the whole picture comes first, and pictures are filled up to as many tiles
        values = np.zeros((len(squares), max(len(part.tiles) for part in squares), *squares[0].tiles.shape[1:]))
        for i, part in enumerate(squares):
            values[i, : len(part.tiles)] = (np.roll(part.tiles, 1, axis=0) / 255 - 0.5) / 0.5
        inputs["pixel_values"] = torch.tensor(values.transpose(0, 1, 4, 2, 3), dtype=torch.float32)
        inputs["image_sizes"] = torch.tensor([[part.height, part.width] for part in squares])
        if squares[0].most:
            inputs["batch_num_images"] = torch.tensor([len(squares)])
        return inputs
    pictures = [(part.pixels / 255 - 0.5) / 0.5 for part in document if isinstance(part, Picture)]
    if not pictures:
        return inputs
    shapes = [[p.shape[0] // side, p.shape[1] // side] for p in pictures]
    if case.family == "lfm2_vl":
        longest = max(rows * columns for rows, columns in shapes)
        values, mask = np.zeros((len(pictures), longest, side * side * 3)), np.zeros((len(pictures), longest), int)
        for i, picture in enumerate(pictures):
            patches = cut(picture, side)
            values[i, : len(patches)], mask[i, : len(patches)] = patches, 1
        inputs["pixel_values"] = torch.tensor(values, dtype=torch.float32)
        inputs["pixel_attention_mask"], inputs["spatial_shapes"] = torch.tensor(mask), torch.tensor(shapes)
    elif case.family == "gemma4":
        longest = max(rows * columns for rows, columns in shapes)
        values = np.zeros((len(pictures), longest, side * side * 3))
        places = np.full((len(pictures), longest, 2), -1)
        for i, (picture, (rows, columns)) in enumerate(zip(pictures, shapes, strict=True)):
            values[i, : rows * columns] = cut((picture + 1) / 2, side)
            places[i, : rows * columns] = [[n % columns, n // columns] for n in range(rows * columns)]
        inputs["pixel_values"] = torch.tensor(values, dtype=torch.float32)
        inputs["image_position_ids"] = torch.tensor(places)
    elif case.family in QWEN:
        flat = []
        for picture, (rows, columns) in zip(pictures, shapes, strict=True):
            order, _ = travelling_order(rows, columns, merge, 0)  # it puts windows together itself
            blocks = picture.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
            frames = np.repeat(blocks.reshape(rows * columns, 3, 1, side, side)[order], vision.frames, axis=2)
            flat.append(frames.reshape(rows * columns, -1))
        inputs["pixel_values"] = torch.tensor(np.concatenate(flat), dtype=torch.float32)
        inputs["image_grid_thw"] = torch.tensor([[1, *shape] for shape in shapes])
    elif case.family == "paddleocr_vl":
        cuts = [cut(picture, side).reshape(-1, side, side, 3).transpose(0, 3, 1, 2) for picture in pictures]
        inputs["pixel_values"] = torch.tensor(np.concatenate(cuts), dtype=torch.float32)
        inputs["image_grid_thw"] = torch.tensor([[1, *shape] for shape in shapes])
    elif case.family in ("idefics3", "smolvlm"):  # (batch, pictures, ...)
        inputs["pixel_values"] = torch.tensor(np.stack(pictures).transpose(0, 3, 1, 2)[None], dtype=torch.float32)
    elif case.family in ("mistral3", "llava_pixtral"):  # pictures are padded to one size
        height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
        padded = [np.pad(p, [(0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)]) for p in pictures]
        inputs["pixel_values"] = torch.tensor(np.stack(padded).transpose(0, 3, 1, 2), dtype=torch.float32)
        inputs["image_sizes"] = torch.tensor([p.shape[:2] for p in pictures])
    else:
        inputs["pixel_values"] = torch.tensor(np.stack(pictures).transpose(0, 3, 1, 2), dtype=torch.float32)
    return inputs
