"""Checkpoints: what is loaded, what is written back, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from slt_jax.models.base import Model
from slt_jax.models.hf import from_hf, read_config, save_hf
from slt_jax.models.hf_config import FAMILIES, parse_config
from slt_jax.models.hf_names import FAMILY_VIEWS
from slt_jax.models.layout import parameter_axes
from slt_jax.models.safetensors_reader import INDEX, open_file, open_folder
from slt_jax.models.safetensors_writer import Pending, write_file
from tests.models.references import FIXTURES, NAMES


@pytest.fixture
def llama(tmp_path):
    """A copy of a sharded checkpoint, to be damaged."""
    return shutil.copytree(FIXTURES / "llama", tmp_path / "llama")


@pytest.fixture
def gpt2(tmp_path):
    return shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2")


def read_all(folder):
    return {name: tensor.view() for name, tensor in open_folder(folder).items()}


def write_all(folder, tensors):
    for file in folder.glob("model*"):
        file.unlink()
    pending = {n: Pending(t.dtype, t.shape, lambda t=t: t) for n, t in tensors.items()}
    write_file(folder / "model.safetensors", pending)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_header(path, change):
    """Apply ``change`` to the parsed header of a file and write it back."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = change(header)
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_is_the_same_to_the_bit(name, tmp_path):
    model = from_hf(FIXTURES / name)
    save_hf(model, tmp_path, max_shard_bytes=9000)
    assert (tmp_path / INDEX).exists()
    again = from_hf(tmp_path)
    assert again.loss_fn == model.loss_fn
    assert again.params.keys() == model.params.keys()
    for path, leaf in model.params.items():
        assert leaf.dtype == again.params[path].dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(again.params[path]))
    original, written = read_all(FIXTURES / name), read_all(tmp_path)
    assert original.keys() == written.keys()
    for tensor, values in original.items():
        np.testing.assert_array_equal(values, written[tensor], err_msg=tensor)


def test_a_loaded_model_is_a_model():
    model = from_hf(str(FIXTURES / "llama"), dtype=jnp.float16)
    assert isinstance(model, Model)
    assert model.axes["attn.k"] == "l d g k"
    assert model.params["attn.k"].shape == (2, 32, 2, 12)
    assert {leaf.dtype for leaf in model.params.values()} == {np.dtype(np.float16)}
    assert model.loss_fn.compute_dtype == np.float16
    # A query head and the key-value head that it uses, whose width is not d / heads.
    assert model.components["l1h3"].num_params == 4 * 32 * 12


def test_loaded_weights_are_saved_in_their_new_dtype(tmp_path):
    model = from_hf(FIXTURES / "qwen2", dtype="float32")
    save_hf(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert {t.dtype for t in open_folder(tmp_path).values()} == {np.dtype(np.float32)}
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_hf(model, tmp_path)
    with pytest.raises(TypeError, match="from_hf"):
        save_hf(Model({}, len, {}, model.components), tmp_path / "other")


def test_other_implementation_reads_what_is_written(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.float16)}
    write_all(tmp_path, tensors)
    loaded = safetensors.load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, loaded, tensors)


SHARDED = """
import jax, numpy as np, sys
from slt_jax.models.hf import from_hf

class Layout:
    def parameter_sharding(self, axes, shape):
        mesh = jax.make_mesh((2, 4), ("chain", "model"), (jax.sharding.AxisType.Auto,) * 2)
        sizes = zip(axes.split(), shape)
        split = ["model" if a in "hfv" and n % 4 == 0 else None for a, n in sizes]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split))

for name in ("llama", "phi3", "gpt_neox"):
    folder = sys.argv[1] + "/" + name
    whole, parts = from_hf(folder), from_hf(folder, layout=Layout())
    shards = parts.params["attn.q"].addressable_shards
    assert len(shards) == 8 and shards[0].data.shape[2] == 1
    for path, leaf in whole.params.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(parts.params[path]))
"""


def test_shards_are_filled_where_they_belong():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(FIXTURES.parents[2]),
    }
    subprocess.run([sys.executable, "-c", SHARDED, str(FIXTURES)], check=True, env=environment)


# Spellings


