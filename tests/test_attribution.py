"Localizers equal plain loops on every family, and keep the laws they promise."
import subprocess
import sys

import pytest
import tiny
import torch

import knowloc as kl
from knowloc import attribution as at

REFERENCE = dict(amig=dict(reference=["a b c", "x y"]))  # the embedded prompts are not in these models' language
families = pytest.mark.parametrize("family", tiny.FAMILIES)
heads = pytest.mark.parametrize("classifier", [False, True], ids=["causal", "classifier"])


@families
@heads
def test_equal_plain_loops(family, classifier):
    "ig, grad_x_act and activations, one and several answer tokens, padded in one batch"
    lm = tiny.lm(family, classifier)
    qs = tiny.queries(lm)
    for s, q in zip(kl.localize(lm, qs, "ig", quadrature="riemann", steps=6), qs):
        assert tiny.far(s.values, tiny.plain(lm, q, torch.linspace(0, 1, 6)).mean(0)) < 1e-4
    for s, q in zip(kl.localize(lm, qs, "grad_x_act"), qs):
        assert tiny.far(s.values, tiny.plain(lm, q, [1.]).mean(0)) < 1e-4
    for s, q in zip(kl.localize(lm, qs, "activations"), qs):
        acts = {}
        with lm.hook_neurons(lambda l, a: acts.__setitem__(l, a[0].detach())):
            e = lm.encode(q)
            ids = torch.tensor([e.prompt + ([] if classifier else e.answer[:-1])])
            lm.run(ids, torch.ones_like(ids))
        want = torch.stack([acts[l][-len(e.answer):].mean(0).abs() * lm.value_vectors(l).norm(dim=1) for l in range(lm.n_layers)])
        assert tiny.far(s.values, want.detach()) < 1e-4


@families
@heads
def test_adaptive_is_complete(family, classifier):
    lm = tiny.lm(family, classifier)
    for s, q in zip(kl.localize(lm, tiny.queries(lm), "ig"), tiny.queries(lm)):
        assert s.gap.max() < 1e-3
        if len(lm.encode(q).answer) > 1: continue
        p = lm.answer_logprob([q]).exp()
        for layer in range(lm.n_layers):  # the reported gap is the true one
            with kl.suppress(lm, kl.Neurons((layer, i) for i in range(lm.d_mlp)), positions="last"): rest = lm.answer_logprob([q]).exp()
            assert abs(abs(s.values[layer].sum() - (p - rest)) - s.gap[layer]) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_adaptive_equals_a_fine_plain_loop(family):
    lm = tiny.lm(family)
    fine = tiny.plain(lm, tiny.QUERIES[0], (torch.arange(400) + .5) / 400).mean(0)
    assert tiny.far(kl.localize(lm, tiny.QUERIES[0], "ig").values, fine) < 1e-3


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neo"])
def test_sig_and_amig_equal_plain_loops(family):
    lm, q, eos = tiny.lm(family), tiny.QUERIES[1], 3
    e, steps = lm.encode(q), torch.linspace(0, 1, 6)
    starts = []
    for k in range(len(e.prompt)):
        ids = torch.tensor([e.prompt[:k] + [eos] + e.prompt[k+1:] + e.answer[:-1]])
        acts = {}
        with torch.no_grad(), lm.hook_neurons(lambda l, a, acts=acts: acts.__setitem__(l, a[0, -len(e.answer):])): lm.run(ids, torch.ones_like(ids))
        starts.append(torch.stack([acts[l] for l in range(lm.n_layers)], 1))
    want = torch.stack([tiny.plain(lm, q, steps, base=b).mean(0) for b in starts]).mean(0)
    assert tiny.far(kl.localize(lm, tiny.QUERIES, "sig", quadrature="riemann", steps=6)[1].values, want) < 1e-4

    reference = ["a b c", "x y z w", "m"]
    mean = torch.stack([kl.neurons.read(lm, [kl.Query(p, "a")])[0][-1] for p in reference]).mean(0)
    raw = tiny.plain(lm, q, steps, base=mean.expand(len(e.answer), -1, -1))
    want = (raw / raw.abs().sum(-1, keepdim=True)).mean(0)
    assert tiny.far(kl.localize(lm, q, "amig", reference=reference, quadrature="riemann", steps=6).values, want) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_ig_equals_captum(family):
    """captum's LayerIntegratedGradients starts from the activations of a baseline *input*. With the last token replaced, only the last position
    changes, so it walks the very path that `integrate` walks from that baseline."""
    from captum.attr import LayerIntegratedGradients
    lm, q = tiny.lm(family), tiny.QUERIES[0]
    e = lm.encode(q)
    ids, other = torch.tensor([e.prompt]), torch.tensor([e.prompt[:-1] + [3]])
    runs = at.run_queries(lm, [q])
    ours, _, _ = at.integrate(runs, at.read_last(lm, other.tolist())[:, 0], torch.tensor([0]), tol=1e-7, rtol=1)
    def p(x): return lm.model(x).logits[:, -1].softmax(-1)[:, e.answer[0]]
    for layer in range(lm.n_layers):
        theirs = LayerIntegratedGradients(p, lm.downs[layer]).attribute(ids, other, n_steps=64, attribute_to_layer_input=True)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        assert tiny.far(ours[0, layer], theirs[0, -1]) < 1e-3 and theirs[0, :-1].abs().max() < 1e-6


