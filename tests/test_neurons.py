"Sets, scores and interventions keep their laws; a model comes out of an intervention as it went in."
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import knowloc as kl

pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 47)), max_size=40)


@given(pairs, pairs)
def test_set_algebra(a, b):
    x, y = kl.Neurons(a), kl.Neurons(b)
    for ours, want in [(x | y, set(a) | set(b)), (x & y, set(a) & set(b)), (x - y, set(a) - set(b)), (x ^ y, set(a) ^ set(b))]:
        assert isinstance(ours, kl.Neurons) and list(ours) == sorted(want) and len(ours) == len(want)
    assert (x == y) == (set(a) == set(b)) and (x <= y) == (set(a) <= set(b))
    if x == y: assert hash(x) == hash(y)
    lm = tiny.lm("llama")
    assert kl.Neurons.from_mask(x.to_mask(lm)) == x and int(x.to_mask(lm).sum()) == len(x)


def test_save_and_load(tmp_path):
    n = kl.Neurons([(2, 3), (0, 1)])
    n.save(tmp_path / "n.json")
    assert kl.Neurons.load(tmp_path / "n.json") == n
    s = kl.Scores(torch.rand(3, 4), gap=torch.rand(3), method="ig", query=("a", "b"), info=dict(steps=3))
    s.save(tmp_path / "s.safetensors")
    t = kl.Scores.load(tmp_path / "s.safetensors")
    assert torch.equal(s.values, t.values) and torch.equal(s.gap, t.gap) and (t.method, t.query, t.info) == ("ig", ("a", "b"), dict(steps=3))


@given(st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=3, max_size=3), st.integers(1, 6), st.floats(.05, .95))
def test_selection_rules(rows, k, tau):
    s = kl.Scores(torch.tensor(rows, dtype=torch.float32))
    flat = sorted(((v, -l, -i) for l, r in enumerate(rows) for i, v in enumerate(r)), reverse=True)
    assert s.top(k) == kl.Neurons((-l, -i) for _, l, i in flat[:k])
    assert s.top(k, per_layer=True).per_layer() == {0: k, 1: k, 2: k}
    top = max(map(max, rows))
    assert s.above(tau) == kl.Neurons((l, i) for l, r in enumerate(rows) for i, v in enumerate(r) if top > 0 and v > tau * top)
    assert s.top(1/3) == s.top(6) and s.top(.5, per_layer=True) == s.top(3, per_layer=True)


def test_shared_keeps_what_more_than_a_share_agrees_on():
    a, b, c = kl.Neurons([(0, 1), (0, 2)]), kl.Neurons([(0, 2), (0, 3)]), kl.Neurons([(0, 2), (0, 1)])
    assert kl.shared([a, b, c], .5) == kl.Neurons([(0, 1), (0, 2)]) and kl.shared([a, b, c], .7) == kl.Neurons([(0, 2)])
    assert kl.shared([a, b, c], 1.) == kl.Neurons() == kl.shared([])


def brute(lm, query, new):
    "P(answer) of an unpadded run in which `new(layer, acts, first)` gives the activations; `first` is the last prompt position."
    e = lm.encode(query)
    ids = torch.tensor([e.prompt + ([] if lm.is_classifier else e.answer[:-1])])
    hooks = []
    for l, d in enumerate(lm.downs):
        def hook(m, args, l=l): return new(l, args[0].view(1, ids.shape[1], -1).clone(), len(e.prompt) - 1).view(args[0].shape)
        hooks.append(d.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            if lm.is_classifier: return lm.model(ids).logits[0].softmax(-1)[e.answer[0]]
            p = lm.model(ids).logits[0].softmax(-1)
            return torch.stack([p[len(e.prompt) - 1 + j, y] for j, y in enumerate(e.answer)]).prod()
    finally:
        for h in hooks: h.remove()


SETS = [kl.Neurons([(0, 3), (1, 7), (1, 9)]), kl.Neurons([(1, 1)]), kl.Neurons([(0, 0), (1, 40)])]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_interventions_equal_plain_hooks(family, positions):
    "all four, one set and one per query, in a padded batch; OPT's flattened MLP among the families"
    lm = tiny.lm(family)
    values = torch.randn(lm.n_layers, lm.d_mlp, generator=torch.Generator().manual_seed(1))
    kinds = dict(suppress=(lambda n: kl.suppress(lm, n, positions), lambda a, l: 0 * a), enhance=(lambda n: kl.enhance(lm, n, 3., positions), lambda a, l: 3 * a),
                 patch=(lambda n: kl.patch(lm, n, values, positions), lambda a, l: values[l].expand_as(a)))
    def plain(n, change, invert=False):
        def new(l, a, first):
            at = n.to_mask(lm)[l] ^ invert
            where = (torch.arange(a.shape[1]) >= (first if positions == "last" else 0))[None, :, None] & at
            return torch.where(where, change(a, l), a)
        return new
    for name, (ours, change) in kinds.items():
        for sets in ([SETS[0]] * 3, SETS):
            with ours(sets[0] if sets[0] is sets[1] else sets): got = lm.answer_logprob(tiny.QUERIES).exp()
            want = torch.stack([brute(lm, q, plain(n, change)) for q, n in zip(tiny.QUERIES, sets)])
            assert torch.allclose(got, want, rtol=1e-3, atol=1e-7), name
    some = kl.Neurons.random(lm, lm.n_layers * lm.d_mlp // 2)
    with kl.keep_only(lm, some, positions): got = lm.answer_logprob(tiny.QUERIES).exp()
    assert torch.allclose(got, torch.stack([brute(lm, q, plain(some, lambda a, l: 0 * a, True)) for q in tiny.QUERIES]), rtol=1e-3, atol=1e-7)


def test_interventions_nest_and_undo_each_other():
    lm, n = tiny.lm("gpt2"), kl.Neurons([(0, 1), (2, 5)])
    clean = lm.answer_logprob(tiny.QUERIES)
    with kl.enhance(lm, n, 4.):
        with kl.enhance(lm, n, .25): assert torch.allclose(lm.answer_logprob(tiny.QUERIES), clean, atol=1e-5)
        with kl.suppress(lm, n): inner = lm.answer_logprob(tiny.QUERIES)
    with kl.suppress(lm, n): assert torch.equal(lm.answer_logprob(tiny.QUERIES), inner)
    assert torch.equal(lm.answer_logprob(tiny.QUERIES), clean)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_the_model_is_restored_to_the_bit(error):
    lm = kl.LM(tiny.model("opt"), tiny.tokenizer())
    weights, clean = [p.clone() for p in lm.model.parameters()], lm.answer_logprob(tiny.QUERIES)
    with pytest.raises(error):
        with kl.suppress(lm, SETS[0]), kl.patch(lm, SETS, 1.):
            lm.answer_logprob(tiny.QUERIES)
            raise error
    assert torch.equal(lm.answer_logprob(tiny.QUERIES), clean) and all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters()))
    assert not any(m._forward_pre_hooks for m in lm.model.modules())


