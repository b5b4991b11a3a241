from __future__ import annotations

from collections.abc import Iterator

import pytest

from optimizer.telemetry.logs import log


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """
    Wards log every step; a property test makes thousands of them.
    """
    log.disable("optimizer.supervisor.ward")
    yield
    log.enable("optimizer.supervisor.ward")
