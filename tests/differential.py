"""Random models for tests/differential.sh: `make FOLDER COUNT SEED`, then `compare FOLDER LOGITS`."""

import json
import pathlib
import random
import sys
import warnings

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
NEWER = int(transformers.__version__.split(".")[0]) >= 5
DTYPE = "dtype" if NEWER else "torch_dtype"
TOLERANCE = 1e-5


def rope(r, head_dim):
    """Base and scaling rule."""
    theta = r.choice([1e4, 2e4, 5e5])
    kind = r.choice(["default", "default", "linear", "llama3"])
    rule = {"rope_type": kind}
    if kind != "default":
        rule["factor"] = r.choice([2.0, 4.0, 8.0])
    if kind == "llama3":
        rule |= {
            "low_freq_factor": r.choice([1.0, 2.0]),
            "high_freq_factor": r.choice([4.0, 8.0]),
            "original_max_position_embeddings": r.choice([8, 16, 64]),
        }
    return theta, rule


def config_of(kind, r):
    """Settings of a small model; rotary ones under the names of the version."""
    heads = r.choice([1, 2, 4])
    head_dim = r.choice([4, 6, 8])
    width, layers, vocab = heads * head_dim, r.choice([1, 2, 3]), r.choice([17, 24, 40])
    act = r.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
    tie = r.random() < 0.5
    if kind == "llama":
        own = r.random() < 0.5
        theta, rule = rope(r, head_dim)
        c = dict(
            vocab_size=vocab, hidden_size=width, intermediate_size=r.choice([12, 20, 32]), num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=r.choice([k for k in (1, 2, 4) if heads % k == 0]),
            hidden_act=act, tie_word_embeddings=tie, attention_bias=r.random() < 0.4, mlp_bias=r.random() < 0.4,
            rms_norm_eps=r.choice([1e-6, 1e-5, 1e-3]), max_position_embeddings=64,
        )
        if own:
            c["head_dim"] = r.choice([4, 8, 10])
        if NEWER:
            c["rope_parameters"] = {"rope_theta": theta, **rule}
        else:
            c |= dict(rope_theta=theta, rope_scaling=None if rule["rope_type"] == "default" else rule)
    elif kind == "gpt2":
        c = dict(
            vocab_size=vocab, n_positions=64, n_embd=width, n_layer=layers, n_head=heads,
            n_inner=r.choice([None, 12, 40]), activation_function=act, tie_word_embeddings=tie,
            layer_norm_epsilon=r.choice([1e-6, 1e-5, 1e-3]), scale_attn_weights=r.random() < 0.7,
            scale_attn_by_inverse_layer_idx=r.random() < 0.3, reorder_and_upcast_attn=r.random() < 0.2,
        )
    elif kind == "gpt_neox":
        theta, rule = rope(r, head_dim)
        share = r.choice([0.25, 0.5, 1.0]) if head_dim % 4 == 0 else 1.0
        c = dict(
            vocab_size=vocab, hidden_size=width, intermediate_size=r.choice([12, 20, 32]), num_hidden_layers=layers,
            num_attention_heads=heads, hidden_act=act, tie_word_embeddings=tie, attention_bias=r.random() < 0.6,
            use_parallel_residual=r.random() < 0.6, layer_norm_eps=r.choice([1e-6, 1e-5, 1e-3]),
            max_position_embeddings=64,
        )
        if NEWER:
            c["rope_parameters"] = {"rope_theta": theta, "partial_rotary_factor": share, **rule}
        else:
            c |= dict(rotary_emb_base=theta, rotary_pct=share, rope_scaling=None if rule["rope_type"] == "default" else rule)
    else:
        c = dict(
            vocab_size=vocab, hidden_size=width, state_size=r.choice([2, 4, 8]), num_hidden_layers=layers,
            conv_kernel=r.choice([2, 3, 4]), expand=r.choice([1, 2, 3]), time_step_rank=r.choice(["auto", 1, 3]),
            use_bias=r.random() < 0.4, use_conv_bias=r.random() < 0.6, hidden_act="silu", tie_word_embeddings=tie,
            layer_norm_epsilon=r.choice([1e-6, 1e-5, 1e-3]), residual_in_fp32=r.random() < 0.5,
        )
    return {k: v for k, v in c.items() if v is not None or r.random() < 0.5}


