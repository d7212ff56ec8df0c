"""Options from a file: they stand before what is typed, and a bad file is one line."""

import pytest

from slt_jax import cli
from slt_jax.commands.config import expand

YAML = (
    "n_beta: 3.5\ncomponent: [l0h1, l1]\nprobe:\n  code: a.npy\n  prose: b.npy\nprogress: false\n"
)


def test_yaml_is_like_toml(tmp_path):
    pytest.importorskip("yaml", reason="needs pyyaml")
    (tmp_path / "a.yaml").write_text(YAML)
    toml = 'n-beta = 3.5\ncomponent = ["l0h1", "l1"]\nprogress = false\n'
    toml += '[probe]\ncode = "a.npy"\nprose = "b.npy"\n'
    (tmp_path / "a.toml").write_text(toml)
    from_yaml = expand(["llc", f"--config={tmp_path / 'a.yaml'}"])
    from_toml = expand(["llc", "--config", str(tmp_path / "a.toml")])
    assert sorted(from_yaml) == sorted(from_toml)
    assert from_yaml[:4] == ["llc", "--n-beta=3.5", "--component=l0h1", "--component=l1"]


def test_what_is_typed_wins(tmp_path):
    (tmp_path / "a.toml").write_text('model = "m"\ndata = "d.npy"\ndraws = 7\nseed = 1\n')
    words = expand(["llc", "--draws", "9", "--config", str(tmp_path / "a.toml")])
    arguments = cli.build_parser().parse_args(words)
    assert (arguments.draws, arguments.seed, arguments.model) == (9, 1, "m")


def test_nothing_to_expand():
    assert expand([]) == []
    assert expand(["llc", "--draws", "9"]) == ["llc", "--draws", "9"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "draws = [", "cannot be read as TOML"),
        ("a.toml", "draws = [[1]]", "draws must be a number, a text"),
        ("a.toml", "probe = {code = {}}", "probe must be a number, a text"),
        ("a.json", "{}", "a configuration is written as .toml, .yaml or .yml"),
        ("a.yaml", "- 1\n", "must hold options by name, got list"),
        ("a.yaml", "a: [", "cannot be read as YAML"),
    ],
)
def test_bad_files(tmp_path, capsys, name, content, message):
    if name.endswith(".yaml"):
        pytest.importorskip("yaml", reason="needs pyyaml")
    (tmp_path / name).write_text(content)
    assert cli.main(["llc", "--config", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slt-jax llc: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere.toml"], "there is no configuration file nowhere.toml"),
        (["--config"], "--config needs the name of a file"),
    ],
)
def test_missing_files(capsys, words, message):
    assert cli.main(["llc", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_option_in_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "a.toml").write_text('model = "m"\ndata = "d.npy"\nchanis = 4\n')
    with pytest.raises(SystemExit, match="2"):
        cli.main(["llc", "--config", str(tmp_path / "a.toml")])
    assert "--chanis=4" in capsys.readouterr().err
