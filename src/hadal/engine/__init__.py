"""Inference: the one core that rollouts, evaluation and chat sample through."""

from hadal.engine.llm import LLM, RequestOutput, Sample
from hadal.engine.sampling import SamplingParams

__all__ = ["LLM", "RequestOutput", "Sample", "SamplingParams"]
