"""The folder that an export writes, whole or not at all, and the dtypes of its weights."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from jaxmm.errors import UserError

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@contextlib.contextmanager
def whole_or_none(output: Path) -> Iterator[Path]:
    """A folder that gets the name ``output`` when it is whole; of one that is not nothing stays.

    Raises:
      UserError: if it cannot be written.
    """
    half = output.with_name(output.name + ".unfinished")
    try:
        if half.exists():
            shutil.rmtree(half)
        half.mkdir(parents=True)
        yield half
        if output.exists():
            output.rmdir()
        os.replace(half, output)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"--output {output} could not be written ({reason}); nothing of it is left") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
