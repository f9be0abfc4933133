"""Inference: the one core that rollouts, evaluation, chat and the server sample through.

The field's words are used as it uses them (prefill, decode, preempt, KV cache, prefix cache, draft). Besides:

row       a sequence's place in the KV cache, contiguous, for a fixed number of tokens
bucket    rows of one size; a sequence that outgrows its row moves to the next bucket
spare     rows that no sequence has: memory that is ahead of need, or padding of a pass that exactness wants
reserve   tokens that a row has at first beyond the prompt
slot      a sequence's place in the table, from its first token to its last, also while it is preempted
table     what a step has to know of all sequences, one tensor for each fact, so that no loop runs over them
job       tokens to prefill for some sequences: a prompt for all its samples, or all of one that was preempted
exact     a request gets the same bits whatever runs beside it (`promise.py` tries whether this machine keeps that)
on host   of a sequence that Python looks at in each step: its logits are processed or its text is watched
forced    of a token that the model did not choose: the end of a thought whose budget was used up
"""

from hadal.engine.asynchronous import AsyncEngine, Busy, Closed
from hadal.engine.config import EngineConfig
from hadal.engine.core import Engine
from hadal.engine.llm import LLM
from hadal.engine.request import RequestOutput
from hadal.rollout import Sample, SamplingParams
from hadal.text.length import TooLong

__all__ = [
    "LLM", "AsyncEngine", "Busy", "Closed", "Engine", "EngineConfig", "RequestOutput", "Sample", "SamplingParams",
    "TooLong",
]  # fmt: skip
