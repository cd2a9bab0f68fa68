"""Tests that run at once share the cores: one thread each, since threads of torch spin while they wait."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")
