"""One side of the comparison with PyTorch, in a process of its own: it steps when it is asked to.

    cd tools; python -m peer.side --side=torch-float32 --folder=FOLDER

The folder has ``case.json`` and, after ``make``, the model. A line "N" on standard input runs N steps and answers with
a line of JSON: seconds of each, their losses, and the process's peak memory.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and "--side=jaxmm" in sys.argv:
    from jaxmm.runtime import startup

    startup.use_huge_pages()  # as train does; may start this process again

import json
import resource
import time
from pathlib import Path

from jaxmm import command
from jaxmm.errors import UserError
from jaxmm.measure.case import PeerCase

SIDES = ("jaxmm", "torch-float32", "torch-bf16", "torch-compiled")
FLAGS: command.Flags = {
    "side": ("jaxmm", f"{', '.join(SIDES)}, or make: saves the model that all start from"),
    "folder": ("", "with case.json, and the model"),
    "seed": (0, "of weights and data"),
}


def main(argv: list[str]) -> int:
    """Answers until standard input ends."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    if args.side not in (*SIDES, "make"):
        raise UserError(f"--side={args.side} is not one of {', '.join(SIDES)}, make")
    folder = Path(args.folder)
    case = PeerCase.load(folder / "case.json")
    if args.side == "jaxmm":
        from peer.jaxmm_side import Ours

        step = Ours(case, folder / "model", args.seed).step
    else:
        from parities.models import let_torchvision_import

        let_torchvision_import()
        from peer import torch_side as peer_torch

        if args.side == "make":
            peer_torch.make(case, folder / "model", args.seed)
            if case.loader:
                from jaxmm.measure import case_data as peer_data

                peer_data.write(case, folder, args.seed)
            return 0
        step = peer_torch.Peer(case, folder / "model", args.seed, args.side.removeprefix("torch-")).step
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            began = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "losses": losses, "peak": peak}), flush=True)
    return 0


if __name__ == "__main__":
    command.run(main)