def as_version_4(raw):
    """The same settings as transformers 4 wrote them."""
    raw = dict(raw)
    rope = raw.pop("rope_parameters")
    raw.pop("layer_types", None)
    if "full_attention" in rope:
        raw |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
        rope = rope["full_attention"]
    rope = dict(rope)
    if raw["model_type"] == "gpt_neox":
        raw |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
        return raw
    raw["rope_theta"] = rope.pop("rope_theta")
    share = rope.pop("partial_rotary_factor", None)
    raw |= {} if share is None else {"partial_rotary_factor": share}
    raw["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    raw["torch_dtype"] = raw.pop("dtype")
    return raw


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "only" not in name and name[:4] != "gpt2"]
)
def test_configs_of_transformers_4_mean_the_same(name):
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    old = as_version_4(raw)
    if name in ("gemma2_uncapped", "gemma3", "gemma3_scaled"):
        old |= {"layer_types": raw["layer_types"]}
    assert parse_config(json.dumps(old)) == read_config(FIXTURES / name)


def test_what_a_config_leaves_out_has_the_value_of_its_class():
    sizes = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 12}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 8}

    def parse(model_type, **more):
        return parse_config(json.dumps(sizes | {"model_type": model_type} | more))

    llama, gemma2, gemma3 = parse("llama"), parse("gemma2"), parse("gemma3_text")
    assert (llama.head_dim, llama.num_kv_heads, llama.tied, llama.ropes[0].theta) == (
        4,
        4,
        False,
        1e4,
    )
    assert (gemma2.head_dim, gemma2.tied, gemma2.attn_softcap, gemma2.logit_softcap) == (
        256,
        True,
        50,
        30,
    )
    assert gemma2.windows[:2] == (4096, None)
    assert gemma3.windows == ((4096,) * 5 + (None,)) * 2
    assert gemma3.rope_of_layer[4:6] == (1, 0)
    assert [rope.theta for rope in gemma3.ropes] == [1e6, 1e4]
    assert parse("mistral").windows[0] == 4096
    assert parse("qwen2", sliding_window=3).windows == (None,) * 12
    assert parse("qwen3").head_dim == 128
    assert parse("gpt_neox").ropes[0].dim == 1 * 4 // 4
    assert parse("phi", num_key_value_heads=2).ropes[0].dim == 2
    # The first Gemma said "gelu" and meant its approximation.
    assert parse("gemma", hidden_act="gelu") == parse("gemma", hidden_act="gelu_pytorch_tanh")


def test_every_known_type_has_names_and_a_reference():
    assert FAMILIES.keys() == FAMILY_VIEWS.keys()
    used = [read_config(FIXTURES / name).model_type for name in NAMES]
    assert all(used.count(model_type) >= 2 for model_type in FAMILIES)


def test_checkpoints_of_bare_models_and_old_buffers_are_read(gpt2):
    tensors = {n.removeprefix("transformer."): t for n, t in read_all(gpt2).items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 40, 40), np.uint8)
    tensors["h.0.attn.masked_bias"] = np.ones((), np.float32)
    write_all(gpt2, tensors)
    bare, whole = from_hf(gpt2), from_hf(FIXTURES / "gpt2")
    jax.tree.map(np.testing.assert_array_equal, bare.params, whole.params)


