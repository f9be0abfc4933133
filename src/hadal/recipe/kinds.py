"""What each kind of stage is told: every number that decides how it ends, typed. Which stages there are, and in which
order, is in `config.py`; what they do is in `stages/`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hadal.errors import UserError
from hadal.machine.device import DEVICES
from hadal.models.config import ModelConfig
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.models.lora import LoraConfig
from hadal.reading import nearest
from hadal.recipe.ranges import check_ranges
from hadal.rewards.language import SCRIPTS
from hadal.train.corpus import CorpusConfig
from hadal.train.optim import OptimizerConfig
from hadal.train.rl import RLConfig

ARCHITECTURES = ("dense", "deepseek")
METHODS = ("samples", "logits", "on-policy")


@dataclass(frozen=True)
class SizeConfig:
    """The model's shape; the vocabulary follows from the tasks."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 384
    moe_intermediate_size: int = 128
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    kv_lora_rank: int = 64
    num_nextn_predict_layers: int = 0

    def model_config(self, arch: str, vocab_size: int) -> ModelConfig:
        """The typed config of an architecture at this size."""
        width = self.hidden_size // self.num_attention_heads
        if arch == "dense":
            return DenseConfig(
                vocab_size,
                self.hidden_size,
                self.num_hidden_layers,
                self.num_attention_heads,
                self.num_key_value_heads,
                head_dim=width,
                intermediate_size=self.intermediate_size,
            )
        return DeepseekConfig(
            vocab_size,
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
            self.moe_intermediate_size,
            n_routed_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=width,
            qk_rope_head_dim=width,
            v_head_dim=width,
            num_nextn_predict_layers=self.num_nextn_predict_layers,
        )

    def check(self, arch: str, where: str = "") -> None:
        """UserError for heads that do not fit, or no such architecture."""
        if arch not in ARCHITECTURES:
            raise UserError(f"{where}arch is {arch!r}.", nearest(arch, ARCHITECTURES))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{where}model.hidden_size is {self.hidden_size}, not a multiple of {self.num_attention_heads} heads."
            )
        if arch == "dense" and self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"{where}model.num_attention_heads is {self.num_attention_heads}, not a multiple of "
                f"{self.num_key_value_heads} key and value heads."
            )


@dataclass(frozen=True)
class PretrainConfig:
    """Steps at a rate that falls to zero, and shorter rounds of the same until every task is ready or a cap is met."""

    steps: int = 3000
    decay_share: float = 0.85
    """The last part of the steps, in which the rate falls to zero."""
    extra_steps: int = 600
    """Of a further round; its rate begins at half."""
    extra_rounds: int = 1
    warmup: int = 20
    check_problems: int = 64
    margin: float = 0.05
    """By how much thinking must beat answering for RL to have something to find."""
    checkpoint_every: int = 200
    router_bias_rate: float = 0.001
    mtp_weight: float = 0.1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def rate(self, step: int) -> float:
        """The learning rates' factor at step `step`, the first being 0."""
        if step >= self.steps:
            return 0.5 * (1 - (step - self.steps) % self.extra_steps / self.extra_steps)
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay_share * self.steps))


@dataclass(frozen=True)
class PretrainStage(PretrainConfig):
    """Pre-training as a stage of a chain: which model, on which of the recipe's tasks."""

    arch: str = "dense"
    tasks: list[str] = field(default_factory=list)
    """None stands for all of the recipe's; so in every kind."""
    max_tokens: int = 160
    """Of a response in the check whether tasks are ready."""
    model: SizeConfig = field(default_factory=SizeConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)


@dataclass(frozen=True)
class GrpoConfig(RLConfig):
    """An RL stage: how many updates, and how often it looks up from its work."""

    updates: int = 120
    warmup: int = 5
    decay_share: float = 0.4
    """The last part of the updates, in which the rate falls to zero."""
    held_out_every: int = 20
    held_out_problems: int = 50
    checkpoint_every: int = 20
    rollouts_every: int = 20
    overlap: bool = False
    """Draw each batch while the one before is trained on: one update stale, for the time that it saves."""
    checkpoint_activations: bool = False
    """Keep of each layer its input alone and compute the rest again for the gradient: the same bits, less memory."""
    tasks: list[str] = field(default_factory=list)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-4, muon_lr=0.0, beta2=0.99, eps=1e-8)
    )

    def rate(self, done: float) -> float:
        """The learning rate's factor when a share `done` of the updates is behind."""
        start = min(1.0, (done * self.updates + 1) / self.warmup)
        return start * min(1.0, (1 - done) / self.decay_share)


