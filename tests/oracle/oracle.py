"""Independent PyTorch/HF oracle for GradMem, 2-segment RMT and plain HF causal LMs.

usage: oracle.py CASE_DIR...            compare with CASE_DIR/expected.safetensors
       oracle.py --exact CASE_DIR...    same, with HF's float32 islands lifted to float64
       oracle.py --write CASE_DIR...    write expected.safetensors (HF numerics) and
                                        expected_exact.safetensors (all float64)
"""
import json, os, sys, warnings
warnings.filterwarnings("ignore")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import torch.nn.functional as F
from torch import nn
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
torch.set_num_threads(1)

# ---- optional lifting of float32 islands (RMSNorm, rotary, softmax, mamba scan) to float64
class exact_mode:
    def __init__(self, on): self.on = on
    def __enter__(self):
        if not self.on: return
        self.sv = (torch.Tensor.float, torch.Tensor.to, F.softmax)
        T_to, sm = torch.Tensor.to, F.softmax
        def up(d): return torch.float64 if d is torch.float32 else d
        def to(self, *a, **k):
            a = tuple(up(x) for x in a); k = {n: up(v) for n, v in k.items()}
            return T_to(self, *a, **k)
        torch.Tensor.to = to
        torch.Tensor.float = lambda s: T_to(s, torch.float64)
        F.softmax = lambda x, dim=None, _stacklevel=3, dtype=None: sm(x, dim=dim, dtype=up(dtype))
        nn.functional.softmax = F.softmax
    def __exit__(self, *e):
        if self.on: torch.Tensor.float, torch.Tensor.to, F.softmax = self.sv

LORA_DEFAULTS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}

def hf_config(d):
    d = dict(d); mt = d.pop("model_type")
    return AutoConfig.for_model(mt, **d)

class Wrapper(nn.Module):
    """Parameter container whose names are the reference's."""
    def __init__(self, cfg):
        super().__init__()
        bc = hf_config(cfg["base_config"])
        self.cfg = cfg
        self.mt = bc.model_type
        try:
            base = AutoModelForCausalLM.from_config(bc, attn_implementation="eager")
        except ValueError:                       # mamba has no attention
            base = AutoModelForCausalLM.from_config(bc)
        d, V = bc.hidden_size, bc.vocab_size
        self.bare = [base]                       # the HF causal LM itself (list: not registered twice)
        if cfg.get("use_write_lora"):
            from peft import LoraConfig, TaskType, get_peft_model
            tm = cfg.get("write_lora_target_modules")
            if isinstance(tm, str):
                tm = None if tm.strip().lower() in ("", "none", "auto") else [t.strip() for t in tm.split(",")]
            base = get_peft_model(base, LoraConfig(r=cfg["write_lora_r"], lora_alpha=cfg["write_lora_alpha"],
                    lora_dropout=cfg.get("write_lora_dropout", 0.0), target_modules=tm or LORA_DEFAULTS[self.mt],
                    task_type=TaskType.CAUSAL_LM))
            for p in base.parameters(): p.requires_grad = True
        if cfg.get("freeze_backbone"):
            for n, p in base.named_parameters(): p.requires_grad = "lora_" in n
        self.model = base
        self.mem = nn.Parameter(torch.randn(cfg["n_mem_tokens"], d) * .02)
        mode = cfg.get("mem_proj_mode", "none")
        if mode != "none":
            self.mem_proj = nn.Linear(d, d)
            nn.init.eye_(self.mem_proj.weight); nn.init.zeros_(self.mem_proj.bias)
        if mode == "proj_rw":
            self.read_mem_proj = nn.Linear(d, d)
            nn.init.eye_(self.read_mem_proj.weight); nn.init.zeros_(self.read_mem_proj.bias)
        c = cfg.get("n_ctrl_tokens", 0)
        if c:
            for n in ("write_st", "write_end", "read_st", "read_end"):
                setattr(self, n, nn.Parameter(torch.randn(c, d) * .02))
        if cfg.get("use_write_head"):
            self.write_head = nn.Linear(d, V, bias=False)
        if cfg.get("use_mem_residual"):
            self.mem_residual_ln = nn.LayerNorm(d)
        self.eval()

    # -- pieces
    def causal(self): return self.bare[0]
    def hidden(self, x, **kw):
        b = self.causal()
        return getattr(b, b.base_model_prefix)(inputs_embeds=x, use_cache=False, return_dict=True, **kw).last_hidden_state
    def logits(self, x, **kw):
        return self.causal()(inputs_embeds=x, use_cache=False, return_dict=True, **kw).logits
    def emb(self, ids): return self.causal().get_input_embeddings()(ids)
    def lora(self, on):
        if self.cfg.get("use_write_lora"):
            rg = {n: p.requires_grad for n, p in self.model.named_parameters()}
            (self.model.enable_adapter_layers if on else self.model.disable_adapter_layers)()
            for n, p in self.model.named_parameters(): p.requires_grad = rg[n]
    def frame(self, side, mem, tail):
        parts = [mem]
        if self.cfg.get("n_ctrl_tokens", 0):
            B = mem.shape[0]; ex = lambda t: t.unsqueeze(0).expand(B, -1, -1)
            parts = [ex(getattr(self, side + "_st")), mem, ex(getattr(self, side + "_end"))]
        return torch.cat(parts + tail, 1)