def test_ig_is_the_same_alone_batched_and_in_small_sweeps():
    lm = tiny.lm("mistral")
    together = kl.localize(lm, tiny.QUERIES, "ig")
    for kw in (dict(batch_size=1), dict(batch_size=2), dict(memory=1.)):
        for a, b in zip(together, kl.localize(lm, tiny.QUERIES, "ig", **kw)): assert tiny.far(a.values, b.values) < 1e-4
    for a, q in zip(together, tiny.QUERIES): assert tiny.far(a.values, kl.localize(lm, q, "ig").values) < 1e-4


@pytest.mark.parametrize("method", ["ig", "sig", "grad_x_act"])
@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox"])
def test_attention_implementation_changes_nothing(family, method):
    sdpa, eager = (kl.LM(tiny.model(family, attn_implementation=a), tiny.tokenizer()) for a in ("sdpa", "eager"))
    for a, b in zip(kl.localize(sdpa, tiny.QUERIES, method), kl.localize(eager, tiny.QUERIES, method)): assert tiny.far(a.values, b.values) < 1e-3


def test_the_model_and_the_random_state_are_left_alone():
    lm = kl.LM(tiny.model("llama"), tiny.tokenizer())
    lm.blocks[0].mlp.up_proj.weight.requires_grad_(False)
    weights, flags = [p.clone() for p in lm.model.parameters()], [p.requires_grad for p in lm.model.parameters()]
    state = torch.get_rng_state()
    for m in at.LOCALIZERS: kl.localize(lm, tiny.QUERIES, m, **REFERENCE.get(m, {}))
    try:
        def stop(n): raise KeyboardInterrupt
        at.ig(lm, tiny.QUERIES, tick=stop)
    except KeyboardInterrupt: pass
    assert all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters()))
    assert flags == [p.requires_grad for p in lm.model.parameters()] and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in lm.model.parameters())
    assert not any(m._forward_pre_hooks for m in lm.model.modules())


@pytest.mark.parametrize("family", ["llama", "opt", "bloom"])
def test_localize_under_an_intervention_sees_the_changed_model(family):
    "Suppressed neurons score 0, and completeness holds for the model as it then is."
    lm, off = tiny.lm(family), kl.Neurons([(0, 1), (1, 2), (1, 3)])
    for positions in ("all", "last"):
        with kl.suppress(lm, off, positions):
            s = kl.localize(lm, tiny.QUERIES[0], "ig")
            p = lm.answer_logprob(tiny.QUERIES[:1]).exp()
            with kl.suppress(lm, kl.Neurons((1, i) for i in range(lm.d_mlp)), "last"): rest = lm.answer_logprob(tiny.QUERIES[:1]).exp()
        assert s.values[off.to_mask(lm)].abs().max() == 0
        assert abs(s.values[1].sum() - (p - rest)) < 1e-3


@pytest.mark.parametrize("method", ["ig", "sig", "grad_x_act", "activations"])
def test_an_intervention_with_one_set_per_query_finds_its_query(method):
    "in whatever batches the queries run"
    lm, sets = tiny.lm("llama"), [kl.Neurons([(0, 1), (1, 2)]), kl.Neurons([(0, 30)]), kl.Neurons([(1, 7), (1, 8)])]
    want = []
    for q, n in zip(tiny.QUERIES, sets):
        with kl.suppress(lm, n, "last"): want.append(kl.localize(lm, q, method).values)
    for size in (1, 2, None):
        with kl.suppress(lm, sets, "last"):
            for a, b in zip(kl.localize(lm, tiny.QUERIES, method, batch_size=size), want): assert tiny.far(a.values, b) < 1e-4
    with pytest.raises(ValueError, match="amig's reference"), kl.suppress(lm, sets): kl.localize(lm, tiny.QUERIES, "amig", reference=["a b"])
    assert lm._first == 0 and lm._call is None


def test_a_localizer_must_give_one_scores_per_query():
    kl.localizer("short")(lambda lm, queries: [kl.Scores(torch.zeros(lm.n_layers, lm.d_mlp), info=dict(seconds=1))])
    try:
        assert kl.localize(tiny.lm("llama"), tiny.QUERIES[0], "short").info["options"] == {}
        with pytest.raises(ValueError, match="1 Scores for 3 queries"): kl.localize(tiny.lm("llama"), tiny.QUERIES, "short", batch_size=3)
    finally: at.LOCALIZERS.pop("short")


def test_options_are_recorded_with_their_defaults():
    s = kl.localize(tiny.lm("llama"), tiny.QUERIES[0], "ig", steps=3)
    assert s.info["options"] == dict(quadrature="adaptive", steps=3, tol=1e-3, rtol=1e-2)


