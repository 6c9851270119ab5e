"""What must be fast, measured beside a plain loop in the same run: make bench

Prints ratios, times, FLOPs and the machine. Times are the least of a few repeats, since a busy machine only ever adds.
Options: --model NAME, --device DEVICE, --json FILE, --check (exit status 1 unless the stated bounds hold: for SmolLM2 on an idle machine)
"""
import argparse
import json
import platform
import resource
import time

import torch

import knowloc as kl
from knowloc import attribution as at

QUERY = kl.Query("I have always wanted to travel to Europe, and to see the capital of France,", "Paris")
BATCH = [kl.Query(f"{a}, and the capital of {b} is the city of", c) for a in ("Madrid and Paris are well known cities", "Everyone who has been to school should know this")
         for b, c in [("Spain", "Madrid"), ("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Japan", "Tokyo"), ("Greece", "Athens"),
                      ("Russia", "Moscow"), ("England", "London")]]


def plain(lm, query, steps=20):
    "IG the slow way: for each layer, `steps` copies of the whole prompt forward and back, no weight gradients. Also the gap of each layer."
    e = lm.encode(query)
    ids, mask = lm.pad([e.prompt] * steps)
    alphas = torch.linspace(0, 1, steps, device=lm.device)
    out, gaps = [], []
    for layer in range(lm.n_layers):
        leaf = []
        def scale(_, a):
            leaf.extend([(alphas[:, None] * a[:, -1]).detach().requires_grad_(), a[0, -1].detach()])
            return torch.cat([a[:, :-1], leaf[0][:, None].to(a.dtype)], 1)
        with at.frozen(lm.model), lm.hook_neurons(scale, [layer]):
            p = lm.run(ids, mask)[:, -1].softmax(-1)[:, e.answer[0]]
            grad = torch.autograd.grad(p.sum(), leaf[0])[0]
        out.append(leaf[1] * grad.mean(0))
        gaps.append(abs(float(out[-1].sum() - (p[-1] - p[0]).detach())))
    return torch.stack(out).float().cpu(), gaps


def best(fn, repeats=3, warm=True):
    "The least seconds of `repeats` calls, after one to warm up, and the last result."
    if warm: fn()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        out = fn()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds), out


def matmul_rate(lm):
    "FLOP/s of this machine on a product of the size that dominates a sweep."
    x, w = torch.randn(512, lm.d_model, device=lm.device, dtype=lm.dtype), torch.randn(lm.d_mlp, lm.d_model, device=lm.device, dtype=lm.dtype)
    seconds, _ = best(lambda: [x @ w.T for _ in range(50)])
    return 50 * 2 * x.shape[0] * w.numel() / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device")
    parser.add_argument("--json")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    lm = kl.load_lm(args.model, device=args.device)
    run = lambda lm, queries, **kw: kl.localize(lm, queries, "ig", progress=False, **kw)
    rate, riemann = matmul_rate(lm), dict(quadrature="riemann", steps=20)
    print(f"{lm}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}")
    print(f"prompt of {len(lm.encode(QUERY).prompt)} tokens; float32 products of this shape run at {rate / 1e9:.0f} GFLOP/s here\n")

    slow, (reference, gaps) = best(lambda: plain(lm, QUERY), repeats=1, warm=False)
    fast, same = best(lambda: run(lm, QUERY, **riemann))
    default, scores = best(lambda: run(lm, QUERY))
    est = kl.estimate(lm, [QUERY], **riemann)
    far = float((same.values - reference).abs().max() / reference.abs().max())
    print(f"plain loop, 20 steps        {slow:7.2f} s   worst gap {max(gaps):.3f} (layer {gaps.index(max(gaps))}), next {sorted(gaps)[-2]:.4f}")
    print(f"one sweep, 20 steps         {fast:7.2f} s   {slow / fast:5.1f}x   equal to {far:.0e} of the largest score")
    print(f"  its products: {est.flops / 1e9:.0f} GFLOP, at least {est.flops / rate:.2f} s at the rate above")
    print(f"one sweep, adaptive         {default:7.2f} s   {slow / default:5.1f}x   worst gap {scores.gap.max():.1e}, {scores.info['rows']} rows")

    many, _ = best(lambda: run(lm, BATCH), repeats=1, warm=False)
    one, _ = best(lambda: [run(lm, q) for q in BATCH], repeats=1, warm=False)
    print(f"{len(BATCH)} queries in one call       {many:7.2f} s   {one / many:5.2f}x  beside one call each ({one:.2f} s)")

    half = kl.load_lm(args.model, dtype="bfloat16", device=args.device)
    b16, low = best(lambda: run(half, QUERY, **riemann))
    print(f"bfloat16, 20 steps          {b16:7.2f} s   {fast / b16:5.2f}x  beside float32, {len(low.top(20) & same.top(20))} of the 20 best neurons the same")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory of this process {peak / 1e9:7.2f} GB, both models included")
    bounds = {"one sweep at least 15x": slow / fast >= 15, "adaptive at least 25x": slow / default >= 25, "its gap below 1e-3": float(scores.gap.max()) < 1e-3,
              "a batch costs less than single queries": many < one, "equal to the plain loop": far < 1e-3}
    print("\n" + "\n".join(f"{'holds' if ok else 'FAILS'}: {name}" for name, ok in bounds.items()))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(dict(**kl.model.manifest(lm), plain=slow, sweep=fast, adaptive=default, gap=float(scores.gap.max()), equal=far,
                           flops=est.flops, rate=rate, batch=many, singles=one, bfloat16=b16), f, indent=1)
    if args.check and not all(bounds.values()): raise SystemExit(1)


if __name__ == "__main__": main()
