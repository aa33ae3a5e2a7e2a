"""Kills of ``train`` and ``prepare_data`` at any moment: what is left goes on to the bits of an undisturbed one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from faulting.bench import LIMIT, Bench, contents
from faulting.moments import after, of_train
from faulting.process import ROOT
from faulting.trial import Trial, judged

KILLS = 2  # of a life, where it does not end before
NEVER = "never, as it ended before"
PREPARED = 1500  # documents, without pictures


def train(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """A life: killed, started again, killed again, and then left alone to its end."""
    workdir, cache = bench.place() / "run", bench.place("cache")
    argv = bench.train_arguments(workdir, f"--config.data.cache={cache}")
    moments = []
    for _ in range(KILLS):
        moment = of_train(rng, workdir, cache)
        with bench.start("-m", "jaxmm.train", *argv) as process:
            if moment.wait(process, LIMIT * bench.slack):
                moments.append(moment.what)
    ended = bench.run("jaxmm.train", argv)
    verdict, told = judged(ended, lambda: bench.wrong_run(workdir))
    for what in moments or [NEVER]:
        yield Trial("", f"train killed {what}", verdict, told)


def prepare(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    """The same of a preparation, in one process or several."""
    workers, output = rng.choice((1, 2)), bench.place()
    file = bench.folder / "many.jsonl"
    if not file.exists():
        lines = (json.dumps({"text": f"{number} " + "words " * 40}) + "\n" for number in range(PREPARED))
        file.write_text("".join(lines))
    argv = [f"--input={file}", f"--workers={workers}", "--output="]
    reference = bench.place()
    plain = bench.run("jaxmm.prepare", [*argv[:-1], f"--output={reference}"])
    if plain.status:
        raise RuntimeError(f"a preparation without a fault failed:\n{plain.output}")
    argv[-1] += str(output)
    moments = []
    for _ in range(KILLS):
        moment = after(rng.uniform(0.2, 2))
        with bench.start(str(ROOT / "tools/prepare_data.py"), *argv) as process:
            if moment.wait(process, LIMIT * bench.slack):
                moments.append(moment.what)
    ended = bench.run("jaxmm.prepare", argv)

    def wrong() -> str:
        return "" if contents(output) == contents(reference) else "other bytes than those of an undisturbed one"

    verdict, told = judged(ended, wrong)
    for what in moments or [NEVER]:
        yield Trial("", f"prepare_data with {workers} workers killed {what}", verdict, told)
