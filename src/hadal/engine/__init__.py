"""Inference: the one core that rollouts, evaluation, chat and the server sample through."""

from hadal.engine.asynchronous import AsyncEngine, Busy, Closed
from hadal.engine.config import EngineConfig
from hadal.engine.core import Engine
from hadal.engine.llm import LLM
from hadal.engine.params import SamplingParams
from hadal.engine.request import RequestOutput, Sample
from hadal.text.length import TooLong

__all__ = [
    "LLM", "AsyncEngine", "Busy", "Closed", "Engine", "EngineConfig", "RequestOutput", "Sample", "SamplingParams",
    "TooLong",
]  # fmt: skip
