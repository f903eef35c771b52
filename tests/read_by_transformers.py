"""Loads each folder with `transformers` and compares its logits with those in logits.json."""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

worst = 0.0
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    case = json.loads((folder / "logits.json").read_text())
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    ) if not folder.name.startswith("mamba") else AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], f"{folder.name}: {kind} {report[kind]}"
    with torch.no_grad():
        found = model(torch.tensor(case["input_ids"])).logits
    expected = torch.tensor(case["logits"])
    error = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()
    print(f"{folder.name:24} {error:.1e}")
    assert error <= 1e-4, f"{folder.name} differs"
    worst = max(worst, error)
print(f"all agree, worst {worst:.1e}")
