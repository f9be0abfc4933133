"""Recorded steps give what steps give: run here without a GPU, where a recording is a step done again.

What this shows is everything but the recording itself: fixed tensors, whole rows, rows that nobody holds, and when a
recording is made and forgotten.
"""

from __future__ import annotations

import pytest
import torch
from test_engine_exact import PARAMS, PROMPTS, TOKENIZER, make

from hadal.engine import LLM, EngineConfig
from hadal.engine.graphs import AFTER, KEPT, Graphs, rows_recorded


def recorded(llm: LLM) -> Graphs:
    assert llm.engine.runner.graphs is not None
    return llm.engine.runner.graphs


@pytest.mark.parametrize("speculate", [None, "ngram"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_recorded_step_changes_no_bit(speculate: str | None, threads: int) -> None:
    model, before = make("dense"), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        llm = LLM(model, TOKENIZER, EngineConfig(graphs=True, speculate=speculate))
        together = llm.generate(PROMPTS, PARAMS)
        (alone,) = llm.generate(PROMPTS[:1], PARAMS)
    finally:
        torch.set_num_threads(before)
    plain = LLM(model, TOKENIZER).generate(PROMPTS, PARAMS)
    assert [o.outputs for o in together] == [o.outputs for o in plain]
    assert alone.outputs == plain[0].outputs
    shapes = recorded(llm).shapes.values()
    assert sum(shape.seen - AFTER for shape in shapes if shape.replay) > 20
    assert all((shape.seen > AFTER) == (shape.replay is not None) for shape in shapes)
    assert not any(shape.buckets for shape in shapes), "a recording holds memory of buckets"


def test_experts_are_recorded_where_the_host_need_not_see_their_loads() -> None:
    model = make("deepseek").double()  # not exact: rounding must not decide between tokens
    assert LLM(model, TOKENIZER, EngineConfig(graphs=True)).engine.runner.graphs is None
    llm = LLM(model, TOKENIZER, EngineConfig(graphs=True, exact=False))
    plain = LLM(model, TOKENIZER, EngineConfig(exact=False))
    tokens, expected = (
        [[sample.token_ids for sample in output.outputs] for output in each.generate(PROMPTS, PARAMS)]
        for each in (llm, plain)
    )
    assert tokens == expected
    assert any(shape.replay for shape in recorded(llm).shapes.values())


def test_recordings_are_forgotten_with_the_weights_they_were_made_of() -> None:
    model = make("dense")
    llm = LLM(model, TOKENIZER, EngineConfig(graphs=True))
    llm.generate(PROMPTS[:2], PARAMS)
    shapes = recorded(llm).shapes
    kept = dict(shapes)
    with torch.no_grad():
        model.embed.weight.mul_(0.5)  # written in place: what was recorded reads the new ones
    model.changed()
    llm.engine.step()
    assert kept and dict(shapes) == kept
    assert llm.generate(PROMPTS[:2], PARAMS) == LLM(model, TOKENIZER).generate(PROMPTS[:2], PARAMS)
    model.embed.weight.data = model.embed.weight.data.clone()
    model.changed()
    llm.engine.step()
    assert not shapes


def test_rows_come_in_few_sizes_and_few_shapes_are_kept() -> None:
    sizes = [rows_recorded(rows, 1000) for rows in range(1, 41)]
    assert sizes[:9] == [1, 2, 4, 4, 8, 8, 8, 8, 16] and sizes[-1] == 40 and len(set(sizes)) == 8
    assert all(size >= rows for rows, size in enumerate(sizes, 1))
    assert rows_recorded(5, 6) == 6, "not more rows than there is memory for"
    llm = LLM(make("dense"), TOKENIZER, EngineConfig(graphs=True))
    graphs = recorded(llm)
    (bucket,) = [llm.engine.kv.bucket(64)]
    for rows in range(1, KEPT + 20):
        bucket.resize(rows)
        bucket.slots = torch.arange(rows)
        graphs.run([bucket], torch.ones(rows, 1, dtype=torch.long), [torch.zeros(rows, dtype=torch.long)])
    assert len(graphs.shapes) == KEPT
