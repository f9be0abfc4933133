"""Is this the model that it should be? hadal beside the reference implementation, with the model's own weights.

For a machine that holds the weights and has transformers. Three checks: prompts as ids, logits, GSM8K. A check that
cannot be made says why, and is never counted as passed.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hadal.checkpoints.load import load_model
from hadal.engine import LLM
from hadal.errors import UserError
from hadal.evaluate.statistics import proportion
from hadal.library.find import find_model
from hadal.rollout import Query, Rollout, SamplingParams, sample_all
from hadal.tasks import Problem
from hadal.tasks.maths import GSM8K
from hadal.text.parse import parse_response
from hadal.text.tokenizer import Tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b\n\nprint(add(17, 25))\n",
    "求 1 到 100 的和。 Ответ: 5050. ∑ᵢ i = n(n+1)/2 🦑",
    "  Three   spaces,\ttabs\r\nand\n\n\nlines; 1234567890 + 3.14159 = ?",
)
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 17 + 25?"}],
    [
        {"role": "user", "content": "Name a prime."},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "And the next?\n"},
    ],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Capital of France?"}],
)
# The largest relative L2 distance of logits, and the share of positions with the same most likely token. In float32
# only the order of sums differs; bfloat16 rounds after each of hundreds of products, differently in the two.
BOUNDS = {torch.float32: (1e-4, 0.99), torch.bfloat16: (5e-2, 0.95), torch.float16: (1e-2, 0.98)}
PUBLISHED: dict[str, tuple[float, str]] = {
    "deepseek-v2-lite-chat": (0.720, "the card of DeepSeek-V2-Lite-Chat"),
    "deepseek-v2-chat": (0.922, "the card of DeepSeek-V2-Chat, after RL"),
}
"""GSM8K without worked examples in the prompt, by name. The cards of V3, R1 and the distilled models give none."""

Status = Literal["holds", "fails", "not checked"]


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    name: str
    status: Status
    detail: str
    figures: dict[str, Any]


def verify(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    items: int = 100,
    max_tokens: int = 4096,
    gsm8k: Path | None = None,
    seed: int = 0,
    report: Callable[[Check], None] = lambda _: None,
) -> list[Check]:
    """All checks of a folder or hub id, each reported when it is done. items: how many GSM8K problems, 0 for none."""
    folder = find_model(model)
    tokenizer = Tokenizer.load(folder)
    transformers = _transformers()
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    checks: list[Check] = []

    def done(check: Check) -> None:
        checks.append(check)
        report(check)

    done(check_tokens(tokenizer, reference))
    done(check_chat(tokenizer, reference))
    quantised = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if quantised is not None and not torch.cuda.is_available():
        reason = "transformers computes with quantised weights on a GPU only; convert them to bf16 to compare"
        done(Check("logits", "not checked", reason, {}))
    else:
        prompts = [ids for text in TEXTS if (ids := tokenizer.encode(text))]
        theirs = _reference_logits(transformers, folder, prompts, dtype)
        done(check_logits(_logits(folder, prompts, dtype), theirs, dtype))
    if items:
        llm = LLM(load_model(folder, dtype).eval(), tokenizer)
        published = PUBLISHED.get(Path(model).name.lower())
        done(check_gsm8k(llm, items, max_tokens, gsm8k, seed, published))
    return checks


def verdict(checks: Sequence[Check]) -> str:
    """All checks in one word: fails where one does, and holds only where all were made."""
    statuses = {check.status for check in checks}
    return "fails" if "fails" in statuses else "holds" if statuses == {"holds"} else "holds as far as it was checked"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("verify compares with transformers.", "Install it: pip install 'hadal[bench]'.") from None
    transformers.logging.set_verbosity_error()
    return transformers


def check_tokens(tokenizer: Tokenizer, reference: Any) -> Check:
    """Texts as ids and back."""
    for text in TEXTS:
        ids, expected = tokenizer.encode(text), reference(text, add_special_tokens=False)["input_ids"]
        if ids != expected:
            return Check("tokens", "fails", f"{text!r} is {ids}, and {expected} in transformers", {})
    ends = (tokenizer.eos_id, reference.eos_token_id)
    if ends[0] != ends[1]:
        return Check("tokens", "fails", f"the end token is {ends[0]}, and {ends[1]} in transformers", {})
    return Check("tokens", "holds", f"{len(TEXTS)} texts give the same ids", {"texts": len(TEXTS)})


def check_chat(tokenizer: Tokenizer, reference: Any) -> Check:
    """Conversations as ids, by hadal's sandbox and by transformers."""
    if not reference.chat_template:
        return Check("chat", "not checked", "the tokenizer has no chat template", {})
    same = 0
    for messages in CONVERSATIONS:
        try:
            expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception:  # the template refuses this conversation, such as one with a system prompt
            continue
        ids = tokenizer.chat(messages)
        if ids != expected:
            texts = reference.decode(ids), reference.decode(expected)
            return Check("chat", "fails", f"{texts[0]!r} should be {texts[1]!r}", {})
        same += 1
    return Check("chat", "holds", f"{same} conversations give the same ids", {"conversations": same})


