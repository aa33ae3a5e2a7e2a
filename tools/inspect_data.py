"""The same as ``python -m jaxmm.inspect``, for scripts that call it by this name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("jaxmm.inspect", run_name="__main__", alter_sys=True)
