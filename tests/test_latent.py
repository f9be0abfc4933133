"""What is DeepSeek's own: both forms of latent attention, the prediction module, the balance of the experts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor

from hadal.checkpoints.save import save_model
from hadal.models.balance import Counted, balance_loss, load_metrics, with_loss
from hadal.models.build import build
from hadal.models.cache import Cache, Continuations, SharedPrefix
from hadal.models.deepseek.config import DeepseekConfig, DeepseekV2Config
from hadal.models.deepseek.latent_attention import LatentAttention
from hadal.models.deepseek.network import Deepseek
from hadal.models.deepseek.router import routers, update_router_biases
from hadal.ops.mask import Mask
from hadal.ops.rope import YarnScaling
from hadal.train.corpus import Batch
from hadal.train.losses import pretraining_loss

VOCABULARY = 61
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48,
    "moe_intermediate_size": 16, "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
    "max_position_embeddings": 64,
}  # fmt: skip
YARN = YarnScaling(4.0, 8, mscale=1.0, mscale_all_dim=1.0)
V3 = DeepseekConfig(
    **SMALL, q_lora_rank=20, n_group=4, topk_group=2, num_experts_per_tok=3, routed_scaling_factor=2.5,
    num_nextn_predict_layers=1, rope_scaling=YARN, rms_norm_eps=1e-5,
)  # fmt: skip
LITE = DeepseekV2Config(**SMALL, n_shared_experts=2)


def fresh(config: DeepseekConfig, seed: int = 0) -> Deepseek:
    """An initialised model; norms and router biases are moved, so that they matter."""
    model = build(config)
    assert isinstance(model, Deepseek)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for router in routers(model):
            if router.e_score_correction_bias is not None:
                router.e_score_correction_bias.normal_(0, 0.1, generator=generator)
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("config", [V3, LITE], ids=["v3", "v2-lite"])
@pytest.mark.parametrize("chunks", [[14], [5, 9], [1, 2, 3, 8], [1] * 14])
def test_absorbed_and_expanded_attention_agree_everywhere(
    config: DeepseekConfig, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged rows with padding in front, prompts in chunks, then single tokens; both against rows on their own."""
    model = fresh(config).eval()
    lengths, more = [14, 3, 8], 5
    rows = [tokens(length + more, seed=i) for i, length in enumerate(lengths)]
    start = torch.tensor([max(lengths) - length for length in lengths])
    padded = torch.zeros(len(rows), max(lengths) + more, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, start[i] :] = row
    hidden = {}
    for absorbed in (True, False):
        used: list[str] = []
        for form in ("absorbed", "expanded"):
            inner = getattr(LatentAttention, form)

            def watch(self: Any, *args: Any, inner: Any = inner, form: str = form, used: list[str] = used) -> Tensor:
                used.append(form)
                return inner(self, *args)

            monkeypatch.setattr(LatentAttention, form, watch)
        monkeypatch.setattr(LatentAttention, "absorbs", lambda *_, absorbed=absorbed: absorbed)
        cache = model.new_cache(start, padded.shape[1])
        parts, begin = [], 0
        for size in [*chunks, *[1] * more]:
            parts.append(model(padded[:, begin : begin + size], cache))
            begin += size
        hidden[absorbed] = torch.cat(parts, dim=1)
        assert set(used) == {"absorbed" if absorbed else "expanded"}
        monkeypatch.undo()
    for i, row in enumerate(rows):
        alone = model(row[None])[0]
        for one, other in ((hidden[True], hidden[False]), (hidden[True], alone[None]), (hidden[False], alone[None])):
            a = one[i, start[i] :]
            b = other[0] if len(other) == 1 else other[i, start[i] :]
            assert float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max()) < 1e-5


def test_the_form_with_fewer_multiplications_is_taken() -> None:
    attention = fresh(V3).layers[0].attention
    expand = 24 * (12 + 10)  # multiplications for a column and a head
    wider = (24 + 8 + 24) - (20 + 10)  # more of them for a query, a column and a head, in the absorbed form
    limit = expand // wider
    assert attention.absorbs(1, 1) and attention.absorbs(limit, 100) and not attention.absorbs(limit + 1, 100)
    assert not attention.absorbs(5, 5)  # a prompt on its own: its columns are expanded for as many queries


