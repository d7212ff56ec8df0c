"""One run that nothing interrupted, and one store that was left in the middle."""

import shutil

import pytest

import slt_jax as slt
from tests.helpers import numbers
from tests.helpers import sample as sample_whole
from tests.storage.interruption import STEP_BY_STEP, interrupt_at

# Scripts that write fixtures need packages that the tests do without.
collect_ignore_glob = ["make_*.py"]


@pytest.fixture(scope="session")
def whole():
    """The numbers of the uninterrupted run."""
    return numbers(sample_whole(execution=STEP_BY_STEP))


@pytest.fixture(scope="session")
def _left(tmp_path_factory):
    store = slt.Store(tmp_path_factory.mktemp("store") / "left", every_draws=8)
    interrupt_at(store, 27)
    return store.path


@pytest.fixture
def left(_left, tmp_path):
    """A store whose run ended at step 27, with checkpoints at steps 16 and 24."""
    shutil.copytree(_left, tmp_path / "left")
    return slt.Store(tmp_path / "left", every_draws=8)


@pytest.fixture(scope="session")
def _complete(tmp_path_factory):
    store = slt.Store(tmp_path_factory.mktemp("store") / "complete", every_draws=16)
    sample_whole(store=store, execution=STEP_BY_STEP)
    return store.path


@pytest.fixture
def complete(_complete, tmp_path):
    """A store whose run is complete."""
    shutil.copytree(_complete, tmp_path / "complete")
    return slt.Store(tmp_path / "complete", every_draws=16)
