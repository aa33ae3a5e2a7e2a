"""One side of the comparison with PyTorch, in a process of its own: it steps when it is asked to, see ``serving``.

cd tools; python -m peer.side --side=torch-float32 --folder=FOLDER
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "--side=jaxmm" in sys.argv:
    from jaxmm.runtime import startup

    startup.use_huge_pages()  # as train does; may start this process again

from collections.abc import Callable
from pathlib import Path

from jaxmm import command
from jaxmm.measure.case import PeerCase
from peer.serving import Stepped, run_side

SIDES = ("jaxmm", "torch-float32", "torch-bf16", "torch-compiled")


def make(case: PeerCase, folder: Path, seed: int) -> None:
    """Saves the model that all sides start from, and the data where they have loaders."""
    from peer import torch_side

    torch_side.make(case, folder / "model", seed)
    if case.loader:
        from jaxmm.measure import case_data

        case_data.write(case, folder, seed)


def begin(name: str, case: PeerCase, folder: Path, seed: int) -> Callable[[], Stepped]:
    """The step of a side."""
    if name == "jaxmm":
        from peer.jaxmm_side import Ours

        ours = Ours(case, folder / "model", seed)
        return lambda: Stepped(ours.step(), ours.costs)

    from peer.torch_side import Peer

    step = Peer(case, folder / "model", seed, name.removeprefix("torch-")).step
    return lambda: Stepped(step())


def main(argv: list[str]) -> int:
    """Answers until standard input ends."""
    return run_side(argv, __doc__ or "", SIDES, PeerCase.load, make, begin)


if __name__ == "__main__":
    command.run(main)