def lin_b(x, W, b): return x @ W.transpose(1, 2) + b.unsqueeze(1)

def per_row_ce(logits, labels):
    l = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return l

def gradmem(w, batch, dbg):
    cfg = w.cfg; ctx, qry, lab = (batch[k] for k in ("context_input_ids", "query_input_ids", "labels"))
    B = ctx.shape[0]; K = cfg["K"]; mode = cfg.get("mem_proj_mode", "none"); gm = cfg.get("grad_mode", "second")
    lr = cfg["lr"]; m = cfg["n_mem_tokens"]; pre = m + 2 * cfg.get("n_ctrl_tokens", 0)
    pad = w.causal().config.pad_token_id
    lastk = cfg.get("last_K_second_order"); lastk = K if lastk is None else lastk
    lastk = max(0, min(lastk, K)) if gm == "second" else 0
    cv, cn = cfg.get("inner_clip_value"), cfg.get("inner_clip_norm")
    mem0 = w.mem.unsqueeze(0).expand(B, -1, -1)
    fast = [mem0.clone()]
    if mode == "per_sample":
        fast += [w.mem_proj.weight.unsqueeze(0).expand(B, -1, -1).clone(), w.mem_proj.bias.unsqueeze(0).expand(B, -1).clone()]
    if gm == "none": fast = [t.detach().requires_grad_() for t in fast]
    tgt = ctx.masked_fill(ctx == pad, -100); mask = (tgt != -100)
    n = mask.sum(1).clamp_min(1)
    st = {}; norms = []; inner = None
    if K and mask.any():
        e = w.emb(ctx); w.lora(True)
        for k in range(K):
            if mode == "none": x = fast[0]
            elif mode == "per_sample": x = lin_b(*fast)
            else: x = w.mem_proj(fast[0])
            x = w.frame("write", x, [e])
            if cfg.get("use_write_head"): lg = w.write_head(w.hidden(x)[:, pre - 1:-1])
            else: lg = w.logits(x)[:, pre - 1:-1]
            inner_b = (per_row_ce(lg, tgt) * mask).sum(1) / n
            inner = inner_b.sum()
            second = gm == "second" and k >= K - lastk
            keep = second or (cfg.get("add_inner_loss_to_outer", False) and k == K - 1)
            g = torch.autograd.grad(inner, fast, create_graph=second, retain_graph=keep)
            norms.append(g[0].detach().reshape(B, -1).norm(dim=1))
            new = []
            for p, d in zip(fast, g):
                if cv is not None: d = d.clamp(-cv, cv)
                if cn is not None:
                    nn_ = d.norm(dim=tuple(range(1, d.ndim)), keepdim=True)
                    d = torch.where(nn_ > cn, d * (cn / (nn_ + 1e-6)), d)
                new.append(p - lr * d)
            fast = [t.detach().requires_grad_() for t in new] if gm == "none" else new
        N = torch.stack(norms)
        st.update(inner_grad_norm_mean=N.mean(1).mean(), inner_grad_norm_max=N.max(), inner_grad_norm_min=N.min(),
                  inner_loss=inner.detach() / B)
    mem = fast[0]
    st["mem_norm_mean"] = mem.detach().norm(dim=(1, 2)).mean()
    st["delta_mem_norm_mean"] = (mem - mem0).detach().norm(dim=(1, 2)).mean()
    if mode == "none": x = mem
    elif mode == "per_sample":
        x = lin_b(*fast) if VARIANT["ps_read"] == "updated" else w.mem_proj(mem)
    elif mode == "proj_rw": x = w.read_mem_proj(mem)
    else: x = w.mem_proj(mem)
    w.lora(False)
    lg = w.logits(w.frame("read", x, [w.emb(qry)]))[:, pre - 1:]
    w.lora(True)
    loss = F.cross_entropy(lg[:, :-1].reshape(-1, lg.shape[-1]), lab.reshape(-1), ignore_index=-100)
    st["target_loss"] = loss.detach()
    if cfg.get("add_inner_loss_to_outer") and inner is not None:
        wt = cfg.get("inner_loss_weight"); loss = loss + (1.0 if wt is None else wt) * inner / B
    return loss, lg, mem, st

