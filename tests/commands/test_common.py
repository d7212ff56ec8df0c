"""What the subcommands share: results are written whole or not at all."""

import errno
import os

import pytest

from slt_jax.commands.common import written


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_full_disk_leaves_the_older_results(tmp_path, kind, capsys):
    path = tmp_path / "chi.nc"
    with written(path) as place:
        place.write_text("first")
    assert capsys.readouterr().out == f"Results: {path}\n"

    def write():
        with written(path) as place:
            place.write_text("sec")
            raise kind(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"chi.nc could not be written.*still is .*No space.*--store"):
        write()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out == ""