def test_a_tolerance_below_rounding_ends():
    s = kl.localize(tiny.lm("gemma2"), tiny.QUERIES[0], "ig", tol=1e-12)
    assert s.info["rows"] < 20000 and s.gap.max() < 1e-4


def test_localizers_of_your_own_run_like_the_others():
    @kl.localizer("ones")
    def ones(lm, queries, value=1.): return [kl.Scores(torch.full((lm.n_layers, lm.d_mlp), value)) for _ in queries]
    try:
        s = kl.localize(tiny.lm("llama"), tiny.QUERIES, "ones", value=2.)
        assert s[2].method == "ones" and s[2].query == ("m", "n o") and s[2].values.min() == 2 and s[2].info["options"] == {"value": 2.}
    finally: at.LOCALIZERS.pop("ones")


def test_random_depends_on_seed_and_query_only():
    lm = tiny.lm("llama")
    a, b = kl.localize(lm, tiny.QUERIES[:2], "random"), kl.localize(lm, tiny.QUERIES[1], "random")
    assert torch.equal(a[1].values, b.values) and not torch.equal(a[0].values, a[1].values)
    assert not torch.equal(b.values, kl.localize(lm, tiny.QUERIES[1], "random", seed=1).values)


def test_bad_arguments():
    lm = tiny.lm("llama")
    with pytest.raises(ValueError, match="No localizer 'igg'. There are: ig"): kl.localize(lm, tiny.QUERIES[0], "igg")
    with pytest.raises(TypeError, match="no option 'step'.*steps"): kl.localize(lm, tiny.QUERIES[0], "ig", step=3)
    with pytest.raises(ValueError, match="choose 'adaptive' or 'riemann'"): kl.localize(lm, tiny.QUERIES[0], "ig", quadrature="simpson")
    with pytest.raises(ValueError, match="pass reference="): kl.localize(lm, tiny.QUERIES[0], "amig")
    for bad in (dict(steps=0), dict(steps=-1), dict(tol=0)):
        with pytest.raises(ValueError, match="must be positive"): kl.localize(lm, tiny.QUERIES[0], "ig", **bad)
    with pytest.raises(ValueError, match="batch_size=-1"): kl.localize(lm, tiny.QUERIES[0], batch_size=-1)
    with pytest.raises(TypeError, match="facts.queries"): kl.localize(lm, kl.load_facts("capital"))
    assert kl.localize(lm, []) == [] and kl.localize(lm, ("a b", "c")).query == ("a b", "c")


def test_radau_is_exact_for_its_degree():
    for n in (2, 3, 5, 8):
        x, w = at.radau(n)
        assert x[0] == 0 and all(abs(float((w * x ** k).sum()) - 1 / (k + 1)) < 1e-6 for k in range(2 * n - 1))


def test_low_precision_runs():
    lm = kl.LM(tiny.model("llama", scale=2.).to(torch.bfloat16), tiny.tokenizer())
    assert all(torch.isfinite(s.values).all() for m in at.LOCALIZERS for s in kl.localize(lm, tiny.QUERIES, m, **REFERENCE.get(m, {})))


MEASURE = """
import resource, sys, torch, knowloc as kl
lm = kl.load_lm("smollm2", device="cpu")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
qs = [kl.Query("The capital of France is", "Paris")] * int(sys.argv[1])
kl.localize(lm, qs[0], "grad_x_act", progress=False)
before, e = peak(), kl.estimate(lm, qs, "ig", quadrature="riemann")
kl.localize(lm, qs, "ig", quadrature="riemann", progress=False)
print(peak(), peak() - before, e.bytes)
"""


@pytest.mark.slow
@pytest.mark.network
def test_memory_is_bounded_and_estimated():
    peak, used, said = map(int, subprocess.check_output([sys.executable, "-c", MEASURE, "8"], text=True).split())
    assert peak < 3e9
    assert said / 3 < used < 1.5 * said


@pytest.mark.gpu
def test_gpu_equals_cpu():
    lm, gpu = tiny.lm("llama"), kl.LM(tiny.model("llama").cuda(), tiny.tokenizer())
    for m in at.LOCALIZERS:
        for a, b in zip(*(kl.localize(x, tiny.QUERIES, m, **REFERENCE.get(m, {})) for x in (lm, gpu))): assert tiny.far(a.values, b.values) < 1e-3
    sets = [kl.Neurons([(0, 1), (1, 2)]), kl.Neurons([(0, 30)]), kl.Neurons([(1, 7)])]
    for positions in ("all", "last"):
        for n in (sets[0], sets):
            with kl.suppress(lm, n, positions), kl.suppress(gpu, n, positions), kl.patch(lm, sets[0], 1.), kl.patch(gpu, sets[0], 1.):
                assert torch.allclose(lm.answer_logprob(tiny.QUERIES), gpu.answer_logprob(tiny.QUERIES), atol=1e-3)
    a, b = tiny.lm("opt", True), kl.LM(tiny.model("opt", True).cuda(), tiny.tokenizer())
    assert tiny.far(kl.localize(b, tiny.queries(b))[0].values, kl.localize(a, tiny.queries(a))[0].values) < 1e-3
