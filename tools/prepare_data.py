"""The same as ``python -m jaxmm.prepare``, for scripts that call it by this name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("jaxmm.prepare", run_name="__main__", alter_sys=True)
