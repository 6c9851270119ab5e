"Facts, loaders and the toy world."
import json
from collections import Counter

import pytest
import tiny
import torch

import knowloc as kl


def test_the_embedded_facts_are_what_they_should_be():
    facts = kl.load_facts()
    assert len(facts) >= 300 and len(facts.relations) >= 12 and all(len(set(f.prompts)) == 5 for f in facts)
    assert max(Counter((f.relation, f.subject) for f in facts).values()) == 1
    for f in facts:
        assert all(p == p.strip() and f.subject in p and "[X]" not in p for p in f.prompts) and f.answer == f.answer.strip()
    assert len(kl.load_facts("capital", "opposite")) == facts.relations["capital"] + facts.relations["opposite"]
    with pytest.raises(ValueError, match="No relation.*There are"): kl.load_facts("capitals")


def test_facts_select_and_slice():
    facts = kl.load_facts("capital")
    assert len(facts[:3]) == 3 and facts[:3][2] == facts[2] and list(facts[:2]) == [facts[0], facts[1]]
    assert facts.sample(5, seed=1).dataset["subject"] == facts.sample(5, seed=1).dataset["subject"] != facts.sample(5, seed=2).dataset["subject"]
    assert [q.prompt for q in facts[0].queries] == list(facts[0].prompts)


def test_known_keeps_the_right_queries():
    lm = tiny.lm("llama")
    best = lm.encode(("a b", "c")) and [t for t, _ in lm.next_tokens("a b", 1)][0]
    facts = kl.Facts([kl.Fact("r", "s", best, ("a b", "c d e", "a b")), kl.Fact("r", "t", "q", ("a b",))])
    right = lm.knows(facts.queries).tolist()
    assert right[0] and right[2] and not right[3]
    known = facts.known(lm)
    assert len(known) == 1 and len(known[0].prompts) == sum(right[:3])
    assert len(facts.known(lm, at_least=4)) == 0
    with pytest.warns(UserWarning, match="1 queries cannot be put to llama"):
        assert len(kl.Facts([*facts, kl.Fact("r", "u", "zebra", ("a b",))]).known(lm)) == 1


@pytest.mark.parametrize("text, says", [
    ('{"prompt": "a", "answer": "b"}\n{"prompt": ', r"f.jsonl:2: not valid JSON"), ("[1]", "f.jsonl:1: expected an object"), ("", "the file is empty"),
    ('{"prompt": "a"}', 'f.jsonl:1: needs "answer"'),
    ('\n{"prompt": " ", "answer": "b"}', "f.jsonl:2: Empty prompt"), ('{"prompts": "a", "answer": "b"}', "f.jsonl:1: needs"),
    ('{"prompt": "a", "answer": ["b"]}', "f.jsonl:1: needs"), ('{"prompts": [null], "answer": "b"}', "f.jsonl:1: Empty prompt"),
    (b'{"prompt": "a", "answer": "b"}\n\xff', "f.jsonl:2: not UTF-8")])
def test_broken_jsonl_names_file_and_line(tmp_path, text, says):
    (tmp_path / "f.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says): kl.load_jsonl(tmp_path / "f.jsonl")


def test_jsonl(tmp_path):
    rows = [dict(prompt="a b", answer="c"), dict(relation="r", subject="s", answer="x", prompts=["p", "q"])]
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, rows)))
    facts = kl.load_jsonl(tmp_path / "f.jsonl")
    assert [f.queries for f in facts] == [[kl.Query("a b", "c")], [kl.Query("p", "x"), kl.Query("q", "x")]] and facts[1].relation == "r"
    (tmp_path / "g.jsonl").write_text('\ufeff{"prompt": "a\u2028b", "answer": 0}\n', encoding="utf8")
    assert kl.load_jsonl(tmp_path / "g.jsonl")[0].queries == [kl.Query("a\u2028b", "0")]
    with pytest.raises(FileNotFoundError, match="No such file"): kl.load_jsonl(tmp_path / "none.jsonl")


def test_pararel_keeps_patterns_that_end_in_the_object(data_dir):
    facts = kl.load_pararel(data_dir / "pararel", limit=20)
    assert len(facts.relations) >= 8
    capital = kl.load_pararel(data_dir / "pararel" / "data", relations=["P36"])
    assert "The capital of Cook County is" in capital[0].prompts and capital[0].answer == "Chicago"
    assert all(not p.endswith(" ") and "[" not in p for f in capital for p in f.prompts)
    assert not any(p.startswith(("Chicago", "[Y]")) for p in capital[0].prompts)
    with pytest.raises(ValueError, match="No relation"): kl.load_pararel(data_dir / "pararel", relations=["P0"])
    with pytest.raises(FileNotFoundError, match="pattern_data"): kl.load_pararel(data_dir)


def test_pararel_from_its_format(tmp_path):
    (tmp_path / "pattern_data/graphs_json").mkdir(parents=True)
    (tmp_path / "trex_lms_vocab").mkdir()
    pats = ["[X] lies in [Y] .", "[Y] holds [X].", "[X] is in [Y].", "[X], located in [Y], is nice."]
    (tmp_path / "pattern_data/graphs_json/P1.jsonl").write_text("\n".join(json.dumps(dict(pattern=p)) for p in pats))
    (tmp_path / "trex_lms_vocab/P1.jsonl").write_text(json.dumps(dict(sub_label="Rome", obj_label="Italy")))
    assert list(kl.load_pararel(tmp_path)) == [kl.Fact("P1", "Rome", "Italy", ("Rome lies in", "Rome is in"))]


def test_toy_world_knows_its_facts():
    world = kl.toy_world(device="cpu")
    right = world.lm.knows(world.facts.queries).view(len(world.facts), -1)
    assert (right.sum(1) >= 2).float().mean() >= .95
    assert world.lm.knows(world.sequences).float().mean() >= .9
    for row in world.corpus.select(range(0, len(world.corpus), 37)):
        if row["kind"] == "fact":
            f = world.facts[row["fact"]]
            assert row["text"] == f"{f.prompts[row['phrasing']]} {f.answer}"
    assert Counter(world.corpus["kind"]) == dict(fact=3 * len(world.facts), sequence=len(world.sequences))


def test_toy_world_is_drawn_from_its_seed():
    a, b, c = kl.data.draw_world(0), kl.data.draw_world(0), kl.data.draw_world(1)
    assert list(a.facts) == list(b.facts) != list(c.facts) and a.corpus["text"] == b.corpus["text"] and a.sequences == b.sequences


@pytest.mark.slow
def test_toy_training_is_seeded_and_quick():
    import time
    state, began = torch.get_rng_state(), time.perf_counter()
    world = kl.data.draw_world(0)
    model, _ = kl.data.train_toy(world, 0)
    assert time.perf_counter() - began < 90
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(model.parameters(), kl.toy_world(device="cpu").lm.model.parameters()): assert torch.equal(a, b)
