"""A training run as a sequence: in order, again and again, two at a time, and all of one tree."""

import dataclasses
import importlib
import inspect
import json
import shutil
import sys
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models import from_hf, save_hf
from slt_jax.models.safetensors_reader import StoredTensor, open_folder
from tests.helpers import unchecked_annotations
from tests.models.references import FIXTURES

STEPS = (0, 20, 1000)


@pytest.fixture
def run(tmp_path):
    """A training run of three steps, whose weights are those of the fixture times 1, 2 and 3."""
    model = from_hf(FIXTURES / "attention_only", dtype="float32")
    for factor, step in enumerate(STEPS, start=1):
        scale = np.float32(factor)
        params = jax.tree.map(lambda leaf, scale=scale: scale * leaf, model.params)
        save_hf(dataclasses.replace(model, params=params), tmp_path / f"step{step}")
    (tmp_path / "logs").mkdir()
    return tmp_path


def one_weight(params):
    return float(params["embed.tok"][0, 0])


def trees(count=3):
    return {step: {"w": np.full(2, step, np.float32)} for step in range(count)}


def test_a_run_is_a_sequence_in_the_order_of_its_steps(run):
    checkpoints = slt.Checkpoints(run)
    assert checkpoints.steps == STEPS
    assert len(checkpoints) == 3
    first = one_weight(from_hf(run / "step0").params)
    for _ in range(2):
        found = [(step, one_weight(params) / first) for step, params in checkpoints]
        assert found == [(0, 1.0), (20, 2.0), (1000, 3.0)]
    assert checkpoints[-1][0] == 1000
    assert one_weight(checkpoints[1][1]) == one_weight(checkpoints.load(20)) == 2 * first
    assert checkpoints[::-2].steps == (1000, 0)
    assert [step for step, _ in checkpoints[1:]] == [20, 1000]
    assert slt.Checkpoints(run, steps=[1000, 0]).steps == (0, 1000)
    assert "3 steps: 0, 20, 1000" in repr(checkpoints)
    with pytest.raises(IndexError):
        checkpoints[3]
    with pytest.raises(ValueError, match="there is no step 5; there are 0, 20, 1000"):
        checkpoints.load(5)


def test_checking_reads_headers_only(run, monkeypatch):
    def refuse(self):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(StoredTensor, "view", refuse)
    arrays = len(jax.live_arrays())
    checkpoints = slt.Checkpoints(run, dtype="bfloat16")
    assert len(jax.live_arrays()) == arrays
    assert {leaf.dtype for leaf in checkpoints.structure.values()} == {jnp.bfloat16.dtype}
    with pytest.raises(AssertionError, match="a tensor was read"):
        checkpoints[0]


def test_one_program_and_one_set_of_components_serve_all(run):
    checkpoints = slt.Checkpoints(run)
    model = checkpoints.model
    ids = jnp.zeros((2, 5), jnp.int32)
    losses = jax.jit(lambda params: model.loss_fn(params, ids))
    for _, params in checkpoints:
        assert losses(params).shape == (2, 4)
    assert losses._cache_size() == 1
    whole = from_hf(run / "step0")
    assert model.components["l0h1"].signature == whole.components["l0h1"].signature
    assert model.axes == whole.axes


def test_at_most_two_checkpoints_are_in_memory(run, monkeypatch):
    references, most = [], []

    def watch(params):
        references.append([weakref.ref(leaf) for leaf in jax.tree.leaves(params)])
        most.append(sum(any(leaf() is not None for leaf in one) for one in references))
        return params

    def load(step):
        return {"w": jnp.full(3, step, jnp.float32)}

    for checkpoints in (slt.Checkpoints(load, steps=range(6)), slt.Checkpoints(run)):
        source = checkpoints._source
        inner = source.load
        monkeypatch.setattr(source, "load", lambda step, inner=inner: watch(inner(step)))
        references.clear()
        most.clear()
        for _, params in checkpoints:
            assert params
        assert max(most) == 2
        assert len(references) == len(checkpoints)
        del params
        assert all(leaf() is None for one in references for leaf in one)