VARIANT = {"ps_read": "updated", "res": "batch", "read_mask": True, "read_pos": False}

def rmt(w, batch, dbg):
    cfg = w.cfg; ctx, qry, lab = (batch[k] for k in ("context_input_ids", "query_input_ids", "labels"))
    if w.mt == "mamba": return rmt_alone(w, batch)
    B = ctx.shape[0]; K = cfg["K"]; mode = cfg.get("mem_proj_mode", "none"); m = cfg["n_mem_tokens"]
    c = cfg.get("n_ctrl_tokens", 0); pre = m + 2 * c; pad = w.causal().config.pad_token_id
    ones = lambda k: torch.ones(B, k, dtype=torch.long)
    am = torch.cat([ones(pre), (ctx != pad).long(), ones(m + c)], 1); pos = am.cumsum(1) - 1
    tgt = ctx.masked_fill(ctx == pad, -100)
    e = w.emb(ctx); S = ctx.shape[1]
    mem = w.mem.unsqueeze(0).expand(B, -1, -1); first = None; recs = []
    rec_on = cfg.get("use_reconstruction_loss", False)
    for k in range(K + (1 if rec_on else 0)):
        x = w.mem_proj(mem) if mode in ("proj", "proj_rw") else mem
        tail = [e] + ([w.write_st.unsqueeze(0).expand(B, -1, -1)] if c else []) + [x]
        h = w.hidden(w.frame("write", x, tail), attention_mask=am, position_ids=pos)
        if rec_on and k > 0:
            hh = h[:, pre - 1:pre - 1 + S]
            lg = w.write_head(hh) if cfg.get("use_write_head") else w.causal().get_output_embeddings()(hh)
            recs.append(F.cross_entropy(lg.reshape(-1, lg.shape[-1]), tgt.reshape(-1), ignore_index=-100))
        if k == K: break
        out = h[:, -m:]
        mem = mem + w.mem_residual_ln(out) if (cfg.get("use_mem_residual") and k > 0) else out
        if first is None: first = mem
    st = {"mem_norm_mean": mem.detach().norm(dim=(1, 2)).mean()}
    if K > 1: st["delta_mem_norm_mean"] = (mem - first).detach().norm(dim=(1, 2)).mean()
    x = w.read_mem_proj(mem) if mode == "proj_rw" else mem
    kw = {}
    qm = torch.cat([ones(pre), (qry != pad).long()], 1)
    if VARIANT["read_mask"]: kw["attention_mask"] = qm
    if VARIANT["read_pos"]: kw["position_ids"] = qm.cumsum(1) - 1
    lg = w.logits(w.frame("read", x, [w.emb(qry)]), **kw)[:, pre:]
    loss = F.cross_entropy(lg[:, :-1].reshape(-1, lg.shape[-1]), lab[:, 1:].reshape(-1), ignore_index=-100)
    st["target_loss"] = loss.detach()
    if rec_on:
        r = torch.stack(recs).mean(); st["rec_loss"] = r.detach()
        loss = loss + cfg.get("reconstruction_loss_weight", 1.0) * r
    return loss, lg, mem, st

def rmt_alone(w, batch):
    """Mamba: each sample by itself, its context pads removed; queries keep their right pads (causal, no mask)."""
    cfg = w.cfg; ctx, qry, lab = (batch[k] for k in ("context_input_ids", "query_input_ids", "labels"))
    B = ctx.shape[0]; K = cfg["K"]; mode = cfg.get("mem_proj_mode", "none"); m = cfg["n_mem_tokens"]
    c = cfg.get("n_ctrl_tokens", 0); pre = m + 2 * c; pad = w.causal().config.pad_token_id
    rec_on = cfg.get("use_reconstruction_loss", False)
    P = K + (1 if rec_on else 0)
    lgs, mems, d0 = [], [], []; recs = [0.0] * P; ntok = 0
    for b in range(B):
        ids = ctx[b][ctx[b] != pad].unsqueeze(0); S = ids.shape[1]; ntok += S; e = w.emb(ids)
        mem = w.mem.unsqueeze(0); first = None
        for k in range(P):
            x = w.mem_proj(mem) if mode in ("proj", "proj_rw") else mem
            tail = [e] + ([w.write_st.unsqueeze(0)] if c else []) + [x]
            h = w.hidden(w.frame("write", x, tail))
            if rec_on and k > 0:
                hh = h[:, pre - 1:pre - 1 + S]
                lg = w.write_head(hh) if cfg.get("use_write_head") else w.causal().get_output_embeddings()(hh)
                recs[k] = recs[k] + F.cross_entropy(lg[0], ids[0], reduction="sum")
            if k == K: break
            out = h[:, -m:]
            mem = mem + w.mem_residual_ln(out) if (cfg.get("use_mem_residual") and k > 0) else out
            if first is None: first = mem
        x = w.read_mem_proj(mem) if mode == "proj_rw" else mem
        lgs.append(w.logits(w.frame("read", x, [w.emb(qry[b:b + 1])]))[:, pre:]); mems.append(mem); d0.append(mem - first)
    lg, mem = torch.cat(lgs), torch.cat(mems)
    st = {"mem_norm_mean": mem.detach().norm(dim=(1, 2)).mean()}
    if K > 1: st["delta_mem_norm_mean"] = torch.cat(d0).detach().norm(dim=(1, 2)).mean()
    loss = F.cross_entropy(lg[:, :-1].reshape(-1, lg.shape[-1]), lab[:, 1:].reshape(-1), ignore_index=-100)
    st["target_loss"] = loss.detach()
    if rec_on:
        r = sum(recs[1:]) / ntok / (P - 1); st["rec_loss"] = r.detach()
        loss = loss + cfg.get("reconstruction_loss_weight", 1.0) * r
    return loss, lg, mem, st

