"""Signals at any moment of a run, one or two: it must end by itself, and what it leaves must go on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

from faulting.bench import LIMIT, Bench
from faulting.moments import of_train
from faulting.trial import HANDLED, LINE, SILENT, Trial, judged

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    workdir = bench.place() / "run"
    argv = bench.train_arguments(workdir)
    moment = of_train(rng, workdir, bench.folder / "cache")
    sent = [rng.choice(SIGNALS) for _ in range(rng.choice((1, 1, 2)))]
    what = f"{' and '.join(number.name for number in sent)} {moment.what}"
    with bench.start("-m", "jaxmm.train", *argv) as process:
        moment.wait(process, LIMIT * bench.slack)
        for number in sent:
            process.send(number)
            time.sleep(rng.uniform(0, 0.3))
        ended = process.ended(LIMIT * bench.slack)
    if ended.status in {status for number in sent for status in (128 + number, -number)}:
        ended = ended._replace(status=0)
    verdict, told = judged(ended)
    if verdict in (HANDLED, LINE):
        after, why = judged(bench.run("jaxmm.train", argv), lambda: bench.wrong_run(workdir))
        if after != HANDLED:
            verdict, told = (SILENT if after == LINE else after), f"started again: {why}"
    yield Trial("", what, verdict, told)