def test_a_stored_copy_of_a_tied_unembedding_must_be_a_copy(gpt2):
    tensors = read_all(gpt2)
    write_all(gpt2, tensors | {"lm_head.weight": tensors["transformer.wte.weight"]})
    assert "unembed" not in from_hf(gpt2).params
    write_all(gpt2, tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(
        ValueError, match=r"ties the unembedding to the embedding, but lm_head\.weight"
    ):
        from_hf(gpt2)


# Refusals


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        from_hf(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_hf(tmp_path)
    shutil.copy(FIXTURES / "gpt2" / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors files"):
        from_hf(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=r"pickled weights .*save_pretrained"):
        from_hf(tmp_path)
    with pytest.raises(ValueError, match="revision='main' is for hub ids only"):
        from_hf(tmp_path, revision="main")


def test_hub_ids_need_the_hub_client(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'slt-jax\[hf\]'"):
        from_hf("someone/some-model")


def test_hub_ids_are_downloaded_without_code(monkeypatch):
    def snapshot_download(name, *, revision, allow_patterns):
        assert (name, revision) == ("someone/some-model", "step512")
        assert all("json" in pattern or "safetensors" in pattern for pattern in allow_patterns)
        return str(FIXTURES / "gpt2")

    hub = SimpleNamespace(snapshot_download=snapshot_download, __spec__=object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert from_hf("someone/some-model", revision="step512").params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "falcon"}, "unknown model type 'falcon'. Known are attention_only, gemma"),
        ({"model_type": "mixtral"}, "mixtures of experts are not supported"),
        ({"num_local_experts": 8}, r"mixtures of experts .* \(num_local_experts = 8\)"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            "saved on its own",
        ),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn'"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, .* got None"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 3}, "3 query heads cannot share 2"),
        ({"intermediate_size": 44}, r"6 tensors of another shape: .*mlp.*\(40, 32\)"),
        ({"num_hidden_layers": 3}, r"9 missing tensors: model\.layers\.2\."),
        ({"num_hidden_layers": 1}, "9 tensors that the model has no place for"),
        ({"tie_word_embeddings": True}, "ties the unembedding"),
    ],
)
def test_configs_that_do_not_fit(llama, changes, message):
    edit_config(llama, **changes)
    with pytest.raises(ValueError, match=message):
        from_hf(llama)


def test_weights_of_strange_dtypes(llama):
    tensors = read_all(llama)
    strange = "model.layers.1.mlp.up_proj.weight"
    write_all(llama, tensors | {strange: tensors[strange].astype(np.float32)})
    with pytest.raises(ValueError, match=r"mlp\.up have different dtypes, bfloat16, float32"):
        from_hf(llama)
    assert from_hf(llama, dtype="bfloat16").params["mlp.up"].dtype == ml_dtypes.bfloat16
    write_all(llama, tensors | {strange: tensors[strange].astype(np.int32)})
    with pytest.raises(ValueError, match=r"mlp\.up have dtype int32"):
        from_hf(llama, dtype="float32")
    with pytest.raises(ValueError, match=r"dtype must be one of float16, .* got 'int8'"):
        from_hf(FIXTURES / "llama", dtype="int8")


def test_shards(llama):
    index = json.loads((llama / INDEX).read_text())
    shard = "model-00002-of-00003.safetensors"
    (llama / shard).rename(llama / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"1 of 3 shards are missing: {shard}"):
        from_hf(llama)
    (llama / "elsewhere").rename(llama / shard)

    moved = dict.fromkeys(index["weight_map"], shard)
    (llama / INDEX).write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(ValueError, match="but not in the shard it names"):
        from_hf(llama)
    (llama / INDEX).write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        from_hf(llama)
    (llama / INDEX).write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        from_hf(llama)
    (llama / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match="4 safetensors files but neither"):
        from_hf(llama)


def test_a_tensor_in_two_shards(llama):
    shutil.copy(
        llama / "model-00002-of-00003.safetensors", llama / "model-00003-of-00003.safetensors"
    )
    with pytest.raises(ValueError, match=r"in both model-00002.* and model-00003"):
        from_hf(llama)


def test_a_tensor_that_the_index_does_not_know(llama):
    index = json.loads((llama / INDEX).read_text())
    index["weight_map"].pop("model.norm.weight")
    (llama / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"does not place model\.norm\.weight"):
        from_hf(llama)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_truncated_files(gpt2, keep):
    path = gpt2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: .*truncated.*Nothing was loaded"):
        from_hf(gpt2)


def test_appended_bytes(gpt2):
    with (gpt2 / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(ValueError, match="something was appended"):
        from_hf(gpt2)


def set_entry(**changes):
    return lambda header: header["transformer.wte.weight"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: b"{not json", "header is not JSON"),
        (lambda header: b"[1]", "not a JSON object"),
        (lambda header: b'{"a": 1, "a": 2}', "names a twice"),
        (set_entry(shape=[53, 33]), r"needs 3498 bytes, but its data_offsets .* hold 3392"),
        (set_entry(shape=[53, -32]), r"has shape \[53, -32\]"),
        (set_entry(shape=None), "has shape None"),
        (set_entry(dtype="F32"), "needs 6784 bytes"),
        (set_entry(dtype="F4"), "unknown dtype 'F4'"),
        (set_entry(data_offsets=[0, 3392]), "overlaps the one before it"),
        (set_entry(data_offsets=[10**9, 10**9 + 3392]), "leaves a gap"),
        (lambda header: header["transformer.wte.weight"].pop("dtype"), "needs dtype, shape and"),
    ],
)
def test_headers_that_lie(gpt2, change, message):
    def keep_only_changes(header):
        result = change(header)
        return result if isinstance(result, bytes) else None

    edit_header(gpt2 / "model.safetensors", keep_only_changes)
    with pytest.raises(ValueError, match=message):
        open_file(gpt2 / "model.safetensors")


def test_axes_of_every_reference_name_the_heads():
    for name in NAMES:
        axes = parameter_axes(read_config(FIXTURES / name))
        assert (axes["attn.q"], axes["attn.v"], axes["attn.o"]) == ("ldhk", "ldgk", "lhkd")
