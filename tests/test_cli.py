"The commands: what they print, what they write, and what they refuse."
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import knowloc as kl
from knowloc import cli


def run(capsys, *argv):
    code = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def only_error(code, out, err):
    assert code == 2 and out == ""
    lines = [l for l in err.splitlines() if l.startswith("knowloc: error: ")]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


@pytest.fixture(scope="module")
def fact(): return next(iter(kl.toy_world().facts))


@pytest.fixture
def query(fact): return fact.queries[0].prompt, fact.answer


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo")/"deep"/"report"
    assert cli.main(["demo", "--model", "toy", "--facts", "3", "--out", str(path)]) == 0
    return path


def test_locate_prints_a_table(capsys, query):
    code, out, err = run(capsys, "locate", *query, "--model", "toy", "--top", 4)
    assert code == 0
    assert "P(answer) = " in out and "next tokens: " in out and "worst completeness gap" in out
    rows = re.findall(r"^ +(\d+) +(\d+) +(-?[\d.]+) +(-?[\d.]+)   '", out, re.M)
    best = kl.localize(kl.load_lm("toy"), kl.Query(*query)).table(4)
    assert [(int(l), int(i)) for l, i, *_ in rows] == list(zip(best["layer"], best["neuron"]))


def test_locate_json_is_one_object_and_nothing_else(capsys, query, tmp_path):
    code, out, _ = run(capsys, "locate", *query, "--model", "toy", "--method", "grad_x_act", "--top", 3, "--json", "--save", tmp_path/"a b")
    d = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert d["method"] == "grad_x_act" and d["gap"] is None and len(d["neurons"]) == 3
    lm = kl.load_lm("toy")
    assert d["p_answer"] == pytest.approx(lm.answer_logprob([query]).exp().item()) and d["answer_tokens"] == lm.encode(query).tokens
    assert all(len(n["promotes"]) == 5 for n in d["neurons"])
    saved = kl.Scores.load(tmp_path/"a b/scores.safetensors")
    assert kl.Neurons.load(tmp_path/"a b/neurons.json") == saved.top(3) == kl.Neurons((n["layer"], n["neuron"]) for n in d["neurons"])
    assert json.loads((tmp_path/"a b/manifest.json").read_text())["files"] == ["neurons.json", "scores.png", "scores.safetensors"]


def test_a_write_is_the_activation_times_the_value_vector(query):
    lm = kl.load_lm("toy")
    acts = kl.neurons.read(lm, [query])[0][0]
    (up,), (down,) = cli.promotes(lm, [(1, 2)], acts.abs() + 1, k=1), cli.promotes(lm, [(1, 2)], -acts.abs() - 1, k=1)
    logits = lm.model.get_output_embeddings().weight @ lm.value_vectors(1)[2]
    assert (up, down) == ([lm.tokenizer.decode([logits.argmax()])], [lm.tokenizer.decode([logits.argmin()])])


def test_a_classifier_speaks_in_labels(capsys, query, tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification
    tok = kl.load_lm("toy").tokenizer
    model = GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=len(tok), pad_token_id=0,
                                                     id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}))
    for part in (model, tok): part.save_pretrained(tmp_path/"judge")
    code, out, _ = run(capsys, "locate", query[0], "good", "--model", tmp_path/"judge", "--top", 2, "--json")
    assert code == 0 and all(sorted(n["promotes"]) == ["bad", "good"] for n in json.loads(out)["neurons"])
    assert "is no label" in only_error(*run(capsys, "locate", query[0], "ugly", "--model", tmp_path/"judge"))


def test_bad_input_is_one_line_and_exit_status_2(capsys, query, tmp_path):
    bad = lambda *argv: only_error(*run(capsys, *argv))
    assert "Empty answer" in bad("locate", "The capital is", " ")
    assert "Empty prompt" in bad("locate", "", "Paris")
    assert "No localizer 'magic'" in bad("locate", *query, "--model", "toy", "--method", "magic")
    assert "no/such/model" in bad("locate", *query, "--model", "no/such/model")
    assert "mine.gguf" in bad("locate", *query, "--model", "mine.gguf")
    assert "float33" in bad("locate", *query, "--model", "toy", "--dtype", "float33")
    assert "device 'abacus'" in bad("locate", *query, "--model", "toy", "--device", "abacus")
    assert "--top 0" in bad("locate", *query, "--model", "toy", "--top", 0)
    assert "invalid int value: 'many'" in bad("locate", *query, "--top", "many")
    assert "--facts 0" in bad("demo", "--model", "toy", "--facts", 0, "--out", tmp_path/"r")
    assert "invalid choice: 'find'" in bad("find")
    assert "COMMAND" in bad()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_before_the_work(capsys, query, tmp_path, monkeypatch):
    monkeypatch.setattr(kl, "load_lm", lambda *a, **k: pytest.fail("the model was loaded first"))
    (tmp_path/"file").write_text("mine")
    (tmp_path/"full").mkdir()
    (tmp_path/"full"/"thesis.tex").write_text("mine")
    there = "is there already"
    for path, why in [("file/report", "Cannot write"), ("file", there), ("full", there), (".", there)]:
        assert why in only_error(*run(capsys, "demo", "--out", tmp_path/path))
        assert why in only_error(*run(capsys, "locate", *query, "--save", tmp_path/path))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "thesis.tex"]


