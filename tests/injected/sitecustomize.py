"""Python imports this before anything else where this directory is on PYTHONPATH: a fault for a process of a test."""

from tests.faults import install_from_environment

install_from_environment()
