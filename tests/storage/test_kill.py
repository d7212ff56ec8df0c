"""Processes killed with SIGKILL at any moment, and started again by the same command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import slt_jax as slt
from tests.helpers import same_bits
from tests.storage import program

ROOT = Path(__file__).parents[2]


class Command:
    """The command, which every process of a test is started by."""

    def __init__(self, folder, num_draws):
        self.num_draws = num_draws
        self.store = slt.Store(folder / "store")
        self.out = folder / "out.npz"
        self.cache = folder / "compiled"

    def start(self):
        words = [str(self.store.path), str(self.out), str(self.num_draws)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.storage.program", *words],
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                # Later processes spend their time on sampling.
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=subprocess.PIPE,
        )

    @property
    def step(self):
        """The step of the newest checkpoint."""
        folders = (self.store.path / "checkpoints").glob("*")
        return max((int(f.name) for f in folders if f.name.isdigit()), default=0)

    @property
    def is_saving(self):
        return any((self.store.path / "checkpoints").glob("unfinished-*"))

    def kill_when(self, ready):
        """Start the command and kill it as soon as ``ready``; tell whether it was alive."""
        with self.start() as running:
            assert running.stdout.readline() == b"begins\n"
            while running.poll() is None and not ready():
                time.sleep(0.0005)
            running.send_signal(signal.SIGKILL)
            running.wait(timeout=60)
            return running.returncode == -signal.SIGKILL

    def finish(self):
        with self.start() as running:
            assert running.wait(timeout=600) == 0
        return dict(np.load(self.out))


def check_incomplete(command):
    assert not command.out.exists()
    if (command.store.path / "run.zarr" / "zarr.json").exists():
        assert command.store.status.startswith("incomplete: at step")
        root = json.loads((command.store.path / "run.zarr" / "zarr.json").read_text())
        assert root["attributes"]["completed"] is False
    else:
        assert command.store.status == "empty"


def check_finish(command):
    """The same command once more: it ends with the arrays of a run that nothing interrupted."""
    found = command.finish()
    expected = program.arrays(program.run_in(None, command.num_draws))
    assert found.keys() == expected.keys()
    assert [name for name in found if not same_bits(found[name], expected[name])] == []
    assert command.store.status.startswith(f"complete: {command.num_draws} draws")


class Moment:
    """A moment to kill a process: so long after it made a checkpoint, or amid a save after that."""

    def __init__(self, command, goal, pause, amid_save=False):
        self.command = command
        self.goal = goal
        self.pause = pause
        self.amid_save = amid_save

    def __call__(self):
        if self.command.step < self.goal:
            return False
        time.sleep(self.pause)
        self.pause = 0
        return self.command.is_saving or not self.amid_save


def test_killed_three_times(tmp_path):
    """Twice at random, once in the middle of a save."""
    command, generator = Command(tmp_path, num_draws=200), random.Random(0)
    for amid_save in (False, False, True):
        goal = command.step + generator.randrange(1, 50)
        moment = Moment(command, goal, generator.uniform(0, 0.2), amid_save)
        assert command.kill_when(moment)
        assert command.step >= goal
        check_incomplete(command)
    check_finish(command)


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path):
    """From the start of the process on; every third time while something is saved."""
    command, generator = Command(tmp_path, num_draws=800), random.Random(1)
    num_saving = 0
    for number in range(20):
        before, kind = command.step, number % 3
        # A kind of moments comes before the first step: nothing is gained, nothing may be lost.
        goal = 0 if kind == 0 else before + generator.randrange(1, 50)
        pause = generator.uniform(0, 2 if kind == 0 else 0.2)
        assert command.kill_when(Moment(command, goal, pause, amid_save=kind == 2))
        check_incomplete(command)
        assert command.step >= max(before, goal)
        num_saving += command.is_saving
    print(f"killed 20 times, {num_saving} of them during a save, up to step {command.step}")
    assert num_saving >= 5
    check_finish(command)
