"""Write ``fixtures/devinterp_masks.json``: what devinterp selects, for comparison.

    python tests/models/make_devinterp_masks.py

Needs torch, transformers and devinterp 2.0.1, unlike the tests. Every weight of every checkpoint
in ``fixtures/`` is replaced by its number; a mask is recorded as [count, digest] of the numbers
that it selects, by ``digest`` of ``layouts.py``.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from devinterp.slt._model_structures import HEAD_STRUCTURES
from devinterp.slt.weight_restrictions import create_param_masks
from layouts import digest, number_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"


def load_numbered(folder):
    """Load a checkpoint with numbers for weights."""
    shapes = {
        name: tuple(tensor.shape)
        for file in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    numbered = {name: torch.from_numpy(array) for name, array in number_weights(shapes).items()}
    with tempfile.TemporaryDirectory() as target:
        shutil.copy(folder / "config.json", target)
        save_file(numbered, Path(target) / "model.safetensors", metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)


def patterns(config):
    """Give the names that devinterp has for the parts of a model."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    yield from ("full", "embed", "unembed")
    for layer in range(config.num_hidden_layers):
        yield from (f"l{layer}", f"l{layer} attn", f"l{layer} mlp")
        yield from (f"l{layer}h{head}" for head in range(heads))
        yield from (f"l{layer}g{group}" for group in range(groups))


def selected(model, pattern):
    """Give the numbers of the weights that a mask selects."""
    params = dict(model.named_parameters())
    parts = [
        params[name].detach().numpy()[slice(None) if mask is None else mask.numpy()].ravel()
        for name, mask in create_param_masks(model, pattern).items()
    ]
    return np.concatenate([np.zeros(0), *parts])


def main():
    """Write the file."""
    found = {}
    for folder in sorted(path for path in FIXTURES.iterdir() if path.is_dir()):
        if json.loads((folder / "config.json").read_text())["model_type"] not in HEAD_STRUCTURES:
            print(f"{folder.name}: not known to devinterp")
            continue
        model = load_numbered(folder)
        found[folder.name] = {
            pattern: digest(selected(model, pattern)) for pattern in patterns(model.config)
        }
    lines = (f"{json.dumps(name)}: {json.dumps(masks)}" for name, masks in found.items())
    (FIXTURES / "devinterp_masks.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
