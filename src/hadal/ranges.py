"""What every number of a recipe may be: one table, read before anything runs.

A number outside its range never did what was meant: a negative learning rate unlearns, a share above 1 is a slip of the
point, ten million updates are a slip of the finger. The ends are far out; between them all is allowed.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from typing import Any

from hadal.errors import UserError
from hadal.reading import shown

RANGES: dict[str, str] = {
    # of the run
    "seed": "[0, 9223372036854775807]",
    "threads": "[0, 4096]",  # 0: what measures fastest
    # the model's shape
    "hidden_size": "[1, 65536]",
    "intermediate_size": "[1, 262144]",
    "moe_intermediate_size": "[1, 262144]",
    "kv_lora_rank": "[1, 65536]",
    "num_hidden_layers": "[1, 1000]",
    "num_attention_heads": "[1, 4096]",
    "num_key_value_heads": "[1, 4096]",
    "n_routed_experts": "[1, 4096]",
    "num_experts_per_tok": "[1, 4096]",
    "num_nextn_predict_layers": "[0, 1]",
    # the corpus
    "thinking_share": "(0, 1)",
    "habit_share": "(0, 1)",
    "checking_share": "[0, 1]",
    "foreign_share": "[0, 1]",
    "gap_share": "[0, 1]",
    "gold_decay": "(0, 10]",
    "tokens": "[1, 1000000000]",
    "pool": "[1, 10000]",
    "longest_gap": "[1, 10000]",
    # how long
    "steps": "[1, 10000000]",
    "extra_steps": "[1, 10000000]",
    "extra_rounds": "[0, 1000]",
    "updates": "[1, 10000000]",
    "epochs": "[1, 10000]",
    "minibatches": "[1, 10000]",
    "warmup": "[1, 10000000]",
    "warmup_share": "[0, 1)",
    "decay_share": "(0, 1]",
    "checkpoint_every": "[1, 10000000]",
    "held_out_every": "[1, 10000000]",
    "rollouts_every": "[1, 10000000]",
    "reference_every": "[1, 10000000]",
    # how much at once
    "prompts": "[1, 100000]",
    "samples": "[1, 100000]",
    "max_draws": "[1, 1000]",
    "max_tokens": "[1, 10000000]",
    "micro_tokens": "[1, 1000000000]",
    "batch_tokens": "[1, 1000000000]",
    "pass_tokens": "[1, 1000000000]",
    # the optimiser
    "lr": "[0, 10]",
    "muon_lr": "[0, 10]",
    "beta1": "[0, 1)",
    "beta2": "[0, 1)",
    "momentum": "[0, 1)",
    "eps": "(0, 1]",
    "weight_decay": "[0, 100]",
    "clip": "[0, 1000000000]",  # 0: off
    "router_bias_rate": "[0, 1]",
    "mtp_weight": "[0, 1000]",
    # adapters
    "rank": "[0, 65536]",  # 0: none
    "alpha": "[0, 1000000]",  # 0: twice the rank
    "dropout": "[0, 1)",
    # rewards, whose weights have one of their own (`hadal.rewards`)
    "overlong_tokens": "[1, 10000000]",
    "repetition_ngram": "[1, 10000]",
    "judge_tokens": "[1, 10000000]",
    # the algorithm
    "baseline": "[-10, 10]",  # 1: the mean of the group
    "clip_low": "[0, 1]",
    "clip_high": "[0, 1000000]",
    "kl": "[0, 1000]",
    "importance_cap": "[0, 1000000]",
    "Options.overlong": "[0, 1]",
    # sampling
    "temperature": "[0, 100]",
    "RLConfig.temperature": "(0, 100]",  # what is drawn alike teaches nothing
    "top_p": "(0, 1]",
    # problems
    "problems": "[1, 10000000]",
    "check_problems": "[1, 1000000]",
    "held_out_problems": "[1, 1000000]",
    "mode_problems": "[0, 1000000]",
    "level_problems": "[0, 1000000]",
    "pass_problems": "[0, 1000000]",
    "pass_samples": "[1, 100000]",
    "levels_past_gold": "[0, 1000]",
    "margin": "[-10, 10]",  # below -1 every task is ready
    "keep": "[1, 100000]",
    "gold": "[0, 10000000]",
    "plain": "[0, 10000000]",
    "least_language": "[0, 1]",
    "most_repetition": "[0, 1]",
}
"""By field, and before that by class and field. A round bracket leaves the end out. A class may have `RANGES` of its
own, which come first."""
_FORM = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def check_ranges(config: Any, where: str = "", besides: tuple[str, ...] = ()) -> None:
    """UserError for the first number of a config, tables in it included, that is outside of its range or is none.

    besides: fields that are not looked at.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name in besides or isinstance(value, bool):
            continue
        if is_dataclass(value):
            check_ranges(value, f"{where}{f.name}.")
        elif isinstance(value, int | float):
            _check(value, range_of(type(config), f.name), where + f.name)


def range_of(kind: type, name: str) -> str | None:
    """The range of a field; None for what the table does not know, such as an option of an algorithm of one's own."""
    own = [vars(ancestor)["RANGES"] for ancestor in kind.__mro__ if "RANGES" in vars(ancestor)]
    names = [f"{ancestor.__name__}.{name}" for ancestor in kind.__mro__]
    found = [ranges[name] for ranges in own if name in ranges]
    found += [RANGES[key] for key in [*names, name] if key in RANGES]
    return found[0] if found else None


def _check(value: float, interval: str | None, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}.", "It must be a finite number.")
    if interval is None:
        return
    match = _FORM.fullmatch(interval)
    assert match is not None, interval
    left, least, most, right = match.groups()
    low, high = (int(end) for end in (least, most))
    if value < low or value > high or (value == low and left == "(") or (value == high and right == ")"):
        ends = f"{'at least' if left == '[' else 'above'} {low:,} and {'at most' if right == ']' else 'below'} {high:,}"
        raise UserError(f"{name} is {shown(value)}.", f"It must be {ends}.")
