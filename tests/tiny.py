"Tiny random models of every family, a word tokenizer, and the plain loops that the fast paths must equal."
import functools

import torch
import transformers as tf

import knowloc as kl

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
SIZE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=40)
GQA = dict(SIZE, num_key_value_heads=2)
FAMILIES = dict(
    gpt2=(tf.GPT2Config, dict(n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=40)),
    gpt_neo=(tf.GPTNeoConfig, dict(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4,
                                   max_position_embeddings=64, intermediate_size=48, vocab_size=40)),
    gptj=(tf.GPTJConfig, dict(n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=64, vocab_size=40)),
    gpt_neox=(tf.GPTNeoXConfig, dict(SIZE, max_position_embeddings=64)),
    opt=(tf.OPTConfig, dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
                            max_position_embeddings=64, vocab_size=40)),
    bloom=(tf.BloomConfig, dict(hidden_size=32, n_layer=3, n_head=4, vocab_size=40)),
    llama=(tf.LlamaConfig, GQA),
    mistral=(tf.MistralConfig, dict(GQA, sliding_window=4)),
    qwen2=(tf.Qwen2Config, GQA),
    qwen3=(tf.Qwen3Config, dict(GQA, head_dim=8)),
    gemma2=(tf.Gemma2Config, dict(GQA, head_dim=8, sliding_window=4)),
    gemma3=(tf.Gemma3TextConfig, dict(GQA, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    phi=(tf.PhiConfig, dict(SIZE, max_position_embeddings=64)),
    olmo2=(tf.Olmo2Config, SIZE),
    falcon=(tf.FalconConfig, dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=40)),       # not listed by name:
    stablelm=(tf.StableLmConfig, dict(SIZE, num_key_value_heads=4)),                                                # they follow a common shape
)
QUERIES = [kl.Query("a b c d e f g", "x"), kl.Query("q r s t u v w h i j k", "y z x"), kl.Query("m", "n o")]  # lengths and answers differ


def tokenizer(bos=False):
    tok = kl.data.toy_tokenizer([WORDS])
    if not bos: tok._tokenizer.post_processor = kl.data.processors.TemplateProcessing(single="$A", special_tokens=[])
    return tok


def model(family, classifier=False, scale=4., **changes):
    "A random model; weights are scaled up so that what the neurons do is far above rounding."
    cls, cfg = FAMILIES[family]
    auto = tf.AutoModelForSequenceClassification if classifier else tf.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kw = dict(pad_token_id=0, bos_token_id=2, eos_token_id=3, **(dict(num_labels=3) if classifier else {}))
        m = auto.from_config(cls(**{**cfg, **kw, **changes.pop("config", {})}), **changes)
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim > 1: p.mul_(scale)
    return m


@functools.cache
def lm(family, classifier=False, bos=False): return kl.LM(model(family, classifier), tokenizer(bos), name=family)


def queries(lm): return [kl.Query(q.prompt, i) for i, q in enumerate(QUERIES)] if lm.is_classifier else QUERIES


def plain(lm, query, alphas, base=None):
    "The path integral by a plain loop over answer tokens, layers and steps, with whole unpadded prompts: (n_answer, n_layers, d_mlp)."
    e, out = lm.encode(query), []
    for j, y in enumerate(e.answer):
        ids = torch.tensor([e.prompt + ([] if lm.is_classifier else e.answer[:j])])
        for layer in range(lm.n_layers):
            grad, a, b = 0, None, 0
            for alpha in alphas:
                leaf = []
                def put(_, acts):
                    nonlocal a, b
                    a = acts[0, -1].detach()
                    b = torch.zeros_like(a) if base is None else base[j, layer]
                    leaf.append((b + alpha * (a - b)).requires_grad_())
                    return torch.cat([acts[:, :-1], leaf[0][None, None]], 1)
                with lm.hook_neurons(put, [layer]): p = lm.run(ids, torch.ones_like(ids))[0, -1].softmax(-1)[y]
                grad = grad + torch.autograd.grad(p, leaf)[0] / len(alphas)
            out.append((a - b) * grad)
    return torch.stack(out).view(len(e.answer), lm.n_layers, -1)


def far(a, b): return float((a - b).abs().max() / b.abs().max())
