"""Tests of jaxmm/data/readers and its door. A package, so that its conftest has a name of its own."""