def edit(kind, r, folder):
    """Another version's keys in the saved configuration, as files in the world have them."""
    path = folder / "config.json"
    json_ = json.loads(path.read_text())
    if kind not in ("llama", "gpt_neox") or not NEWER or r.random() < 0.4:
        return
    names = {"llama": ("rope_theta", None), "gpt_neox": ("rotary_emb_base", "rotary_pct")}[kind]
    inside = json_["rope_parameters"]
    for name, key in zip(names, ("rope_theta", "partial_rotary_factor")):
        if name is None or key not in inside:
            continue
        how = r.choice(["inside", "top", "both", "contradiction"])
        if how in ("top", "both"):
            json_[name] = inside[key]
        if how == "contradiction":
            json_[name] = inside[key] * 0.5
        if how == "top":
            del inside[key]
    if r.random() < 0.3:
        inside["type"] = inside["rope_type"]
    place = r.choice(["rope_parameters", "rope_scaling", "both"])
    if place != "rope_parameters":
        json_["rope_scaling"] = dict(inside)
    if place == "rope_scaling":
        del json_["rope_parameters"]
    path.write_text(json.dumps(json_))


def logits_of(folder, ids, dtype=torch.float64):
    if json.loads((folder / "config.json").read_text()).get("reorder_and_upcast_attn"):
        dtype = torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **{DTYPE: dtype})
    with torch.no_grad():
        return model.eval()(ids).logits


def make(folder, count, seed):
    for kind in ("gpt2", "gpt_neox", "llama", "mamba"):
        for number in range(count):
            r = random.Random(f"{seed} {kind} {number}")
            torch.manual_seed(r.randrange(1 << 30))
            config = transformers.AutoConfig.for_model(kind, **config_of(kind, r))
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if "A_log" not in name:
                        p.add_(torch.randn_like(p) * 0.3)
            model.to(r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64]))
            case = folder / f"{kind}-{number:04}"
            size = r.choice(["10GB", "4KB", "2KB"])
            model.save_pretrained(case, max_shard_size=size)
            edit(kind, r, case)
            ids = torch.randint(0, config.vocab_size, (2, r.choice([1, 5, 11])))
            logits = logits_of(case, ids).double()
            rounded = logits_of(case, ids, torch.float32).double()
            # What transformers itself loses in f32.
            rounding = (rounded - logits).abs().max() / logits.abs().max().clamp(min=1e-3)
            save_file({"input_ids": ids, "logits": logits, "rounding": rounding}, case / "case.safetensors")
            if number % 4 == 0:
                (case / "saved").mkdir()


def compare(folder, printed):
    worst, failed, refused = {}, [], []
    for line in pathlib.Path(printed).read_text().splitlines():
        name, value = line.split(" ", 1)
        kind = name.split("-")[0]
        if value.startswith("refused"):
            refused.append(line)
            continue
        worst.setdefault(kind, []).append(float(value))
        rounding = load_file(folder / name / "case.safetensors")["rounding"].item()
        if not float(value) <= max(TOLERANCE, 4 * rounding):
            failed.append(f"{line} (transformers' own rounding: {rounding:.1e})")
    back = {}
    for saved in sorted(folder.glob("*/saved")):
        if not (saved / "config.json").exists():
            continue
        case = load_file(saved.parent / "case.safetensors")
        kind = saved.parent.name.split("-")[0]
        found = logits_of(saved, case["input_ids"])
        error = ((found - case["logits"]).abs().max() / case["logits"].abs().max().clamp(min=1e-3)).item()
        back.setdefault(kind, []).append(error)
        if not error <= TOLERANCE:
            failed.append(f"{saved.parent.name} read back: {error:.1e}")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for kind in sorted(worst):
        print(f"{kind:9} read here: {len(worst[kind])}, worst {max(worst[kind]):.1e}; "
              f"read there: {len(back.get(kind, []))}, worst {max(back.get(kind, [0])):.1e}")
    for line in refused + failed:
        print(line)
    print(f"{len(refused)} refused, {len(failed)} differ")
    sys.exit(1 if failed or refused else 0)


if sys.argv[1] == "make":
    make(pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
else:
    compare(pathlib.Path(sys.argv[2]), sys.argv[3])