def test_mappings_and_functions():
    calls = []

    def load(step):
        calls.append(step)
        return {"w": np.full(2, step, np.float32)}

    checkpoints = slt.Checkpoints(load, steps=iter([10, 2]))
    assert calls == [2, 10]
    assert [params["w"][0] for _, params in checkpoints] == [2, 10]
    calls.clear()
    shapes = {"w": jax.ShapeDtypeStruct((2,), np.float32)}
    lazy = slt.Checkpoints(load, steps=[10, 2], like=shapes)
    assert calls == []
    assert lazy[0][1]["w"][0] == 2
    assert lazy.model is None
    assert slt.Checkpoints(trees(), steps=[2]).steps == (2,)
    assert slt.Checkpoints(trees()).structure == shapes


def test_a_mapping_of_folders(run):
    folders = {7: str(run / "step20"), 3: run / "step0"}
    checkpoints = slt.Checkpoints(folders)
    assert checkpoints.steps == (3, 7)
    assert one_weight(checkpoints[1][1]) == 2 * one_weight(checkpoints[0][1])


def test_names_of_steps(run):
    (run / "step1000").rename(run / "step_1000-tokens4B")
    assert slt.Checkpoints(run).steps == STEPS
    shutil.copytree(run / "step20", run / "step020")
    with pytest.raises(ValueError, match="both 'step020' and 'step20' are step 20"):
        slt.Checkpoints(run)
    (run / "step020").rename(run / "step-final")
    with pytest.raises(ValueError, match="'step-final' names no step"):
        slt.Checkpoints(run)


# Refusals


def grow(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_positions": 7}))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def in_half_precision(folder):
    model = from_hf(folder, dtype="float16")
    (folder / "model.safetensors").unlink()
    save_hf(model, folder)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (grow, ValueError, r"step 20 is of another architecture than step 0: num_positions is 7"),
        (truncate, ValueError, r"step20/model\.safetensors: .*truncated"),
        (pickle, FileNotFoundError, r"step20 has only pickled weights"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, r"no config\.json"),
        (
            in_half_precision,
            ValueError,
            r"step 20 has another tree than step 0: .*'attn\.q' is float16\[2, 32, 4, 8\] instead",
        ),
    ],
)
def test_one_bad_checkpoint_is_found_before_any_is_loaded(run, monkeypatch, damage, error, message):
    damage(run / "step20")
    monkeypatch.setattr(StoredTensor, "view", lambda self: pytest.fail("a tensor was read"))
    with pytest.raises(error, match=message):
        slt.Checkpoints(run)
    assert slt.Checkpoints(run, steps=[0, 1000]).steps == (0, 1000)


def test_given_a_dtype_that_of_the_files_does_not_matter(run):
    in_half_precision(run / "step20")
    assert {str(p["embed.tok"].dtype) for _, p in slt.Checkpoints(run, dtype="float32")} == {
        "float32"
    }


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"w": np.zeros(3, np.float32)}, r"'w' is float32\[3\] instead of float32\[2\]"),
        ({"w": np.zeros(2, np.float16)}, r"'w' is float16\[2\] instead of float32\[2\]"),
        ({"v": np.zeros(2, np.float32)}, "'w' is missing, 'v' is new"),
    ],
)
def test_trees_that_differ(last, message):
    with pytest.raises(ValueError, match=f"step 3 has another tree than step 0: {message}"):
        slt.Checkpoints(trees() | {3: last})
    like = slt.Checkpoints(trees(), like=trees()[0])
    assert like.steps == (0, 1, 2)
    late = slt.Checkpoints(lambda step: last, steps=[3], like=trees()[0])
    with pytest.raises(ValueError, match="another tree than the tree given as like"):
        late[0]


