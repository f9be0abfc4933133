"""Inference: the one core that rollouts, evaluation, chat and the server sample through."""

from hadal.engine.asynchronous import AsyncEngine, Busy, Closed
from hadal.engine.core import Engine, EngineConfig
from hadal.engine.llm import LLM
from hadal.engine.params import SamplingParams
from hadal.engine.request import RequestOutput, Sample

__all__ = [
    "LLM", "AsyncEngine", "Busy", "Closed", "Engine", "EngineConfig", "RequestOutput", "Sample", "SamplingParams",
]  # fmt: skip
