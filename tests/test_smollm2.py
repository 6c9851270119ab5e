"The claims of the documentation, on the real model."
import pytest
import torch

import knowloc as kl

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def lm(): return kl.load_lm("smollm2", device="cpu")


def test_the_neurons_of_known_capitals_matter_and_random_ones_do_not(lm):
    queries = [f.queries[0] for f in kl.load_facts("capital").known(lm, at_least=4)][:10]
    assert len(queries) == 10
    before = lm.answer_logprob(queries).exp()
    scores = kl.localize(lm, queries, "ig", progress=False)
    assert max(float(s.gap.max()) for s in scores) < 1e-3
    with kl.suppress(lm, [s.top(20) for s in scores], positions="last"): after = lm.answer_logprob(queries).exp()
    control = []
    for seed in range(5):
        with kl.suppress(lm, [kl.Neurons.random(lm, 20, 100 * seed + i) for i in range(10)], positions="last"): control.append(lm.answer_logprob(queries).exp())
    print(f"P(answer) {before.mean():.3f}, {after.mean():.4f} without the 20 best, {torch.stack(control).mean():.3f} without 20 random ones")
    assert before.mean() > 10 * after.mean() and torch.stack(control).mean() > .8 * before.mean()


def test_even_steps_miss_the_cliff(lm):
    q = kl.Query("We all learned at school long ago that the capital of France is the city of", "Paris")
    even, ours = (kl.localize(lm, q, "ig", quadrature=r, progress=False) for r in ("riemann", "adaptive"))
    assert int(even.gap.argmax()) == 0 and even.gap[0] > .3 and even.gap[1:].max() < .05 and ours.gap.max() < 1e-3


def test_many_facts_are_complete(lm):
    queries = [f.queries[0] for f in kl.load_facts().sample(24, seed=5)]
    for s in kl.localize(lm, queries, "ig", progress=False): assert s.gap.max() < 1e-3, s


def test_a_gguf_loads_as_itself(tmp_path):
    gguf = kl.model.fetch_smollm2(tmp_path)
    a, b = kl.load_lm(str(gguf), sha256=kl.model.SMOLLM2["sha256"], device="cpu"), kl.load_lm("smollm2", device="cpu")
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))


def test_bfloat16_names_mostly_the_same_neurons(lm):
    q = kl.Query("The capital of France is", "Paris")
    low = kl.localize(kl.load_lm("smollm2", dtype="bfloat16", device="cpu"), q, "ig", progress=False)
    assert len(low.top(20) & kl.localize(lm, q, "ig", progress=False).top(20)) >= 10
