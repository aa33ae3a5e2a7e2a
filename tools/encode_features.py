"""The same as ``python -m jaxmm.encode_features``, for scripts that call it by this name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("jaxmm.encode_features", run_name="__main__", alter_sys=True)
