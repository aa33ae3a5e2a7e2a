"""What must be proven before a run begins: that an attention backend which no run takes by itself is right here."""

from __future__ import annotations

from jaxmm.checks import attention, proof
from jaxmm.checks.row import RIGHT, one_line
from jaxmm.errors import UserError

BACKENDS = ("hopper",)


def require_attention(backend: str, dtype: str) -> str:
    """Holds a backend of BACKENDS against float64, forward and backward, unless that was done on this machine before.

    Returns:
      A line that says so; '' for other backends.
    Raises:
      UserError: if it is wrong, or fails.
    """
    if backend not in BACKENDS:
        return ""
    if proof.is_kept(backend, dtype):
        return f"attention by '{backend}' was right on this machine before: {proof.place(backend, dtype)}"
    rows = list(attention.rows(backend, dtype))
    if bad := [row for row in rows if row.verdict != RIGHT]:
        told = one_line(f"{bad[0].what}: {bad[0].verdict}, {bad[0].told}")
        raise UserError(
            f"config.compute.attention={backend} is not right on this machine, in {len(bad)} of {len(rows)} cases "
            f"beside float64 ({told}): take 'fused' or 'blocks', and see `jaxmm check --part=attention-{backend}`"
        )
    return f"attention by '{backend}' is right on this machine: {len(rows)} cases beside float64, forward and backward"
