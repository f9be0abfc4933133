"""Packed and quantised linear layers against float64, their plain forms, and each other's batch sizes."""

import copy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from promised import needs_promise, needs_rows
from test_parity import CONFIGS, fresh, tokens
from torch import Tensor

from hadal.errors import UserError
from hadal.models import packed
from hadal.models.decoder import Decoder
from hadal.models.deepseek.config import DeepseekConfig
from hadal.models.dense.config import DenseConfig
from hadal.models.lora import LoraConfig, attach
from hadal.models.packed import choose, pack, packed_copy, repack, resolve
from hadal.ops import linear, quant
from hadal.ops.exact import exactly, linear_rows, padded_rows, sigmoid_rows
from hadal.ops.linear import FORMS, Stack, alike, kind_of, steadily, works

HERE = [form for form in FORMS if works(form)]
KINDS = sorted({kind_of(form) for form in FORMS})
BITS = {"int8": 8, "int4": 4}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


# Each operator


def test_the_plain_form_of_every_kind_works_everywhere() -> None:
    assert {kind_of(form) for form in HERE if form.endswith(":plain")} == set(KINDS)


@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("shape", [(384, 128), (97, 48), (48, 80), (896, 896)])
def test_a_product_is_that_of_float64_within_the_kinds_rounding(form: str, shape: tuple[int, int]) -> None:
    weight, x, bias = gaussian(*shape), gaussian(9, shape[1], seed=1), gaussian(shape[0], seed=2)
    matrix = FORMS[form](weight)
    expected = x.double() @ weight.double().t()
    # Half a step of the weights' grid, and of the activations' where they are rounded too, over the spread of a
    # uniform error; a row's largest of K Gaussian numbers is below 4.
    steps = 4 / 127 / 12**0.5
    bound = {"float64": 1e-14, "float32": 1e-6, "float16": 3e-4, "bfloat16": 4e-3, "int8": steps, "int4": 0.09}
    if form in ("int8:fbgemm", "int8:onednn"):
        bound["int8"] = steps * 127 / quant.weight_levels(form) + steps
    assert error(matrix(x.to(matrix.dtype)), expected) < bound[kind_of(form)]
    got = matrix(x.to(matrix.dtype), bias.to(matrix.dtype))
    assert error(got, expected + bias.double()) < bound[kind_of(form)]