class Plain(nn.Module):
    pass

def build(cfg):
    if cfg["model_type"] in ("grad_memgpt", "rmt_2segm"): return Wrapper(cfg)
    bc = hf_config(cfg)
    try: return AutoModelForCausalLM.from_config(bc, attn_implementation="eager").eval()
    except ValueError: return AutoModelForCausalLM.from_config(bc).eval()

def run_case(d, exact=False):
    cfg = json.load(open(os.path.join(d, "config.json")))
    sd = load_file(os.path.join(d, "model.safetensors")); batch = load_file(os.path.join(d, "batch.safetensors"))
    with exact_mode(exact):
        w = build(cfg)
        # buffers: keep inv_freq as constructed (float32, or float64 in exact mode)
        bufs = {n: b.clone() for n, b in w.named_buffers()}
        w = w.double()
        names = dict(w.named_parameters())          # tied weights appear once
        assert set(names) == set(sd), ("names", set(names) ^ set(sd))
        with torch.no_grad():
            for n, p in names.items():
                assert p.shape == sd[n].shape, n
                p.copy_(sd[n].double())
        if isinstance(w, Wrapper):
            loss, lg, mem, st = (gradmem if cfg["model_type"] == "grad_memgpt" else rmt)(w, batch, None)
        else:
            lg = w(input_ids=batch["input_ids"], use_cache=False).logits; mem, st = None, {}
            loss = F.cross_entropy(lg[:, :-1].reshape(-1, lg.shape[-1]), batch["labels"][:, 1:].reshape(-1), ignore_index=-100)
        ps = {n: p for n, p in w.named_parameters() if p.requires_grad}
        gs = torch.autograd.grad(loss, list(ps.values()), allow_unused=True)
    out = {"loss": loss.detach().reshape(1), "logits": lg.detach()}
    if mem is not None: out["memory"] = mem.detach()
    for k, v in st.items(): out["stats." + k] = v.reshape(1)
    for n, g in zip(ps, gs):
        if g is not None: out["grad." + n] = g
    return {k: v.double().contiguous().clone() for k, v in out.items()}

def rel(a, b): return ((a - b).abs().max() / max(1e-3, b.abs().max().item())).item()

def compare(a, b):
    if set(a) != set(b):
        print("   KEYS ours-only", sorted(set(a) - set(b))[:8], "theirs-only", sorted(set(b) - set(a))[:8])
    r = sorted(((rel(a[k], b[k]) if a[k].shape == b[k].shape else float("inf"), k) for k in a if k in b), reverse=True)
    return r

if __name__ == "__main__":
    a = sys.argv[1:]; ex = "--exact" in a; wr = "--write" in a
    bad = 0
    for d in [x for x in a if not x.startswith("--")]:
        if wr:
            o = run_case(d, False); x = run_case(d, True)
            save_file(o, os.path.join(d, "expected.safetensors")); save_file(x, os.path.join(d, "expected_exact.safetensors"))
            r = compare(o, x)
            print("%-40s loss %.6f  hf-vs-exact worst %.2e %s; finite %s" % (os.path.basename(d.rstrip("/")), o["loss"], r[0][0], r[0][1],
                  all(torch.isfinite(v).all() for v in o.values())), flush=True)
        else:
            e = load_file(os.path.join(d, "expected.safetensors")); o = run_case(d, ex); r = compare(o, e)
            ok = set(o) == set(e) and r[0][0] < 1e-5; bad += not ok
            print("%-28s %s worst %.2e %-45s 2nd %.2e %s" % (os.path.basename(d.rstrip("/")), "ok " if ok else "BAD", r[0][0], r[0][1], r[1][0], r[1][1]), flush=True)
    print("bad", bad)
