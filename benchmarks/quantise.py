"""What packed and quantised weights cost in quality, on a run of hadal's own.

On the model's own greedy thoughts over held-out problems: the divergence KL(float32 || form) of its next-token
distributions, how often the most likely token is the same, and |difference| of the tokens' log-probabilities. Then the
share of problems solved, made to think, greedy and sampled, and how many verdicts turned against float32's.

    python benchmarks/quantise.py runs/dense-seed0 --problems 100 --json quantise.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import prepared  # noqa: F401
import torch
from torch import Tensor

import hadal
from hadal.engine import LLM, SamplingParams
from hadal.evaluate.statistics import proportion
from hadal.evaluate.suite import ask, held_out
from hadal.library.record import read_run
from hadal.models.decoder import Decoder
from hadal.models.packed import packed_copy
from hadal.ops.linear import FORMS, kind_of, usable
from hadal.recipe.config import read_recipe
from hadal.tasks import Problem, Task, load_tasks


@dataclass
class Result:
    """One form of weights and of the head. turned: problems whose greedy verdict is not float32's."""

    form: str
    head: str
    mean_kl: float
    greatest_kl: float
    same_first: float
    mean_logprob_difference: float
    greedy: dict[str, float]
    sampled: dict[str, float]
    turned: int


def sides() -> list[tuple[str, str]]:
    """(form, head): every form that works here, and what a better head is worth."""
    forms = [form for kind in dict.fromkeys(map(kind_of, FORMS)) if kind != "float64" for form in usable(kind)]
    return [(form, form) for form in forms] + [("int8", "float32"), ("int4", "int8"), ("int4", "float32")]


@torch.no_grad()
def own_responses(llm: LLM, problems: list[Problem], limit: int) -> tuple[Tensor, Tensor]:
    """The model's greedy thoughts with their prompts [B, T], filled up at the end, and where they are [B, T]."""
    prompts = [llm.tokenizer.chat([{"role": "user", "content": p.prompt}], True) for p in problems]
    outputs = llm.generate(prompts, SamplingParams(0.0, max_tokens=limit, thinking=True))
    rows = [(o.prompt_token_ids, o.outputs[0].token_ids) for o in outputs]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids, inside = torch.full((len(rows), width), llm.tokenizer.pad_id), torch.zeros(len(rows), width, dtype=torch.bool)
    for b, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[b, :end] = torch.tensor(prompt + response)
        inside[b, len(prompt) : end] = True
    return ids, inside


@torch.no_grad()
def logprobs(model: Decoder, ids_BT: Tensor, inside_BT: Tensor) -> Tensor:
    """Log-probabilities [tokens, V] of what follows, at each token of the responses."""
    parts = []
    for ids, inside in zip(ids_BT.split(32), inside_BT.split(32), strict=True):
        hidden = model(ids[:, :-1])[inside[:, 1:]]
        parts.append(torch.log_softmax(model.logits(hidden).double(), -1))
    return torch.cat(parts)


def judged(llm: LLM, tasks: dict[str, Task], problems: list[Problem], temperature: float, limit: int) -> list[bool]:
    params = SamplingParams(temperature, max_tokens=limit, seed=0, thinking=True)
    return [verdicts[0].right for verdicts in ask(llm, tasks, problems, params)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--quick", action="store_true", help="16 problems a task")
    parser.add_argument("--problems", type=int, default=100, help="of each task")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: its own choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    number = 16 if args.quick else args.problems
    recipe = read_recipe(read_run(args.run)["config"])
    tasks, limit = load_tasks(recipe.tasks), recipe.evaluate.max_tokens
    problems = [p for task in tasks.values() for p in held_out(task, task.default_difficulty, number)]
    llm = LLM.load(args.run)
    ids, inside = own_responses(llm, problems, limit)
    reference = logprobs(llm.model, ids, inside)
    written = ids[:, 1:][inside[:, 1:]][:, None]
    plain = judged(llm, tasks, problems, 0.0, limit)
    print(f"{len(problems)} problems of {', '.join(tasks)}; {len(reference)} tokens; {args.run}")
    heads = f"{'mean KL':>10}{'greatest':>10}{'same first':>12}{'|dlogprob|':>12}"
    print(f"{'form':18}{'head':18}{heads}{'greedy':>9}{'sampled':>9}{'turned':>8}")
    found = []
    for form, head in sides():
        model, _ = packed_copy(llm.model, form, head)
        packed = LLM(model, llm.tokenizer)
        got = logprobs(model, ids, inside)
        kl = (reference.exp() * (reference - got)).sum(-1)
        greedy = judged(packed, tasks, problems, 0.0, limit)
        sampled = judged(packed, tasks, problems, 1.0, limit)
        r = Result(
            form, head, kl.mean().item(), kl.max().item(),
            (got.argmax(-1) == reference.argmax(-1)).double().mean().item(),
            (got.gather(1, written) - reference.gather(1, written)).abs().mean().item(),
            proportion(sum(greedy), len(greedy)), proportion(sum(sampled), len(sampled)),
            sum(a != b for a, b in zip(greedy, plain, strict=True)),
        )  # fmt: skip
        found.append(r)
        figures = f"{r.mean_kl:10.1e}{r.greatest_kl:10.1e}{r.same_first:12.2%}{r.mean_logprob_difference:12.1e}"
        shares = f"{r.greedy['accuracy']:9.3f}{r.sampled['accuracy']:9.3f}{r.turned:8}"
        print(f"{form:18}{head:18}{figures}{shares}", flush=True)
    if args.json:
        data = {
            "benchmark": "quantise",
            "quick": args.quick,
            "date": time.strftime("%Y-%m-%d"),
            "hadal": hadal.__version__,
            "torch": torch.__version__,
            "run": str(args.run),
            "problems": len(problems),
            "tokens": len(reference),
            "results": [asdict(r) for r in found],
        }
        args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
