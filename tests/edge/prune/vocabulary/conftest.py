"""A tokenizer trained once, and a copy of it for every test to change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from vocabulary_helpers import train


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return train()


@pytest.fixture
def data(trained: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(trained)