def test_gradients_flow_through_the_absorbed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that continue a shared prefix in training."""
    model = fresh(V3)
    prompts, rows = tokens(2, 6), tokens(3, 4, seed=5)
    grads = []
    for absorbed in (True, False):
        monkeypatch.setattr(LatentAttention, "absorbs", lambda *_, absorbed=absorbed: absorbed)
        model.zero_grad()
        prefix = SharedPrefix(torch.tensor([0, 2]))
        model(prompts, prefix)
        continued = Continuations(prefix, torch.tensor([1, 0, 0]))
        model.logits(model(rows, continued)).square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name, grad in grads[0].items():
        assert (grad - grads[1][name]).norm() < 1e-4 * grad.norm(), name


@torch.no_grad()
def test_both_forms_round_alike_in_bf16() -> None:
    """Sampling absorbs and training expands: what differs between them, importance ratios take for learning."""
    model = fresh(V3).bfloat16()
    attention = model.layers[0].attention
    generator = torch.Generator().manual_seed(0)
    q, latent, key = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((2, 9, attention.heads, 20), (2, 1, 9, 24), (2, 1, 9, 8))
    )
    mask = Mask(9, 9)
    absorbed, expanded = (form(4 * q, latent, key, mask) for form in (attention.absorbed, attention.expanded))
    assert absorbed.dtype == expanded.dtype == torch.bfloat16
    assert (absorbed == expanded).float().mean() > 0.98


class Literal:
    """The prediction module as the paper writes it, one position, head and expert at a time, in float64.

    Equations 21 to 24 of arXiv 2412.19437 (with the embedding's half first, as in the released weights), 1 to 11
    for attention and 12 to 16 for the experts (with the groups and the scaling of the released code).
    """

    def __init__(self, config: DeepseekConfig, disk: dict[str, Tensor]) -> None:
        self.config, self.disk = config, {name: tensor.double() for name, tensor in disk.items()}
        self.prefix = f"model.layers.{config.num_hidden_layers}."

    def weight(self, name: str) -> Tensor:
        return self.disk[f"{self.prefix}{name}.weight"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + eps) * self.weight(name)

    def rope(self, x: Tensor, position: int) -> Tensor:
        c = self.config
        scaling = c.rope_scaling
        assert isinstance(scaling, YarnScaling)
        out, dim = x.clone(), len(x)

        def channel(turns: float) -> float:
            return dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / 2 / math.log(1e4)

        low, high = max(math.floor(channel(32.0)), 0), min(math.ceil(channel(1.0)), dim - 1)
        for i in range(dim // 2):
            ramp = min(max((i - low) / (high - low if high != low else 0.001), 0.0), 1.0)
            turn = position * 1e4 ** (-2 * i / dim) * (ramp / scaling.factor + 1 - ramp)
            a, b = float(x[2 * i]), float(x[2 * i + 1])
            out[2 * i] = a * math.cos(turn) - b * math.sin(turn)
            out[2 * i + 1] = b * math.cos(turn) + a * math.sin(turn)
        return out

    def attention(self, xs: list[Tensor]) -> list[Tensor]:
        c = self.config
        K, R, V = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        scale = (K + R) ** -0.5 * (0.1 * math.log(4.0) + 1.0) ** 2
        queries, keys, values = [], [], []
        for t, x in enumerate(xs):
            query = self.weight("self_attn.q_b_proj") @ self.norm(
                self.weight("self_attn.q_a_proj") @ x, "self_attn.q_a_layernorm", 1e-6
            )
            both = self.weight("self_attn.kv_a_proj_with_mqa") @ x
            latent = self.norm(both[: c.kv_lora_rank], "self_attn.kv_a_layernorm", 1e-6)
            shared = self.rope(both[c.kv_lora_rank :], t)
            up = (self.weight("self_attn.kv_b_proj") @ latent).view(-1, K + V)
            queries.append([torch.cat([q[:K], self.rope(q[K:], t)]) for q in query.view(-1, K + R)])
            keys.append([torch.cat([row[:K], shared]) for row in up])
            values.append([row[K:] for row in up])
        out = []
        for t in range(len(xs)):
            heads = []
            for h in range(c.num_attention_heads):
                weights = [math.exp(float(queries[t][h] @ keys[s][h]) * scale) for s in range(t + 1)]
                mixed = sum((w / sum(weights)) * values[s][h] for s, w in enumerate(weights))
                heads.append(mixed)
            out.append(self.weight("self_attn.o_proj") @ torch.cat(heads))
        return out

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        gate, up = self.weight(f"{name}.gate_proj") @ x, self.weight(f"{name}.up_proj") @ x
        return self.weight(f"{name}.down_proj") @ (gate / (1 + torch.exp(-gate)) * up)

    def experts(self, x: Tensor) -> Tensor:
        c = self.config
        scores = [1 / (1 + math.exp(-float(row @ x))) for row in self.weight("mlp.gate")]
        bias = self.disk[self.prefix + "mlp.gate.e_score_correction_bias"].tolist()
        preferred = [s + b for s, b in zip(scores, bias, strict=True)]
        size = c.n_routed_experts // c.n_group
        worth = [sum(sorted(preferred[g * size : (g + 1) * size])[-2:]) for g in range(c.n_group)]
        open_groups = sorted(range(c.n_group), key=lambda g: -worth[g])[: c.topk_group]
        allowed = [e for e in range(c.n_routed_experts) if e // size in open_groups]
        chosen = sorted(allowed, key=lambda e: -preferred[e])[: c.num_experts_per_tok]
        total = sum(scores[e] for e in chosen)
        out = self.feed_forward(x, "mlp.shared_experts")
        for e in chosen:
            out = out + scores[e] / total * c.routed_scaling_factor * self.feed_forward(x, f"mlp.experts.{e}")
        return out

    def hidden(self, main: Tensor, next_ids: list[int]) -> Tensor:
        eps = self.config.rms_norm_eps
        table = self.disk["model.embed_tokens.weight"]
        xs = [
            self.weight("eh_proj") @ torch.cat([self.norm(table[id_], "enorm", eps), self.norm(h, "hnorm", eps)])
            for h, id_ in zip(main.double(), next_ids, strict=True)
        ]
        seen = self.attention([self.norm(x, "input_layernorm", eps) for x in xs])
        xs = [x + a for x, a in zip(xs, seen, strict=True)]
        xs = [x + self.experts(self.norm(x, "post_attention_layernorm", eps)) for x in xs]
        return torch.stack([self.norm(x, "shared_head.norm", eps) for x in xs])


@torch.no_grad()
def test_the_prediction_module_is_the_papers(tmp_path: Path) -> None:
    model = fresh(V3).eval()
    save_model(tmp_path, V3, model.state_dict())
    disk = load_file(tmp_path / "model.safetensors")
    ids = tokens(1, 20)
    main = model(ids[:, :-1])
    ours = model.mtp_hidden(main, ids[:, 1:])[0]
    expected = Literal(V3, disk).hidden(main[0], ids[0, 1:].tolist())
    torch.testing.assert_close(ours.double(), expected, atol=2e-5, rtol=1e-5)
    # The released layout has the shared embedding and head in the module's layer once more.
    for name in ("embed_tokens", "shared_head.head"):
        assert torch.equal(disk[f"model.layers.3.{name}.weight"], disk["model.embed_tokens.weight"])


@torch.no_grad()
def test_transformers_drafts_the_same_from_the_saved_module(tmp_path: Path) -> None:
    from transformers.modeling_layers import MtpModel

    model = fresh(V3).eval()
    save_model(tmp_path, V3, model.state_dict())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3.*"]  # it looks for V3's own number, 61
    module = MtpModel.from_pretrained(theirs)
    ids = tokens(1, 20)
    main = model(ids[:, :-1])
    ours = model.logits(model.mtp_hidden(main, ids[:, 1:]))[0, -1]
    positions = torch.arange(19)[None]
    layer = module.layers[0]
    causal = torch.full((19, 19), float("-inf")).triu(1)[None, None]
    hidden = layer(
        theirs.model.embed_tokens(ids[:, 1:]), main, theirs.model.rotary_emb(main, positions), causal, positions, None
    )
    torch.testing.assert_close(ours, theirs.lm_head(hidden)[0, -1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[9], [4, 5], [1] * 9])
def test_the_prediction_module_drafts_from_a_cache_of_its_own(chunks: list[int]) -> None:
    """Ragged rows, aligned at their ends: chunk by chunk as while decoding, against each row in one pass."""
    model = fresh(V3).eval()
    lengths = [9, 4]
    rows = [tokens(length + 1, seed=i) for i, length in enumerate(lengths)]
    start = torch.tensor([9 - length for length in lengths])
    padded = torch.zeros(2, 10, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, start[i] :] = row
    cache, own = model.new_cache(start, 9), Cache(model.cache_widths(ahead=True)[-1:], start, 9, model.dtype)
    parts, begin = [], 0
    for size in chunks:
        hidden = model(padded[:, begin : begin + size], cache)
        parts.append(model.mtp_hidden(hidden, padded[:, begin + 1 : begin + size + 1], own))
        begin += size
    assert own.length == cache.length == 9
    drafted = torch.cat(parts, dim=1)
    for i, row in enumerate(rows):
        alone = model.mtp_hidden(model(row[None, :-1]), row[None, 1:])[0]
        torch.testing.assert_close(drafted[i, start[i] :], alone, atol=2e-5, rtol=1e-5)


def test_the_modules_loss_stops_where_packed_documents_meet() -> None:
    model = fresh(V3).eval()
    ids = tokens(2, 12)
    document = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 2 + [2] * 7])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 10:] = False
    total, next_token = pretraining_loss(model, Batch(ids, mask.float(), None, document), torch.tensor([0]), 0.3)
    ahead = []
    with torch.no_grad():
        for b in range(2):
            for i in range(10):
                if document[b, i] == document[b, i + 1] == document[b, i + 2] and mask[b, i + 2]:
                    begin = document[b].tolist().index(int(document[b, i]))  # each document by itself
                    alone = ids[b : b + 1, begin : i + 2]
                    logits = model.logits(model.mtp_hidden(model(alone[:, :-1]), alone[:, 1:])[0, -1])
                    logits[0] = float("-inf")
                    ahead.append(-float(torch.log_softmax(logits.double(), dim=0)[ids[b, i + 2]]))
    assert len(ahead) == (3 + 5) + (1 + 0 + 3)
    assert float(total.detach() - next_token) == pytest.approx(0.3 * sum(ahead) / len(ahead), rel=1e-5)


def test_balance_loss_is_the_papers() -> None:
    """Equations 17 to 20 of V3's report, sum by sum; the second sequence has padding, the third is padding."""
    B, T, E, P = 3, 7, 5, 2
    scores = torch.rand(B, T, E, generator=torch.Generator().manual_seed(0))
    shares = scores / scores.sum(-1, keepdim=True)
    chosen = scores.topk(P, dim=-1)[1]
    real = torch.ones(B, T, dtype=torch.bool)
    real[1, :3] = False
    real[2] = False
    expected = 0.0
    for b in range(2):
        places = [t for t in range(T) if real[b, t]]
        for i in range(E):
            f = E / (P * len(places)) * sum(i in chosen[b, t].tolist() for t in places)
            expected += f * sum(float(shares[b, t, i]) for t in places) / len(places) / 2
    assert float(loss_of(shares, chosen, real)) == pytest.approx(expected, rel=1e-5)
    halves = torch.arange(T).ge(5).long().expand(B, T)  # the second row's documents: two places and two
    packed = Counted.of(real, halves)
    assert len(packed.sequence_BT.unique()) == 1 + 4 and float(packed.weight_S.max()) == 0.25
    more = Counted.of(real, sequences=8)
    assert float(loss_of(shares, chosen, real, more)) == pytest.approx(expected / 4, rel=1e-5)


def loss_of(scores_BTE: Tensor, expert_BTP: Tensor, real_BT: Tensor, counted: Counted | None = None) -> Tensor:
    counted = counted or Counted.of(real_BT)
    return balance_loss(
        scores_BTE.flatten(0, 1), expert_BTP.flatten(0, 1), counted.sequence_BT.flatten(), counted.weight_S
    )


def test_an_even_load_has_the_least_loss_and_collapse_the_greatest() -> None:
    even = torch.full((1, 6, 3), 1 / 3)
    visits = torch.tensor([[[0], [1], [2], [0], [1], [2]]])
    real = torch.ones(1, 6, dtype=torch.bool)
    assert float(loss_of(even, visits, real)) == pytest.approx(1.0)
    collapsed = torch.tensor([1.0, 0, 0]).expand(1, 6, 3)
    assert float(loss_of(collapsed, torch.zeros(1, 6, 1, dtype=torch.long), real)) == pytest.approx(3.0)


def test_a_loss_that_rides_along_reaches_the_gradient_alone() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    out = with_loss(3 * x, (x**2).sum())
    assert torch.equal(out, 3 * x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([3.0 + 2.0, 3.0 + 4.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", [DeepseekConfig, DeepseekV2Config])
@pytest.mark.parametrize("seq_aux", [True, False])
def test_the_balance_loss_trains_the_router(kind: type[DeepseekConfig], seq_aux: bool) -> None:
    """Gradients with aux_loss_alpha minus those without are alpha times the gradient of the loss itself."""
    shape = SMALL | {"num_hidden_layers": 1, "first_k_dense_replace": 0}
    ids, real = tokens(3, 9), torch.ones(3, 9, dtype=torch.bool)
    real[0, 6:] = False
    grads = {}
    for alpha in (0.0, 0.5):
        model = fresh(kind(**shape, aux_loss_alpha=alpha, seq_aux=seq_aux)).train()
        counted = Counted.of(real)
        half = Counted(counted.sequence_BT, counted.weight_S / 2)  # of an update twice as large
        model.logits(model(ids, counted=half)).square().mean().backward()
        grads[alpha] = routers(model)[0].weight.grad
        captured: list[Tensor] = []
        model.layers[0].mlp.register_forward_pre_hook(lambda _, args, captured=captured: captured.append(args[0]))
        model.eval()(ids)
    gate = routers(model)[0].weight.detach().clone().requires_grad_()
    logits = F.linear(captured[0].detach(), gate)
    scores = logits.softmax(-1) if kind is DeepseekV2Config else logits.sigmoid()
    chosen = scores.topk(2, dim=-1)[1]
    shares = scores / scores.sum(-1, keepdim=True)
    loss = torch.zeros(())
    groups = [[(b, t)] for b in range(3) for t in range(9) if real[b, t]]
    sequences = [[(b, t) for t in range(9) if real[b, t]] for b in range(3)] if seq_aux else [sum(groups, [])]
    for places in sequences:
        for i in range(8):
            f = 8 / (2 * len(places)) * sum(i in chosen[b, t].tolist() for b, t in places)
            loss = loss + f * sum(shares[b, t, i] for b, t in places) / len(places) / len(sequences)
    (expected,) = torch.autograd.grad(0.5 * 0.5 * loss, gate)
    assert expected.norm() > 0
    torch.testing.assert_close(grads[0.5] - grads[0.0], expected, atol=1e-6, rtol=1e-3)


def test_padding_is_no_load() -> None:
    for config in (V3, LITE):
        model = fresh(config).train()
        ids, real = tokens(4, 9), torch.ones(4, 9, dtype=torch.bool)
        real[1, 5:] = False
        real[2, :2] = False
        chosen: list[Tensor] = []
        handles = [
            router.register_forward_hook(lambda _, __, out, chosen=chosen: chosen.append(out[0]))
            for router in routers(model)
        ]
        hidden = model(ids, counted=Counted.of(real))
        torch.testing.assert_close(hidden, model(ids))  # what is real changes no output
        for handle in handles:
            handle.remove()
        for router in routers(model):
            router.load.zero_()
        model(ids, counted=Counted.of(real))
        model(ids[:2], counted=Counted.of(real[:2]))  # a step may have several passes
        main = [router for router in routers(model) if int(router.load.sum())]
        assert len(main) == 2  # the prediction module has not run
        for router, choice in zip(main, chosen, strict=False):
            counts = [0] * 8
            for b in range(4):
                for t in range(9):
                    if real[b, t]:
                        for e in choice.view(4, 9, -1)[b, t].tolist():
                            counts[e] += 1 + (b < 2)
            assert router.load.tolist() == counts


def test_a_training_step_counts_what_is_trained_and_the_module_too() -> None:
    model = fresh(V3).train()
    ids = tokens(2, 10)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 3:] = True
    mask[1, 2:6] = True  # the rest of the row is padding
    pretraining_loss(model, Batch(ids, mask.float()), torch.tensor([0]), 0.3)
    # Row 0 predicts from columns 0 to 8, row 1 from 0 to 4; the module from one fewer each.
    assert [int(r.load.sum()) for r in routers(model)] == [3 * (9 + 5), 3 * (9 + 5), 3 * (8 + 4)]
    metrics = model.load_metrics()
    assert [m["layer"] for m in metrics] == [1, 2, 3]
    update_router_biases(model, 0.001)
    assert all(m["load_dead"] == 8 for m in model.load_metrics())
    pretraining_loss(model, Batch(ids, mask.float()), torch.tensor([0]))  # without weight the module does not run
    assert [int(r.load.sum()) for r in routers(model)] == [3 * (9 + 5), 3 * (9 + 5), 0]


def test_load_figures() -> None:
    even = load_metrics(torch.tensor([5, 5, 5, 5]))
    assert even == {"load_max": pytest.approx(1.0), "load_entropy": pytest.approx(1.0), "load_dead": 0}
    skewed = load_metrics(torch.tensor([6, 2, 0, 0]))
    nats = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert skewed == {
        "load_max": pytest.approx(3.0), "load_entropy": pytest.approx(nats / math.log(4)), "load_dead": 2,
    }  # fmt: skip
    assert load_metrics(torch.zeros(4, dtype=torch.long))["load_dead"] == 4


def test_v2_has_no_selection_bias_and_counts_its_load_anew() -> None:
    model = fresh(LITE).train()
    assert not [name for name in model.state_dict() if "correction_bias" in name] and model.extra_state() == {}
    model(tokens(2, 8))
    assert all(int(router.load.sum()) == 2 * 8 * 2 for router in routers(model))
    model.after_update(0.001)
    assert all(int(router.load.sum()) == 0 for router in routers(model))