def test_containers_that_differ():
    one, other = [np.zeros(2)], (np.zeros(2),)
    with pytest.raises(ValueError, match="the containers differ"):
        slt.Checkpoints({0: {"w": one}, 1: {"w": other}})


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (iter(trees().items()), {}, TypeError, "can be read only once"),
        ((item for item in ()), {}, TypeError, r"a generator can be read only once\. Give a map"),
        (list(trees().items()), {}, TypeError, r"dict\(pairs\)"),
        ({}, {}, ValueError, "has no checkpoints"),
        ({"step1": {}}, {}, TypeError, "must be steps, got 'step1'"),
        ({0: {"w": np.arange(3)}}, {}, TypeError, "'w' has dtype int64"),
        (len, {}, TypeError, r"Checkpoints\(load, steps="),
        (trees(), {"steps": [0, 9]}, ValueError, "there is no step 9; there are 0, 1, 2"),
        (trees(), {"steps": [1, 1]}, ValueError, "given twice: 1"),
        (trees(), {"steps": [1.0]}, TypeError, "must be integers, got 1.0"),
        (trees(), {"steps": []}, ValueError, "steps is empty"),
        ("./nowhere", {}, FileNotFoundError, "nowhere is not a folder"),
    ],
)
def test_what_is_no_training_run(source, options, error, message):
    with unchecked_annotations(), pytest.raises(error, match=message):
        slt.Checkpoints(source, **options)


def test_folders_without_steps(tmp_path):
    with pytest.raises(FileNotFoundError, match="it has none"):
        slt.Checkpoints(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it has checkpoint-500\..*a mapping {step"):
        slt.Checkpoints(tmp_path)


# The hub


class NoSafetensors(Exception):
    pass


@pytest.fixture
def hub(run, monkeypatch):
    """A hub whose revisions are the folders of a run; it records what is downloaded."""
    folders = {"main": run / "step1000"} | {f"step{step}": run / f"step{step}" for step in STEPS}
    downloads = []

    def get_safetensors_metadata(name, *, revision):
        if revision == "step9":
            raise NoSafetensors
        names = {np.dtype(np.float32): "F32"}
        tensors = {
            tensor: SimpleNamespace(dtype=names[stored.dtype], shape=list(stored.shape))
            for tensor, stored in open_folder(folders[revision]).items()
        }
        file = SimpleNamespace(tensors=tensors)
        return SimpleNamespace(files_metadata={"model.safetensors": file})

    def snapshot_download(name, *, revision, allow_patterns):
        downloads.append(revision)
        return str(folders[revision])

    def references(name):
        branches = [SimpleNamespace(name=revision) for revision in [*folders, *extra]]
        return SimpleNamespace(branches=branches, tags=[])

    extra = []
    client = SimpleNamespace(
        __spec__=object(),
        downloads=downloads,
        extra=extra,
        get_safetensors_metadata=get_safetensors_metadata,
        hf_hub_download=lambda name, file, *, revision: str(
            folders.get(revision, folders["main"]) / file
        ),
        list_repo_refs=references,
        snapshot_download=snapshot_download,
    )
    errors = SimpleNamespace(NotASafetensorsRepoError=NoSafetensors)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return client


def test_revisions_are_downloaded_when_they_are_reached(hub):
    checkpoints = slt.Checkpoints("someone/some-model")
    assert checkpoints.steps == STEPS
    assert hub.downloads == []
    assert one_weight(checkpoints.load(20)) == 2 * one_weight(checkpoints.load(0))
    assert hub.downloads == ["step20", "step0"]
    hub.extra.append("step9")
    with pytest.raises(FileNotFoundError, match=r"'step9' of someone/some-model has no safetens"):
        slt.Checkpoints("someone/some-model")


def test_revisions_need_steps_and_the_hub_client(hub, monkeypatch):
    hub.list_repo_refs = lambda name: SimpleNamespace(
        branches=[SimpleNamespace(name="main")], tags=[]
    )
    with pytest.raises(FileNotFoundError, match=r"no revisions called step0.*it has main"):
        slt.Checkpoints("someone/some-model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'slt-jax\[hf\]'"):
        slt.Checkpoints("someone/some-model")


def test_the_hub_client_has_what_is_asked_of_it():
    client = pytest.importorskip("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    assert issubclass(errors.NotASafetensorsRepoError, Exception)
    for name, keywords in {
        "get_safetensors_metadata": {"revision"},
        "hf_hub_download": {"revision"},
        "list_repo_refs": set(),
        "snapshot_download": {"revision", "allow_patterns"},
    }.items():
        assert keywords <= set(inspect.signature(getattr(client, name)).parameters)
