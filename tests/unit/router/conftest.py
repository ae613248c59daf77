from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from render_process import Renderer, renderer_process


@pytest.fixture(scope="session")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Renderer]:
    folder: Path = tmp_path_factory.mktemp("renderer")
    with renderer_process(folder) as process:
        yield process
