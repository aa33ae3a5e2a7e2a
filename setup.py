"""That ``configs/`` is installed as ``jaxmm.configs``; all else is in pyproject.toml, which cannot say this.

There, a folder that lies elsewhere needs a list of every package, which a new room would have to be added to.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["jaxmm*"]), "jaxmm.configs"],
    package_dir={"jaxmm.configs": "configs"},
)
