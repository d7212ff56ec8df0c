"""The installed package: its version, its command line, and what importing it costs."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import slt_jax
from slt_jax import cli, quickstart

ROOT = Path(__file__).parent.parent

OPTIONAL = (
    "arviz",
    "flax",
    "huggingface_hub",
    "matplotlib",
    "orbax",
    "pandas",
    "safetensors",
    "sklearn",
    "tokenizers",
    "torch",
    "torchax",
    "transformers",
    "xarray",
    "zarr",
)


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_installed_version_is_the_source_version():
    try:
        installed = importlib.metadata.version("slt-jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("slt-jax is run from its source tree, not installed")
    assert installed == slt_jax.__version__


def test_changelog_has_an_entry_for_this_version():
    assert f"## {slt_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_module_and_console_script_are_the_same_program():
    assert run_python("-m", "slt_jax", "--version") == f"slt-jax {slt_jax.__version__}\n"
    scripts = importlib.metadata.entry_points(group="console_scripts", name="slt-jax")
    assert all(script.load() is cli.main for script in scripts)


def test_import_is_light():
    program = (
        "import json, sys; import slt_jax; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    imported = json.loads(run_python("-c", program))
    assert sorted(set(imported) & set(OPTIONAL)) == []


def test_models_come_with_the_package():
    functions = ("from_hf", "from_linen", "from_nnx", "from_equinox", "from_functions", "save_hf")
    assert all(callable(getattr(slt_jax.models, name)) for name in functions)
    assert slt_jax.Checkpoints.__module__ == "slt_jax.models.checkpoints"


def test_package_is_typed_and_licensed():
    assert (Path(slt_jax.__file__).parent / "py.typed").is_file()
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("mark", ["main-command", "test-command"])
def test_readme_has_the_commands_that_continuous_integration_runs(mark):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(f"^<!-- {mark} -->\n```sh\npython3 -m venv .+\n```$", readme, re.MULTILINE)


def test_readme_pictures_and_links_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", readme) + re.findall(r"`(slt_jax/[\w/]+\.py)`", readme)
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_source_distribution_has_what_the_tests_and_the_documents_need():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [path for path in included if not (ROOT / path[1:]).exists()] == []
    folders = {"/.ci", "/benchmarks", "/docs", "/notebooks", "/slt_jax", "/tests"}
    files = {"/CHANGELOG.md", "/LICENSE", "/Makefile", "/README.md", "/conftest.py"}
    assert set(included) == folders | files


def test_readme_example_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    model, estimate = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(model, names)
    names |= example_problem()
    exec(estimate.replace("num_draws=1000", "num_draws=10"), names)
    assert len(names["result"].per_chain) == 8


def example_problem():
    import jax
    import jax.numpy as jnp

    params = {"first": jnp.zeros((3, 2)), "second": jnp.zeros((2, 2))}
    dataset = (jax.random.normal(jax.random.key(0), (100, 3)), jnp.arange(100) % 2)
    return {"params": params, "dataset": dataset, "num_examples": 100}


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["no-such-command"])
    assert "no-such-command" in capsys.readouterr().err


def test_missing_packages_are_named_with_their_extra(monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "missing_packages", lambda: ["scikit-learn"])
    assert cli.main(["quickstart"]) == 2
    message = capsys.readouterr().err
    assert "scikit-learn" in message
    assert "slt-jax[quickstart]" in message
