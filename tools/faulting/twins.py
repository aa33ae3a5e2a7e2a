"""Two ``train`` in one workdir: one trains to its end as if it were alone, the other says in a line who it is."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

from faulting.bench import LIMIT, STEPS, Bench, metrics
from faulting.moments import Moment, after
from faulting.trial import HANDLED, LINE, SILENT, Trial, judged


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    workdir = bench.place() / "run"
    argv = bench.train_arguments(workdir)
    step = rng.randrange(STEPS - 2)
    moment = Moment(f"after step {step}", lambda: str(step) in metrics(workdir)[0], 0) if step else after(rng.random())
    with bench.start("-m", "jaxmm.train", *argv) as one:
        moment.wait(one, LIMIT * bench.slack)
        one.send(signal.SIGSTOP)  # so that it has not ended when the other comes
        with bench.start("-m", "jaxmm.train", *argv) as other:
            ends = [other.ended(LIMIT * bench.slack)]
        one.send(signal.SIGCONT)
        ends.append(one.ended(LIMIT * bench.slack))
    found = sorted((judged(ended) for ended in ends), key=lambda each: each[0] != HANDLED)
    (verdict, told), (other_verdict, other_told) = found
    if verdict == HANDLED and (why := bench.wrong_run(workdir)):
        verdict, told = SILENT, why
    if verdict == HANDLED and other_verdict != HANDLED:  # one that came after the other's end finds a finished run
        verdict, told = other_verdict, other_told
    if verdict == LINE and "is being trained in" not in told:
        verdict = SILENT
    yield Trial("", f"a second train {moment.what}", verdict, told)
