from __future__ import annotations

from pathlib import Path

import pytest
from render_models import make_model

from dualpath_sglang.renderer.model_files import ModelFiles


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder: Path = tmp_path_factory.mktemp("chatml")
    return make_model(folder)
