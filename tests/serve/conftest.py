"""A working folder with a run that is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.common import trained_on_all_kinds


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `houses`."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained_on_all_kinds(folder)
    return folder


@pytest.fixture(autouse=True)
def there(here: None) -> None:
    """The tests work in it."""
