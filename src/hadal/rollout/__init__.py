"""Asking for samples, whoever gives them: an engine of this process, a server, workers elsewhere. Types only.

Whoever samples (RL, rejection, distillation, evaluation, `verify`, ablation) asks a `Rollout` and knows no more of it
than that. The engine is one (`hadal.engine.LLM`), a server of OpenAI's form another (`hadal.engine.remote`).
"""

from hadal.rollout.params import SamplingParams
from hadal.rollout.types import Finish, Query, Rollout, Sample, Scorer, require, sample_all

__all__ = ["Finish", "Query", "Rollout", "Sample", "SamplingParams", "Scorer", "require", "sample_all"]