def _reference_logits(
    transformers: Any, folder: Path, prompts: Sequence[list[int]], dtype: torch.dtype
) -> list[Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        out = [model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in prompts]
    del model
    gc.collect()  # the two models are never in memory together
    return out


def _logits(folder: Path, prompts: Sequence[list[int]], dtype: torch.dtype) -> list[Tensor]:
    model = load_model(folder, dtype).eval()
    with torch.no_grad():
        return [model.logits(model(torch.tensor([ids])))[0].float() for ids in prompts]


def check_logits(ours: Sequence[Tensor], theirs: Sequence[Tensor], dtype: torch.dtype) -> Check:
    """Logits [T, V] of each prompt, within what the dtype's rounding explains."""
    one, other = torch.cat(list(ours)), torch.cat(list(theirs))
    width = min(one.shape[1], other.shape[1])
    one, other = one[:, :width], other[:, :width]
    distance = float((one - other).norm() / other.norm())
    largest = float((one - other).abs().max())
    agreement = float((one.argmax(-1) == other.argmax(-1)).float().mean())
    most, least = BOUNDS[dtype]
    figures = {"relative_l2": distance, "largest": largest, "agreement": agreement, "positions": len(one)}
    detail = (
        f"relative L2 {distance:.1e} (at most {most:.0e}), largest difference {largest:.1e}, the same token first at "
        f"{agreement:.1%} of {len(one)} positions (at least {least:.0%}), {str(dtype).removeprefix('torch.')}"
    )
    good = distance <= most and agreement >= least  # a NaN fails
    return Check("logits", "holds" if good else "fails", detail, figures)


def check_gsm8k(
    rollout: Rollout,
    items: int,
    max_tokens: int,
    file: Path | None = None,
    seed: int = 0,
    published: tuple[float, str] | None = None,
) -> Check:
    """The share of right answers, one sample each at R1's settings, beside the published one if there is one."""
    task = GSM8K(file)
    problems: list[Problem] = task.problems("held_out")[:items]
    if not problems:
        raise UserError("There are no GSM8K test problems.", "Give a file with --gsm8k FILE.")
    params = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=max_tokens, seed=seed)
    queries = [
        Query([{"role": "user", "content": problem.prompt}], each)
        for problem, each in zip(problems, params.spread(len(problems)), strict=True)
    ]
    try:
        answers = sample_all(rollout, queries)
    except UserError as error:
        return Check("gsm8k", "not checked", str(error), {})
    right, cut = 0, 0
    for problem, (sample,) in zip(problems, answers, strict=True):
        if sample.refused:
            return Check("gsm8k", "not checked", sample.error, {})
        parsed = parse_response(sample.text, thinking=bool(sample.opening), finished=sample.finish_reason == "stop")
        right += task.judge(problem, parsed.answer)
        cut += sample.finish_reason != "stop"
    score = proportion(right, len(problems))
    detail = f"{right} of {len(problems)} right, 95% interval {score['low']:.1%} to {score['high']:.1%}"
    detail += f", {cut} cut off at {max_tokens} tokens" if cut else ""
    if published is None:
        return Check("gsm8k", "not checked", f"{detail}; no figure of this model is published", score)
    figure, source = published
    good = figure <= score["high"]
    return Check(
        "gsm8k",
        "holds" if good else "fails",
        f"{detail}; published {figure:.1%} ({source})",
        score | {"published": figure},
    )