def test_interventions_hold_in_the_models_own_generate():
    "positions='last' acts on the prompt's last token and on every one after it"
    lm, n = tiny.lm("llama"), kl.Neurons((1, i) for i in range(20))
    ids = torch.tensor([lm.encode(tiny.QUERIES[0]).prompt])
    with kl.suppress(lm, n, "last"): got = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)[0, ids.shape[1]:]
    seq, first = ids, ids.shape[1] - 1
    for t in got.tolist():
        def put(l, a): a = a.clone(); a[:, first:, :20] = 0; return a
        with lm.hook_neurons(put, [1]), torch.no_grad(): nxt = int(lm.model(seq).logits[0, -1].argmax())
        assert nxt == t
        seq = torch.cat([seq, torch.tensor([[t]])], 1)


def test_patch_takes_one_value_per_neuron_and_values_per_query():
    lm = tiny.lm("llama")
    with kl.patch(lm, SETS[0], [1., 2., 3.]): a = lm.answer_logprob(tiny.QUERIES)
    v = torch.zeros(lm.n_layers, lm.d_mlp)
    v[0, 3], v[1, 7], v[1, 9] = 1, 2, 3
    with kl.patch(lm, SETS[0], v): assert torch.equal(a, lm.answer_logprob(tiny.QUERIES))
    with kl.patch(lm, SETS, torch.stack([v, 2 * v, 3 * v])): b = lm.answer_logprob(tiny.QUERIES)
    for i in range(3):
        with kl.patch(lm, SETS[i], (i + 1) * v): assert torch.allclose(b[i], lm.answer_logprob(tiny.QUERIES)[i], atol=1e-5)
    with pytest.raises(ValueError, match="2 values for 3 neurons"): kl.patch(lm, SETS[0], [1., 2.])
    with pytest.raises(ValueError, match="Values of shape"): kl.patch(lm, SETS[0], torch.zeros(2, 2))


def test_bad_interventions():
    lm = tiny.lm("llama")
    with pytest.raises(ValueError, match=r"\(3, 0\) is outside llama, which has layers 0-2 of neurons 0-47"):
        with kl.suppress(lm, kl.Neurons([(3, 0)])): pass
    with pytest.raises(ValueError, match="choose 'all' or 'last'"):
        with kl.suppress(lm, SETS[0], positions="first"): pass
    for bad in ([(0, 1)], []):
        with pytest.raises(TypeError, match="Give a Neurons"):
            with kl.suppress(lm, bad): pass
    with pytest.raises(ValueError, match="2 sets, but a query number 2"):
        with kl.patch(lm, SETS[0], torch.zeros(2, lm.n_layers, lm.d_mlp)): lm.answer_logprob(tiny.QUERIES)
    with pytest.raises(ValueError, match="2 sets, but a query number 2"):
        with kl.suppress(lm, SETS[:2]): lm.answer_logprob(tiny.QUERIES)
    for bad in ([(0, -1)], [(1,)], [(0, 1, 2)]):
        with pytest.raises(ValueError, match="is no neuron"): kl.Neurons(bad)
    with pytest.raises(ValueError, match="Cannot pick"): kl.Neurons.random(lm, 10**6)
    with pytest.raises(ValueError, match="chooses 0 of 144"): kl.Scores(torch.zeros(3, 48)).top(.001)