@pytest.mark.parametrize("form", [form for form in HERE if form in ("float32:onednn", "float16:fbgemm", "int4:packed")])
def test_an_operator_stands_for_the_matrix_of_its_plain_form(form: str) -> None:
    """Both are given the same numbers, so what they differ in is the order of addition, and bf16's rounding of rows."""
    weight, x = gaussian(144, 96), gaussian(6, 96, seed=1)
    plain = FORMS[f"{kind_of(form)}:plain"](weight)
    matrix = FORMS[form](weight)
    assert error(matrix(x.to(matrix.dtype)), plain(x)) < (5e-3 if matrix.dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("form", [form for form in HERE if form in ("int8:fbgemm", "int8:onednn")])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_dynamic_products_are_exact_in_integers(form: str, scale: float) -> None:
    """Against a slow product of the rounded numbers; sums are as large as they get: CPUs without VNNI overflow."""
    weight, x = gaussian(32, 160).abs() + scale, gaussian(5, 160, seed=1).abs() + scale
    levels = quant.weight_levels(form)
    q, weight_scale = quant.quantise_int8(weight, levels)
    assert int(q.max()) == levels
    row_scale = x.abs().amax(1, keepdim=True).double() / 127
    rounded = (x.double() / row_scale).round()
    expected = (rounded @ q.double().t()) * row_scale * weight_scale.double()
    # A number that lies between two integers may be rounded to either, float32 or float64: one step of 160 numbers.
    assert error(FORMS[form](weight)(x), expected) < 1 / 127 / 160


def test_levels_are_found_by_what_the_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Saturating(quant.FbgemmInt8):
        form = "int8:saturating"

        def product(self, x_NK: Tensor) -> Tensor:
            unsigned = x_NK + 128
            pairs = (unsigned[:, 0::2] * 127 + unsigned[:, 1::2] * 127).clamp(max=32767)
            return (pairs.sum(1, keepdim=True) - 128 * 127 * x_NK.shape[1]).expand(-1, 16)

    class Wide(Saturating):
        form = "int8:wide"

        def product(self, x_NK: Tensor) -> Tensor:
            return (x_NK * 127).sum(1, keepdim=True).expand(-1, 16)

    monkeypatch.setitem(FORMS, "int8:saturating", Saturating)
    monkeypatch.setitem(FORMS, "int8:wide", Wide)
    assert quant.weight_levels("int8:saturating") == 63 and quant.weight_levels("int8:wide") == 127


@pytest.mark.parametrize(
    "group", [gaussian(1, 32), torch.full((1, 32), 3.0), torch.zeros(1, 32), -(gaussian(1, 32) ** 4)]
)
def test_four_bits_are_sixteen_steps_over_a_groups_range(group: Tensor) -> None:
    got = quant.dequantise_int4(*quant.quantise_int4(group))
    low, high = float(group.min()), float(group.max())
    step = (high - low) / 15
    literal = torch.tensor([[low + (round((v - low) / step) * step if step else 0.0) for v in group[0].tolist()]])
    rounding = 2 * float(group.abs().max()) * 2**-8  # of scale and zero to bf16
    assert float((got - literal).abs().max()) <= step + rounding  # a number between two steps may go to either
    assert float((got - group).norm()) <= float((literal - group).norm()) + rounding * 32**0.5


def test_rows_of_zeros_and_of_nan_keep_to_themselves() -> None:
    weight, x = gaussian(64, 96), gaussian(5, 96, seed=1)
    x[1], x[3, 7] = 0.0, float("nan")
    for form in HERE:
        matrix = FORMS[form](weight)
        y = matrix.rows(x.to(matrix.dtype)).float()
        assert torch.equal(y[1], torch.zeros(64)) or form.startswith("int4") and y[1].abs().max() < 1e-6, form
        assert y[3].isnan().all() and y[[0, 1, 2, 4]].isfinite().all(), form


@pytest.mark.parametrize("form", HERE)
def test_an_outlier_row_does_not_change_its_neighbours(form: str) -> None:
    matrix = FORMS[form](gaussian(64, 128))
    x = gaussian(8, 128, seed=1).to(matrix.dtype)
    before = matrix.rows(x)
    x[3] *= 1000
    after = matrix.rows(x)
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(before[kept], after[kept]) and not torch.equal(before[3], after[3])


def test_float16_refuses_what_it_cannot_hold() -> None:
    for form in ("float16:plain", "float16:fbgemm"):
        with pytest.raises(UserError, match="65,504"):
            FORMS[form](torch.full((16, 16), -1e5))


def test_float16_keeps_bf16_weights() -> None:
    """Numbers of 8 bits fit into 11, down to where float16 has fewer: there the loss is below 2^-25 in all."""
    weight = (gaussian(64, 64) * torch.logspace(-9, 3, 64)).bfloat16()
    kept = linear.PlainFloat16(weight).weight_OK.float()
    small = weight.abs() < 2**-17
    assert small.any() and torch.equal(kept[~small], weight.float()[~small])
    assert float((kept - weight.float()).abs().max()) <= 2**-25


# Rows that do not know each other


@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("shape", [(384, 128), (128, 384), (896, 896), (97, 48)])
def test_a_row_has_the_same_bits_in_every_batch(form: str, shape: tuple[int, int], threads: int) -> None:
    needs_rows(form, *shape)
    matrix, x = FORMS[form](gaussian(*shape)), gaussian(512, shape[1], seed=1)
    x = x.to(matrix.dtype)
    whole = matrix.rows(x)
    slow = form.endswith(":plain") and form.startswith(("bfloat16", "int"))
    for count in [1, 2, 3, 7, 8, 33] if slow else [*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 129, 200, 257, 384, 511]:
        assert torch.equal(matrix.rows(x[:count]), whole[:count]), count
        begin = 512 - count - 5
        assert torch.equal(matrix.rows(x[begin : begin + count]), whole[begin : begin + count]), count


@pytest.mark.parametrize("form", [form for form in HERE if FORMS[form].leading])
def test_a_row_has_the_same_bits_along_several_axes(form: str, threads: int) -> None:
    needs_rows(form, 97, 48)
    matrix, x = FORMS[form](gaussian(97, 48)), gaussian(40, 48, 9, seed=1).to(FORMS[form].dtype).mT
    bias = gaussian(97, seed=2).to(x.dtype)
    whole = matrix.rows(x.reshape(-1, 48), bias).view(40, 9, 97)
    for count in (1, 2, 3, 40):
        assert torch.equal(matrix.rows(x[:count], bias), whole[:count]), count
        assert torch.equal(matrix.rows(x[:count, :1], bias), whole[:count, :1]), count


@pytest.mark.long
@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("shape", [(4864, 896), (896, 4864), (20000, 384), (2048, 2048)])
def test_a_row_of_a_large_matrix_has_the_same_bits_in_every_batch(
    form: str, shape: tuple[int, int], threads: int
) -> None:
    needs_rows(form, *shape)
    matrix, x = FORMS[form](gaussian(*shape)), gaussian(512, shape[1], seed=1)
    x = x.to(matrix.dtype)
    whole = matrix.rows(x)
    for count in [*range(1, 13), 31, 32, 64, 65, 200, 384, 511]:
        assert torch.equal(matrix.rows(x[:count]), whole[:count]), count


def test_padding_goes_to_the_next_count_that_is_alike() -> None:
    """A product whose small batches, and those of one more than a multiple of six, are off by a bit."""
    seen: list[int] = []

    def product(x_NK: Tensor) -> Tensor:
        seen.append(len(x_NK))
        return x_NK + (len(x_NK) < 3 or len(x_NK) % 6 == 1) * 1e-3

    x = gaussian(64, 4)
    counts = alike(product, x)
    assert counts[:9] == (0, 3, 3, 3, 4, 5, 6, 8, 8) and counts[61] == 62 and counts[64] == 64
    for rows in (1, 2, 3, 7, 61, 64, 65, 100, 200):
        seen.clear()
        inputs = gaussian(rows, 4)
        assert torch.equal(steadily(product, inputs, counts), inputs)
        assert sum(seen) - rows <= 3 * len(seen)


def test_inputs_are_cut_only_where_large_counts_are_special() -> None:
    calls: list[int] = []

    def product(x_NK: Tensor) -> Tensor:
        calls.append(len(x_NK))
        return x_NK + (len(x_NK) < 4) * 1e-3

    counts = alike(product, gaussian(64, 4))
    calls.clear()
    steadily(product, gaussian(1000, 4), counts)
    assert calls == [1000]


KERNELS = [
    # Measured on Intel CPUs, with AMX: form, [O, K], threads, and the row counts that have an order of their own.
    ("float32:plain", (896, 896), 2, range(1, 113)),  # MKL in float32 and float64
    ("float64:plain", (896, 896), 2, range(1, 113)),
    ("float32:plain", (128, 384), 2, range(1, 4)),
    ("float64:plain", (128, 384), 2, range(1, 57)),
    ("float64:plain", (4864, 896), 2, (*range(1, 4), *range(16, 113))),
    ("float32:plain", (896, 896), 1, range(1, 16)),
    ("float64:plain", (896, 896), 1, range(1, 4)),
    ("float64:plain", (896, 4864), 1, range(1, 192)),
    ("bfloat16:plain", (896, 896), 1, range(3, 33)),  # oneDNN's AMX
    ("bfloat16:onednn", (896, 896), 2, range(33, 129)),
]


@pytest.mark.parametrize(("like", "shape", "threads", "special"), KERNELS)
def test_row_counts_that_are_special_at_one_shape_alone_are_found_there(
    like: str, shape: tuple[int, int], threads: int, special: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bits in certain counts of rows, of one shape and on so many threads: small matrices never show them."""
    dtype_, own = FORMS[like].dtype, 2**-6

    class Kernel(linear.Matrix):
        form, dtype = f"{like}:{shape}:{threads}", dtype_

        def __init__(self, weight_OK: Tensor) -> None:
            super().__init__(weight_OK)
            self.first_O = weight_OK[:, 0].to(self.dtype)

        def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
            here = self.shape == (min(shape[0], linear.TALLEST), shape[1]) or self.shape == shape
            other = here and torch.get_num_threads() == threads and len(x_NK) in special
            return x_NK[:, :1] * self.first_O * (1 + own * other)

    monkeypatch.setitem(FORMS, Kernel.form, Kernel)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix, x = Kernel(gaussian(*shape)), gaussian(300, shape[1], seed=1).to(dtype_)
        whole = matrix(x)
        assert any(not torch.equal(matrix(x[:n]), whole[:n]) for n in special), "the kernel is what it is said to be"
        assert linear.usual_counts(Kernel.form, threads) == tuple(range(linear.PROBED + 1))
        assert linear.keeps_rows(Kernel.form, shape, threads)
        for n in range(1, 257):
            assert torch.equal(matrix.rows(x[:n]), whole[:n]) and torch.equal(matrix.rows(x[-n:]), whole[-n:]), n
        counts = linear.row_counts(Kernel.form, shape, threads)
        assert not set(counts) & set(special), "what it adds rows to is no better"
        assert max(counts[n] - n for n in range(129)) <= len(special) + 15, "rows that are added cost time"
        assert linear.row_counts(Kernel.form, (64, 64), threads) == tuple(range(linear.PROBED + 1))
        for n in (1, 2, 3, 20, 40, 100, 130, 200, 300):
            rows = linear.rows_alike(((Kernel.form, *shape), (Kernel.form, 64, 64)), n)
            assert torch.equal(matrix(torch.cat([x, x])[:rows])[:n], whole[:n]), "a layer that nothing pads"
    finally:
        torch.set_num_threads(before)


def test_a_long_input_that_is_cut_needs_few_rows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """FBGEMM's float16 on AVX2 has counts of its own up to the last: 149 tokens became 256 rows of 149."""

    class Kernel(linear.Matrix):
        form, dtype = "float32:uneven", torch.float32

        def __init__(self, weight_OK: Tensor) -> None:
            super().__init__(weight_OK)
            self.first_O = weight_OK[:, 0]

        def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
            return x_NK[:, :1] * self.first_O * (1 + 2**-6 * (len(x_NK) % 8 in (1, 2)))

    monkeypatch.setitem(FORMS, Kernel.form, Kernel)
    sized, x = (Kernel.form, 64, 32), gaussian(700, 32)
    matrix = Kernel(gaussian(64, 32, seed=1))
    assert matrix(x[:9])[:8].ne(matrix(x[:8])).all(), "it is uneven"
    whole = matrix.rows(x)
    stable = partial(linear.rows_alike, (sized,), cut=True)
    for count in (1, 5, 64, 129, 149, 192, 298, 450, 640):
        rows = stable(count)
        assert rows - count <= 4 and padded_rows(1, count, stable) <= 3
        assert torch.equal(matrix.rows(x[:rows])[:count], whole[:count])
        in_one_piece = linear.rows_alike((sized,), count)
        assert in_one_piece <= linear.PROBED or in_one_piece % linear.PROBED == 0, "nothing else was tried"


def test_plain_products_of_few_rows_are_steadied(threads: int) -> None:
    needs_rows("float32:plain", 64, 48)
    weight, x = gaussian(64, 48), gaussian(300, 48, seed=1)
    with exactly(True):
        whole = linear_rows(x, weight)
        assert error(whole, x.double() @ weight.double().t()) < 1e-6
        for count in range(1, 40):
            assert torch.equal(linear_rows(x[:count], weight), whole[:count])


@pytest.mark.parametrize("width", [3, 8, 64, 256])
def test_sigmoids_do_not_depend_on_the_rows_beside_them(width: int, threads: int) -> None:
    x = gaussian(400, width) * 3
    with exactly(True):
        whole = sigmoid_rows(x)
        assert error(whole, 1 / (1 + torch.exp(-x.double()))) < 1e-6
        for count in [*range(1, 20), 127, 129, 399]:
            assert torch.equal(sigmoid_rows(x[:count]), whole[:count])


@pytest.mark.parametrize("form", ["float32:plain", *(f for f in HERE if f in ("float32:onednn", "int8:fbgemm"))])
def test_a_stack_multiplies_each_experts_rows(form: str) -> None:
    weight, x = gaussian(4, 48, 32), gaussian(20, 32, seed=1)
    ends = torch.tensor([3, 3, 19, 20], dtype=torch.int32)
    stack = Stack(FORMS[form], weight)
    got = stack.linear(x, ends)
    for e, (begin, end) in enumerate([(0, 3), (3, 3), (3, 19), (19, 20)]):
        assert torch.equal(got[begin:end], FORMS[form](weight[e]).rows(x[begin:end]) if end > begin else got[:0])
        if end > begin:
            assert error(got[begin:end], x[begin:end].double() @ weight[e].double().t()) < 0.04


# Whole models


@pytest.fixture(params=["qwen2", "qwen3-biased", "llama", "v2", "v3"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return fresh(CONFIGS[request.param])


def logits_of(model: Decoder, ids: Tensor) -> Tensor:
    return model.logits(model(ids))


def decoded(model: Decoder, ids_BT: Tensor) -> Tensor:
    """Logits of the last token, decoded by itself."""
    cache = model.new_cache(torch.zeros(len(ids_BT), dtype=torch.long), ids_BT.shape[1])
    model(ids_BT[:, :-1], cache)
    return model.logits(model(ids_BT[:, -1:], cache))


MODEL_FORMS = [form for form in HERE if kind_of(form) not in ("float64", "bfloat16") and form != "int4:plain"]


def test_every_family_gives_its_logits_in_every_form(model: Decoder) -> None:
    ids = tokens(3, 12)
    expected = logits_of(model, ids)
    bounds = {"float32": 1e-5, "float16": 1e-2, "int8": 0.5, "int4": 1.0}  # random weights; experts change
    found = {}
    for form in MODEL_FORMS:
        got, _ = packed_copy(model, form)
        assert logits_of(got, ids).dtype == torch.float32
        found[form] = error(logits_of(got, ids), expected)
        assert found[form] < bounds[kind_of(form)], form
        assert error(decoded(got, ids), decoded(model, ids)) < bounds[kind_of(form)], form
    assert found["float32:plain"] < found["float16:plain"] < found["int8:plain"]
    assert torch.equal(logits_of(model, ids), expected)  # the model itself was left as it is


@pytest.mark.parametrize("name", ["qwen2", "v2-lite", "v3-plain"])
def test_a_row_of_a_model_does_not_know_its_batch(name: str, threads: int) -> None:
    model, ids = fresh(CONFIGS[name]), tokens(9, 7)
    for form in ("float32", "float16", "int8"):
        got, _ = packed_copy(model, form)
        needs_promise(got)
        with exactly(True):
            whole, last = logits_of(got, ids), decoded(got, ids)
            for rows in (1, 2, 3, 5):
                assert torch.equal(logits_of(got, ids[:rows]), whole[:rows]), (form, rows)
                assert torch.equal(decoded(got, ids[:rows]), last[:rows]), (form, rows)


def test_packing_in_place_gives_what_a_copy_gives(model: Decoder) -> None:
    ids = tokens(2, 12)
    plain = copy.deepcopy(model)
    for form in ("float32", "int8"):
        beside, _ = packed_copy(plain, form)
        mine = copy.deepcopy(plain)
        done = pack(mine, form)
        assert torch.equal(logits_of(mine, ids), logits_of(beside, ids))
        assert done.nbytes > 0 and done.seconds > 0
        left = {name for name, p in mine.named_parameters() if p.dim() > 1}
        assert {name.split(".")[-2] for name in left} <= {"embed", "gate"}


def test_repacking_follows_the_trainers_weights(model: Decoder) -> None:
    ids = tokens(2, 12)
    for form in ("float32", "float16", "bfloat16:plain", "int8", "int4"):
        trained = copy.deepcopy(model)
        beside, first = packed_copy(trained, form)
        for parameter in trained.parameters():
            parameter.mul_(1.1).add_(0.01)
        done = repack(beside, trained)
        anew, _ = packed_copy(trained, form)
        assert torch.equal(logits_of(beside, ids), logits_of(anew, ids)), form
        assert done.nbytes == first.nbytes and done.seconds > 0


def test_a_copy_shares_what_is_no_matrix(model: Decoder) -> None:
    beside, _ = packed_copy(model, "float32")
    assert beside.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in beside.parameters())


def test_tied_heads_and_embeddings_come_from_one_matrix() -> None:
    model = fresh(CONFIGS["qwen2"])
    assert model.config.tie_word_embeddings
    beside, _ = packed_copy(model, "float32")
    model.embed.weight.mul_(2)
    repack(beside, model)
    hidden = gaussian(3, model.config.hidden_size)
    assert error(beside.logits(hidden), hidden.double() @ model.embed.weight.double().t()) < 1e-6


def test_adapters_are_packed_into_their_matrices() -> None:
    for name, targets in (("qwen3", ["v_proj", "up_proj"]), ("v3", ["kv_b_proj", "gate_proj", "down_proj"])):
        model = fresh(CONFIGS[name])
        attach(model, LoraConfig(rank=2, targets=targets), seed=0)
        for module, parameter in model.named_parameters():
            if "lora_B" in module:
                parameter.copy_(gaussian(*parameter.shape) * 0.1)
        ids = tokens(2, 9)
        beside, _ = packed_copy(model, "float32")
        assert error(logits_of(beside, ids), logits_of(model, ids)) < 1e-5
        for module, parameter in model.named_parameters():
            if "lora_A" in module:
                parameter.mul_(3)
        repack(beside, model)
        assert error(logits_of(beside, ids), logits_of(model, ids)) < 1e-5


def test_a_bf16_checkpoint_is_computed_in_float32_without_a_wider_embedding() -> None:
    model = fresh(CONFIGS["qwen2"])
    ids = tokens(2, 12)
    narrow = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(narrow).float()
    pack(narrow, "float16")
    assert narrow.embed.weight.dtype == torch.bfloat16 and narrow.dtype == torch.float32
    assert error(logits_of(narrow, ids), logits_of(exact, ids)) < 1e-5


def test_large_matrices_are_packed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(CONFIGS["llama"])  # with biases
    ids = tokens(2, 12)
    monkeypatch.setattr(packed, "BLOCK", 1500)
    monkeypatch.setattr(packed, "ROWS", 5)
    beside, _ = packed_copy(model, "float32")
    assert len(beside.packed_head.blocks) > 1
    assert error(logits_of(beside, ids), logits_of(model, ids)) < 1e-5


# Choosing


def test_a_form_that_is_missing_is_replaced_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on a torch without these operators."""

    class Gone(linear.OnednnFloat32):
        form = "float32:onednn"

        def __init__(self, weight_OK: Tensor) -> None:
            torch.ops.mkldnn._no_such_operator(weight_OK)

    monkeypatch.setitem(FORMS, "float32:onednn", Gone)
    works.cache_clear()
    try:
        assert resolve("float32") == "float32:plain"
        with pytest.raises(UserError, match="float32:onednn"):
            resolve("float32:onednn")
        model = fresh(CONFIGS["qwen3"])
        beside, _ = packed_copy(model, "float32")
        assert error(logits_of(beside, tokens(2, 9)), logits_of(model, tokens(2, 9))) < 1e-6
    finally:
        works.cache_clear()


@pytest.mark.parametrize("form", ["int3", "float32:nothing", "", "auto:x"])
def test_a_form_that_is_none_is_refused_in_a_line(form: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(form)
    assert "\n" not in str(caught.value)


def test_an_operator_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(linear.PlainFloat32):
        form = "float32:wrong"

        def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
            return super().__call__(x_NK, bias_O) * 1.001

    monkeypatch.setitem(FORMS, "float32:wrong", Wrong)
    assert not works("float32:wrong")


def test_the_choice_keeps_the_checkpoints_quality_and_can_be_kept() -> None:
    config = DenseConfig(512, 128, 2, 4, 2, head_dim=32, intermediate_size=384)
    for dtype, kinds in {
        torch.float32: {"float32"},
        torch.float16: {"float32", "float16"},
        torch.bfloat16: {"float32", "bfloat16", "float16"},
    }.items():
        choice = choose(config, dtype, seconds=0.05)
        assert kind_of(choice.form) in kinds and works(choice.form)
        assert choice.form in choice.reason and "\n" not in choice.reason
        assert resolve(choice.form) == choice.form
    assert kind_of(choose(config, torch.float32, "int8", seconds=0.05).form) == "int8"
    with pytest.raises(UserError, match="int5"):
        choose(config, torch.float32, "int5")


def test_the_choice_goes_to_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(linear.PlainFloat32):
        form = "float32:slow"

        def __call__(self, x_NK: Tensor, bias_O: Tensor | None = None) -> Tensor:
            for _ in range(5):
                super().__call__(x_NK, bias_O)
            return super().__call__(x_NK, bias_O)

    monkeypatch.setitem(FORMS, "float32:slow", Slow)
    times = linear.measure(["float32:slow", "float32:plain"], [(512, 512)] * 4, [64], 0.1)
    assert list(times) == ["float32:plain", "float32:slow"]
    assert times["float32:slow"][0] > 2 * times["float32:plain"][0]


def test_what_is_measured_has_the_models_shapes_and_an_end() -> None:
    dense = DenseConfig(512, 128, 2, 4, 2, head_dim=32, intermediate_size=384)
    layer = [(256, 128), (128, 128), (768, 128), (128, 384)]
    assert packed.linear_shapes(dense) == layer * 2
    large = DenseConfig(512, 8192, 80, 64, 8, head_dim=128, intermediate_size=28672)
    assert sum(O * K for O, K in packed.linear_shapes(large)) <= packed.MEASURED
    mixture = DeepseekConfig(512, 128, 2, 4, 384, 128)
    shapes = packed.linear_shapes(mixture)
    assert shapes.count((2 * 128, 128)) >= mixture.num_experts_per_tok


# Memory

MEMORY = """
import sys, torch
from hadal.models.build import outline
from hadal.models.dense.config import Qwen2Config
from hadal.models.packed import pack

def peak(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def large_model(dtype):
    model = outline(Qwen2Config(30000, 768, 10, 12, 2, head_dim=64, intermediate_size=2560))
    state = {name: torch.full(like.shape, 0.01, dtype=dtype) for name, like in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model

form, dtype = sys.argv[1], getattr(torch, sys.argv[2])
torch.set_num_threads(1)
pack(outline(Qwen2Config(64, 64, 1, 2, 2, intermediate_size=64)).to_empty(device="cpu").to(dtype).apply(
    lambda m: [p.data.fill_(0.01) for p in m.parameters(recurse=False)]), form)  # operators are loaded
before = peak("VmRSS")
model = large_model(dtype)
weights = sum(p.nbytes for p in model.parameters())
done = pack(model, form)
print(weights, done.nbytes + model.embed.weight.nbytes, peak("VmHWM") - before, peak("VmRSS") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        pytest.param("float32", "float32", marks=pytest.mark.long),
        ("float16", "bfloat16"),
        ("int8", "bfloat16"),
        pytest.param("int4", "bfloat16", marks=pytest.mark.long),
    ],
)
def test_plain_matrices_are_freed_as_packing_goes(form: str, dtype: str) -> None:
    program = [sys.executable, "-c", MEMORY, form, dtype]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    weights, kept, highest, after = map(int, done.stdout.split())
    assert weights > 150e6
    head = weights * 30000 * 768 // 99_200_000  # a tied head is packed beside the embedding
    assert highest < 1.15 * weights + head + 120e6
    assert after < 1.05 * kept + 80e6
