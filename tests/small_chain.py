"""A chain of stages that runs in seconds and has every kind in it, for tests. Not a test itself."""

from pathlib import Path

from small_run import COIN

CHAIN = """
tasks = ["letters", "coin.py", "talk"]
threads = 1
dtype = "float32"
publish = "r1"
[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
[corpus]
tokens = 384
foreign_share = 0.3
[pretrain]
tasks = ["letters", "coin.py"]
steps = 90
extra_rounds = 0
warmup = 5
check_problems = 8
margin = -1.0
checkpoint_every = 20
max_tokens = 12
optimizer = { lr = 0.004, muon_lr = 0.02 }
[grpo]
tasks = ["coin.py"]
updates = 3
prompts = 4
samples = 6
max_tokens = 12
held_out_every = 2
held_out_problems = 4
checkpoint_every = 1
rollouts_every = 2
[sft]
batch_tokens = 256
checkpoint_every = 2
optimizer.lr = 1e-3
[distill]
batch_tokens = 256
checkpoint_every = 1
updates = 3
prompts = 4
samples = 2
max_tokens = 12
epochs = 1
optimizer.lr = 1e-3
[reject]
tasks = ["letters", "coin.py"]
problems = 70
samples = 2
max_tokens = 12
most_repetition = 1.0
gold = 12
[evaluate]
problems = 4
samples = 3
max_tokens = 12
[stage]
base = { kind = "pretrain" }
r1-zero = { kind = "grpo", from = "base" }
cold-start = { kind = "reject", from = "r1-zero" }
dev1 = { kind = "sft", from = "base", data = ["cold-start"] }
dev3 = { kind = "sft", from = "base", data = ["cold-start", "talks"] }
r1 = { kind = "grpo", from = "dev3", tasks = [], rewards = { language = 0.2 } }
answers = { kind = "reject", from = "r1", thinking = false }
student = { kind = "pretrain", model = { hidden_size = 16 } }
on-samples = { kind = "distill", from = "student", data = ["answers"] }
on-logits = { kind = "distill", from = "student", data = ["answers"], method = "logits", teacher = "r1" }
on-policy = { kind = "distill", from = "student", method = "on-policy", teacher = "r1", tasks = ["letters"] }
"""
TALKS = 'talks = { kind = "reject", problems = 0, gold = 0, plain = 20 }\n'
CHAIN = CHAIN.replace("dev3 = ", TALKS + "dev3 = ")


def write_chain(folder: Path) -> Path:
    """The recipe and its task file, in `folder`."""
    (folder / "coin.py").write_text(COIN)
    (folder / "chain.toml").write_text(CHAIN)
    return folder / "chain.toml"


def outcome(run: Path) -> dict[str, bytes]:
    """What must be the same to the last bit, however often a run was stopped: all but clocks and bills."""
    clocks = {"run.json", "timing.jsonl", "ledger.jsonl", "report.json", "report.md", "report.html"}
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in clocks)
    files = [path for path in files if "state" not in path.parts]  # states name places in the logs, as they end does
    listing = "\n".join(sorted(str(path.relative_to(run)) for path in run.rglob("*")))
    return {"the files": listing.encode()} | {str(file.relative_to(run)): file.read_bytes() for file in files}
