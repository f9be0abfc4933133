"""Guessing ahead changes nothing for any kind of attention, however many tokens are guessed and rows run."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_exact import CONTEXT, TOKENIZER, VOCABULARY, prompts_of

from hadal.engine import LLM, EngineConfig, SamplingParams
from hadal.models.build import build
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS = {
    "multi-head": (4, 4), "grouped by 2": (4, 2), "grouped by 3": (6, 2), "one head": (1, 1), "multi-query": (5, 1),
}  # fmt: skip
LATENT = {"latent": 4, "latent of 1 head": 1, "latent of 3 heads": 3}


@cache
def model(kind: str) -> Decoder:
    if kind in LATENT:
        config: DenseConfig | DeepseekConfig = DeepseekConfig(
            VOCABULARY, 48, 2, LATENT[kind], intermediate_size=64, moe_intermediate_size=32, kv_lora_rank=16,
            qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, max_position_embeddings=CONTEXT,
            num_nextn_predict_layers=1,
        )  # fmt: skip
    else:
        config = DenseConfig(VOCABULARY, 48, 2, *HEADS[kind], 16, 64, max_position_embeddings=CONTEXT)
    made = build(config)
    made.initialise(1)
    return made.eval()


def outputs(kind: str, prompts: list[list[int]], params: SamplingParams, **config: object) -> list[object]:
    llm = LLM(model(kind), TOKENIZER, EngineConfig(**config))  # type: ignore[arg-type]
    return [output.outputs for output in llm.generate(prompts, params)]


@pytest.mark.parametrize("kind", [*HEADS, *LATENT])
@pytest.mark.parametrize("draft", [1, 2, 3])
def test_few_guesses_are_checked_by_every_kind_of_attention(kind: str, draft: int) -> None:
    """Rows of one length, of which one mask says all."""
    prompts = [ids * 8 for ids in prompts_of([5, 5])]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    expected = outputs(kind, prompts, params)
    assert outputs(kind, prompts, params, speculate="ngram", draft=draft) == expected
    if kind in LATENT:
        assert outputs(kind, prompts, params, speculate="mtp") == expected


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from([*HEADS, *LATENT]), draft=st.integers(1, 5), rows=st.integers(1, 6), n=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), mtp=st.booleans(), graphs=st.booleans(),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_guesses_change_no_bit(
    kind: str, draft: int, rows: int, n: int, lengths: list[int], mtp: bool, graphs: bool, temperature: float
) -> None:
    prompts = [(ids * 12)[:length] for ids, length in zip(prompts_of([5] * len(lengths)), lengths, strict=True)]
    params = SamplingParams(temperature, max_tokens=10, seed=1, n=n, logprobs=0)
    how = "mtp" if mtp and kind in LATENT else "ngram"
    expected = [one for prompt in prompts for one in outputs(kind, [prompt], params)]
    assert outputs(kind, prompts, params, speculate=how, draft=draft, rows=rows, graphs=graphs) == expected
