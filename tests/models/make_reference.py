"""Write the reference checkpoints of ``fixtures/``: needs torch and transformers, unlike the tests.

    python -m tests.models.make_reference [NAME ...]

Per model: ``config.json`` and ``model*.safetensors`` as transformers saves them, bfloat16 weights;
``gradients.safetensors``, float32, of the mean next-token loss with respect to those weights, under
the same tensor names; and ``reference.npz`` with ids, float32 logits, and the largest error of
torch's own bfloat16 logits. All numbers are computed in float32 from the stored weights.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.reference_models import MODELS

FIXTURES = Path(__file__).parent / "fixtures"
BATCH, LENGTH = 2, 20
SPREAD = 0.12


def perturbed(model, seed):
    """Move every parameter, norms and biases included, to values that bfloat16 can hold."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = SPREAD * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((parameter + noise).to(torch.bfloat16).float())
    return model


def without_mlp(model):
    """Let the MLPs of a GPT-2 add nothing, which makes it an attention-only model."""
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
    return model


def mean_loss(logits, ids):
    """Give the mean next-token cross-entropy in nats."""
    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(flat, ids[:, 1:].reshape(-1))


def build(entry, seed):
    """Give a transformers model in float32 with dropout off and every parameter moved."""
    torch.manual_seed(seed)
    config = getattr(transformers, entry.config_class)(**entry.options)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    model = perturbed(model, seed)
    return without_mlp(model) if entry.attention_only else model


def save_gradients(model, folder):
    """Save gradients through the model's own saving code, so that they get the files' names."""
    with torch.no_grad():
        for parameter in model.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        shutil.copy(Path(temporary) / "model.safetensors", folder / "gradients.safetensors")


def as_attention_only(folder):
    """Rename a GPT-2 checkpoint to the attention-only type and drop what that does not have."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    kept = ("n_embd", "n_head", "n_layer", "n_positions", "layer_norm_epsilon", "vocab_size")
    new = {"model_type": "attention_only", "architectures": None}
    new |= {name: config[name] for name in (*kept, "tie_word_embeddings", "dtype")}
    path.write_text(json.dumps(new, indent=2) + "\n")
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file(
            {n: t for n, t in tensors.items() if ".mlp." not in n and ".ln_2." not in n}, file
        )


def write(entry, seed):
    """Write one fixture folder and give its bfloat16 error."""
    folder = FIXTURES / entry.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = build(entry, seed)
    vocab = model.config.vocab_size
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, (BATCH, LENGTH)))
    logits = model(ids).logits
    mean_loss(logits, ids).backward()
    half = build(entry, seed).to(torch.bfloat16)
    shard = {"max_shard_size": entry.max_shard_size} if entry.max_shard_size else {}
    half.save_pretrained(folder, **shard)
    with torch.no_grad():
        error = float((half(ids).logits.float() - logits).abs().max())
    save_gradients(model, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        folder / "reference.npz",
        ids=ids.numpy().astype(np.int32),
        logits=logits.detach().numpy(),
        bf16_error=np.float32(error),
    )
    if entry.attention_only:
        as_attention_only(folder)
    return error, float(logits.detach().std())


def main(names):
    """Write the named fixtures, or all."""
    for seed, entry in enumerate(MODELS):
        if not names or entry.name in names:
            error, spread = write(entry, seed)
            size = sum(file.stat().st_size for file in (FIXTURES / entry.name).iterdir())
            print(f"{entry.name:24} {size:8d} B  bf16 {error:.3f}  std of logits {spread:.2f}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    main(sys.argv[1:])
