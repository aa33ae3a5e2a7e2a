"""Serves the figures of a run to Prometheus, one gauge a figure: ``http://HOST:PORT/metrics``."""

from __future__ import annotations

import errno
import importlib.util
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jaxmm
from jaxmm.errors import UserError, extra
from jaxmm.training.gauges import PREFIX, samples


class Endpoint:
    """Answers with the newest value of each figure, from a thread of its own, until it is closed.

    A figure stays until a line of the log has another in its place, or says that it is not known: those of an
    evaluation stay until the next one.

    Args:
      host, port: where it listens; '' is every address of the machine.
      run: name of the run, for ``jaxmm_run_info``.

    Raises:
      UserError: if the package is missing, or the address cannot be had.
    """

    def __init__(self, host: str, port: int, run: str) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise UserError(f"config.log.prometheus is set, and its package is not installed: {extra('prometheus')}")
        from prometheus_client import CollectorRegistry, start_http_server

        self._run, self._figures = run, dict[str, Any]()
        registry = CollectorRegistry()
        registry.register(self)  # type: ignore[arg-type]
        try:
            self._server, self._thread = start_http_server(port, host or "0.0.0.0", registry)
        except (OSError, UnicodeError) as error:  # the latter for a name that no host can have
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"config.log.prometheus: {host}:{port}: {why}; {_way_out(error)}") from error
        named = f"[{host}]" if ":" in host else host or "localhost"
        self.url = f"http://{named}:{port}/metrics"

    def add(self, step: int, steps: int, figures: Mapping[str, Any]) -> None:
        """Takes the nested figures of a line of the log; ``steps``: of the whole run."""
        self._figures = {**self._figures, "step": step, "steps": steps, "time": time.time(), **figures}

    def collect(self) -> Iterator[Any]:
        """The gauges, as ``prometheus_client`` asks for them at each scrape."""
        from prometheus_client.core import GaugeMetricFamily

        info = GaugeMetricFamily(f"{PREFIX}run_info", "the run and its version; always 1", labels=["run", "version"])
        info.add_metric([self._run, jaxmm.__version__], 1.0)
        yield info
        families: dict[str, Any] = {}
        for gauge, labels, value in samples(self._figures):
            if gauge.name not in families:
                families[gauge.name] = GaugeMetricFamily(PREFIX + gauge.name, gauge.help, labels=gauge.labels)
            families[gauge.name].add_metric(labels, value)
        yield from families.values()

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _way_out(error: Exception) -> str:
    """What to do where an address cannot be listened at."""
    if isinstance(error, UnicodeError | socket.gaierror) or (
        isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
    ):
        return "give a name or an address of this machine, or a port alone"
    if isinstance(error, PermissionError):
        return "give a port from 1024 on"
    return "give another port, or end what listens there"
