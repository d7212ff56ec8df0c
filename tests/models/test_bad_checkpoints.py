"""Damaged and foreign checkpoints: an error that says what is wrong, and nothing half-loaded."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models import from_hf
from slt_jax.models.hf_config import parse_config
from slt_jax.models.hf_weights import plan_parameters
from slt_jax.models.safetensors_reader import INDEX, StoredTensor, open_file, open_folder
from slt_jax.models.safetensors_writer import Pending, write_file
from tests.helpers import compiled_programs, unchecked_annotations
from tests.models.references import FIXTURES, NAMES

VALUES = [None, [], {}, "x", -1, 1.5, True, 10**30, [1, 2], [[]], "F32", [0], [0] * 3, {"a": 1}]


@pytest.fixture
def llama(tmp_path):
    return shutil.copytree(FIXTURES / "llama", tmp_path / "llama")


def shard(folder, number=3):
    return folder / f"model-0000{number}-of-00003.safetensors"


def truncate(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-1])


def leave_a_pointer(folder):
    shard(folder).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 548105171\n"
    )


def lie_about(entry):
    def damage(folder):
        content = shard(folder).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
        header[last].update(entry)
        text = json.dumps(header).encode()
        shard(folder).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return damage


def configure(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def pickle_instead(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def mix_dtypes(folder):
    tensors = {name: tensor.view() for name, tensor in open_folder(folder).items()}
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = tensors[name].astype(np.float32)
    pending = {n: Pending(t.dtype, t.shape, lambda t=t: t) for n, t in tensors.items()}
    (folder / INDEX).unlink()
    write_file(folder / "model.safetensors", pending)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model-00003.*the file is truncated\. Nothing was loaded; download"),
        (leave_a_pointer, "what Git LFS leaves in place of the file; run `git lfs pull`"),
        (lie_about({"shape": [7]}), "of shape .* needs .* bytes, but its data_offsets"),
        (lie_about({"data_offsets": [0, 10**12]}), "but its data_offsets"),
        (lambda folder: shard(folder).unlink(), "1 of 3 shards are missing: model-00003"),
        (mix_dtypes, r"attn\.o have different dtypes, bfloat16, float32: say which to keep"),
        (configure(model_type="falcon"), r"'falcon'\. Known are .*from_functions\(params, loss_f"),
        (configure(model_type="bert"), r"experimental slt_jax\.models\.from_torch"),
        (configure(model_type="mixtral", num_local_experts=8), "experts .*from_functions"),
        (configure(vocab_size=60), r"another shape: .*embed_tokens.*the config says \(60, 32\)"),
        (configure(num_key_value_heads=1), r"k_proj.*Nothing was loaded; check that weights and"),
        (pickle_instead, r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"),
    ],
)
def test_nothing_is_read_of_a_checkpoint_that_does_not_fit(llama, monkeypatch, damage, message):
    damage(llama)
    monkeypatch.setattr(StoredTensor, "view", lambda self: pytest.fail("a tensor was read"))
    arrays = len(jax.live_arrays())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_hf(llama)
    assert len(jax.live_arrays()) == arrays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": [1]}, r"does not describe a llama: .*'list' and 'float'"),
        ({"head_dim": 4}, "another shape"),
        ({"head_dim": -2}, "rotary embeddings of -2 coordinates"),
        ({"num_key_value_heads": 0}, "num_kv_heads must be an integer, at least 1, got 0"),
        ({"rms_norm_eps": "small"}, "could not convert string to float: 'small'"),
        ({"rms_norm_eps": -1.0}, "eps of a norm must be a number, at least 0"),
        ({"rope_parameters": {"rope_theta": -1}}, "with theta -1.0 .* have no frequencies"),
        ({"hidden_act": ["silu"]}, "unhashable"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be .* at most 10,000, got 10"),
        ({"num_attention_heads": 10**30}, "num_attention_heads must be a positive integer"),
        (
            {"intermediate_size": True},
            "must be a positive integer, at most .*, got True",
        ),
    ],
)
def test_settings_of_another_kind(llama, changes, message):
    configure(**changes)(llama)
    with pytest.raises(ValueError, match=message):
        from_hf(llama)


def test_settings_of_other_families():
    raw = json.loads((FIXTURES / "gemma2" / "config.json").read_text())
    for changes, message in [
        ({"attn_logit_softcapping": 0}, "attn_softcap must be a positive number, got 0.0"),
        ({"sliding_window": -3}, "windows must be an integer, at least 1, got -3"),
        ({"query_pre_attn_scalar": 0}, "cannot be raised to a negative power"),
    ]:
        with pytest.raises(ValueError, match=f"does not describe a gemma2: .*{message}"):
            parse_config(json.dumps(raw | changes))
    with pytest.raises(ValueError, match="not valid JSON"):
        parse_config("[" * 100_000)


def test_whatever_is_wrong_with_a_header_is_a_value_error(tmp_path):
    """Headers with something put in place of something else: refused as such, or still right."""
    whole = (FIXTURES / "gpt2" / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    chance, path = random.Random(0), tmp_path / "model.safetensors"
    for _ in range(150):
        header = json.loads(whole[8 : 8 + length])
        name = chance.choice([key for key in header if key != "__metadata__"])
        key = chance.choice(["dtype", "shape", "data_offsets", None])
        if key is None:
            header[name] = chance.choice(VALUES)
        else:
            header[name][key] = chance.choice(VALUES)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(ValueError, match=r"Nothing was loaded"):
            open_file(path)
    for text in (b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe"):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(ValueError, match="header is not JSON"):
            open_file(path)


@pytest.mark.parametrize("name", NAMES[::5])
def test_whatever_is_wrong_with_a_config_is_a_value_error(name):
    raw = json.loads((FIXTURES / name / "config.json").read_text())
    headers, chance, refused = open_folder(FIXTURES / name), random.Random(1), 0
    for key in raw:
        for value in chance.sample(VALUES, 5):
            try:
                with unchecked_annotations():
                    plan_parameters(parse_config(json.dumps(raw | {key: value})), headers)
            except ValueError:
                refused += 1
    assert refused > len(raw)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "bf16"}, ValueError, "dtype must be one of float16, bfloat16, .* got 'bf16'"),
        ({"dtype": "float8_e4m3fn"}, ValueError, "dtype must be one of .* got 'float8_e4m3fn'"),
        ({"compute_dtype": "int32"}, ValueError, "compute_dtype must be one of .* got 'int32'"),
        ({"attention": "flash"}, TypeError, r"such as BlockwiseAttention\(\).* got 'flash'"),
        ({"attention": slt.models.SplashAttention}, TypeError, "must be an object such as"),
    ],
)
def test_nothing_is_read_if_an_option_is_of_no_use(llama, monkeypatch, options, error, message):
    monkeypatch.setattr(StoredTensor, "view", lambda self: pytest.fail("a tensor was read"))
    with unchecked_annotations(), pytest.raises(error, match=message):
        from_hf(llama, **options)


def test_token_ids_out_of_range_stop_a_run_before_it_starts(monkeypatch):
    model = from_hf(FIXTURES / "attention_only", dtype="float32")
    size = model.loss_fn.config.vocab_size
    ids = np.zeros((6, 5), np.int32)
    ids[4, 2] = size
    with pytest.raises(ValueError, match=f"id {size} .sequence 4, position 2. is outside"):
        model.loss_fn(model.params, jnp.asarray(ids))
    posterior = slt.LocalPosterior(model.loss_fn, model.params, 1.0, 1.0, model.components["l0h0"])
    arguments = slt.sgld(1e-4), slt.Batches(ids, 2), jax.random.key(0)
    with compiled_programs() as names, pytest.raises(ValueError, match=f"sampling data: .* {size}"):
        slt.llc(posterior, *arguments)
    assert names == []
    # What is too large to be read twice is left to the survey.
    monkeypatch.setattr("slt_jax.examples._SMALL_BYTES", 0)
    with pytest.raises(ValueError, match=r"loss at w\* is not finite for example 4"):
        slt.llc(posterior, *arguments)


def test_one_shot_generators_are_refused_where_two_passes_are_needed():
    with (
        unchecked_annotations(),
        pytest.raises(TypeError, match="a generator can be read only once"),
    ):
        slt.Checkpoints(pair for pair in [(0, {})])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="can be read only once; turn it into a list"):
        slt.Batches(iter([np.zeros(3)]), 1)