def test_demo_writes_a_whole_report(report):
    manifest = json.loads((report/"manifest.json").read_text("utf8"))
    assert sorted(manifest["files"] + ["manifest.json"]) == sorted(p.name for p in report.iterdir())
    assert {"model", "method", "versions", "device", "seed", "metrics", "positions"} <= set(manifest) and len(manifest["facts"]) == 3
    assert [p.name for p in report.parent.iterdir()] == ["report"], "something temporary was left"

    class Page(HTMLParser):
        links = []
        def handle_starttag(self, tag, attrs): self.links += [v for k, v in attrs if k in ("src", "href")]
    page = (report/"index.html").read_text("utf8")
    Page().feed(page)
    assert sorted(Page.links) == sorted(p.name for p in report.glob("*.png"))
    assert all(s in page for s in ("Findings", "0.1.0", "Dai et al. 2022"))


def test_demo_rows_hold_what_the_table_says(report):
    rows, pairs, neurons = (pd.read_parquet(report/f"{n}.parquet") for n in ("effects", "pairs", "neurons"))
    n = rows["query"].nunique()
    assert len(rows) == n * (1 + 2 * 6) and len(pairs) == n * (n - 1) // 2 and len(neurons) == n * 20
    assert rows["p"].between(0, 1).all() and pairs["overlap"].between(0, 1).all()
    mean = rows.groupby(["neurons", "action"])["p"].mean()
    assert mean["located", "suppress"] < mean["random", "suppress"] < 1.05 * mean["none", "none"]
    assert pairs.groupby("same_fact")["overlap"].mean()[True] > pairs.groupby("same_fact")["overlap"].mean()[False]

    lm, one = kl.load_lm("toy"), neurons[neurons["query"] == 0]
    q = [(one["prompt"].iloc[0], re.search(r"→ (.*) \(", one["fact"].iloc[0])[1])]
    with kl.suppress(lm, kl.Neurons(zip(one["layer"], one["neuron"])), positions="last"): p = lm.answer_logprob(q).exp().item()
    assert rows.query("query == 0 and neurons == 'located' and action == 'suppress'")["p"].item() == pytest.approx(p, rel=1e-3)


def test_an_earlier_report_is_replaced_unless_something_else_is_in_it(report, tmp_path):
    for f in report.iterdir(): (tmp_path/"r").mkdir(exist_ok=True); (tmp_path/"r"/f.name).write_bytes(f.read_bytes())
    with cli.whole_folder(tmp_path/"r") as d: (d/"new").touch()
    assert [p.name for p in (tmp_path/"r").iterdir()] == ["new"]
    with pytest.raises(FileExistsError), cli.whole_folder(tmp_path/"r"): pytest.fail("it has no manifest now")
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_demo_leaves_the_earlier_report(report, monkeypatch, capsys, error):
    before = {p.name: p.read_bytes() for p in report.iterdir()}
    def stop(*a, **k): raise error("disk full")
    monkeypatch.setattr(cli, "page", stop)
    code, out, err = run(capsys, "demo", "--model", "toy", "--facts", 1, "--out", report)
    assert code == (130 if error is KeyboardInterrupt else 2) and out == "" and "Traceback" not in err
    assert {p.name: p.read_bytes() for p in report.iterdir()} == before and len(list(report.parent.iterdir())) == 1


def test_facts_are_the_same_for_the_same_seed():
    world = kl.toy_world()
    a, b, c = (cli.pick_facts(world.lm, world.facts, 5, seed=s) for s in (0, 0, 1))
    assert a == b != c and len({f.relation for f in a}) == 5


def test_models(capsys):
    code, out, _ = run(capsys, "models")
    assert code == 0 and all(n in out for n in kl.model.NAMES) and all(a.name in out for a in kl.model.ARCHS)


def test_help_in_a_process_of_its_own():
    r = subprocess.run([sys.executable, "-c", "import sys; from knowloc.cli import main; sys.exit(main(['locate', '--help']))"],
                       capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert r.returncode == 0 and "--save DIR" in r.stdout and r.stderr == ""