@dataclass(frozen=True)
class SftConfig:
    """Every number that decides how a fine-tuning ends."""

    epochs: int = 2
    batch_tokens: int = 16_384
    """Tokens of an update."""
    pass_tokens: int = 4096
    """Of a forward and backward pass; memory depends on it, the result does not but for rounding."""
    warmup_share: float = 0.03
    dtype: str = "auto"
    device: str = "auto"
    """`cpu` or `cuda`; left open, a model of some size goes to a GPU, where there is one."""
    seed: int = 0
    threads: int = 0
    checkpoint_activations: bool = False
    checkpoint_every: int = 50
    mtp_weight: float = 0.1
    """Of the loss of a multi-token prediction module, if the model has one and all of it is trained."""
    router_bias_rate: float = 0.0
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=0.0, muon_lr=0.0, beta2=0.999, eps=1e-8)
    )
    """lr 0 stands for 1e-5, and for 2e-4 of adapters."""

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}.", "Known are auto, float32 and bfloat16.")
        if self.device not in DEVICES:
            raise UserError(f"device is {self.device!r}.", nearest(self.device, DEVICES))
        check_ranges(self)
        if self.router_bias_rate and self.lora.rank:
            raise UserError("Adapters leave the routers' biases as they are.", "Leave router_bias_rate at 0.")

    def to_dict(self) -> dict[str, Any]:
        """The config as plain data."""
        data = asdict(self)
        if self.device == "auto":
            del data["device"]
        return data

    @property
    def lr(self) -> float:
        """The highest learning rate."""
        return self.optimizer.lr or (2e-4 if self.lora.rank else 1e-5)

    def with_lr(self) -> OptimizerConfig:
        """The optimiser's numbers, the learning rate decided."""
        return replace(self.optimizer, lr=self.lr)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate's factor at step `step`, the first being 0: up, then down to 0 in a straight line."""
        warmup = max(1, round(self.warmup_share * steps))
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


@dataclass(frozen=True)
class SftStage(SftConfig):
    """Fine-tuning as a stage of a chain."""

    data: list[str] = field(default_factory=list)
    """Stages that left conversations (`reject`), and files of JSON lines; in one mixture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dtype", "device", "seed", "threads"):
            if getattr(self, name) != getattr(SftConfig, name):
                raise UserError(f"A stage of a recipe has {name}.", "It is set once, for the whole recipe.")


@dataclass(frozen=True)
class RejectConfig:
    """Rejection sampling: which answers are drawn, and which of them become conversations to learn from."""

    tasks: list[str] = field(default_factory=list)
    problems: int = 600
    samples: int = 8
    keep: int = 2
    """Of a problem's right and readable answers, at most so many."""
    levels_past_gold: int = 4
    """Difficulties above the gold limit that problems are drawn from."""
    thinking: bool = True
    """Whether the thought is opened for the model, where its tokenizer has a token for that; else it chooses."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 160
    language: str = "en"
    least_language: float = 1.0
    """The share of a thought's words that must be of the language."""
    most_repetition: float = 0.3
    """The share of eight-token pieces that may have come before."""
    gold: int = 0
    """Worked thoughts of the tasks themselves, of the easier half of their levels."""
    plain: int = 0
    """Conversations without a thought, from `plain_tasks`."""
    plain_tasks: list[str] = field(default_factory=lambda: ["talk"])
    endpoint: str = ""
    """The address of a teacher instead of a stage's model: `https://host/v1`, spoken to as OpenAI's chat API."""
    endpoint_model: str = ""

    def __post_init__(self) -> None:
        if self.language not in SCRIPTS:
            raise UserError(f"language is {self.language!r}.", f"Known are {', '.join(sorted(SCRIPTS))}.")
        if self.problems and self.keep > self.samples:
            raise UserError(f"keep is {self.keep}, of {self.samples} samples.", "Keep at most as many as are drawn.")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise UserError(f"endpoint is {self.endpoint!r}.", "Give an address such as https://host/v1.")
        if self.endpoint and not self.endpoint_model:
            raise UserError("endpoint is set and endpoint_model is not.", "Name the teacher's model.")
        if not (self.problems or self.gold or self.plain):
            raise UserError("problems, gold and plain are all 0.", "Nothing would be left to learn from.")


@dataclass(frozen=True)
class DistillConfig(SftStage):
    """Distillation from a stage's model (`teacher`) into the stage's own.

    samples: on the teacher's answers in `data`, as R1's students; logits: on the same, towards the teacher's whole
    distribution of each next token; on-policy: the student answers, and the teacher says how likely it would have
    gone on so (reverse KL, arXiv 2306.13649).
    """

    method: str = "samples"
    teacher: str = ""
    tasks: list[str] = field(default_factory=list)
    updates: int = 60
    prompts: int = 30
    samples: int = 4
    temperature: float = 1.0
    max_tokens: int = 160

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}.", nearest(self.method, METHODS))


@dataclass(frozen=True)
class ExamConfig:
    """What a stage's model is asked: held-out problems of every task at its default difficulty."""

    tasks: list[str] = field(default_factory=list)
    problems: int = 100
    samples: int = 8
    """Of each problem: pass@1 is their mean, cons@k the answer that most of them give."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 160
    language: str = "en"


KINDS: dict[str, type[Any]] = {
    "pretrain": PretrainStage,
    "sft": SftStage,
    "grpo": GrpoConfig,
    "reject": RejectConfig,
    "distill": DistillConfig,
    "evaluate": ExamConfig,
}
"""The kinds of stage that a recipe can name."""
LEAVE_A_MODEL = ("pretrain", "sft", "grpo", "distill")
SUITE = "suite"
"""The quickstart's own kind of evaluation, before and after RL."""


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: its name, its kind, the stage whose model it begins from ("" for none), its numbers."""

    name: str
    kind: str
    source: str
    config: Any
