"""The compiled kernels give what torch gives, and stay away where they do not apply."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from freerun.actors import kernels
from freerun.actors.kernels import attend, product, usable
from freerun.actors.slots import Slots, Stretch, make_plan

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not usable(torch.zeros(1, 64, dtype=request.param)):
        pytest.skip("no compiler")
    return request.param


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def alone(query_HD: torch.Tensor, keys_KTD: torch.Tensor, values_KTD: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of one token over all of these keys, by torch in float32."""
    query, keys, values = (x.float() for x in (query_HD[None, :, None], keys_KTD[None], values_KTD[None]))
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=True)[0, :, 0]


@dataclass
class Case:
    """Tokens of a pass, and slots in which all of the earlier positions are filled. Storing is checked on the way: what the
    slots hold at the tokens' own positions before the call is wrong."""

    dtype: torch.dtype
    places: list[tuple[int, int]]
    """Slot and position of each token."""
    heads: int = 6
    kv_heads: int = 2
    width: int = 64
    capacity: int = 64

    def __post_init__(self) -> None:
        count, slots = len(self.places), 1 + max(slot for slot, _ in self.places)
        # Strided rows, as in a buffer that holds queries, keys and values.
        both = normal(count, self.heads + 2 * self.kv_heads, self.width, dtype=self.dtype)
        self.query_NHD, self.key_NKD, self.value_NKD = both.split([self.heads, self.kv_heads, self.kv_heads], 1)
        self.query_NHD = self.query_NHD * 3
        self.keys_SKTD = normal(slots, self.kv_heads, self.capacity, self.width, dtype=self.dtype)
        self.values_SKTD = normal(slots, self.kv_heads, self.capacity, self.width + 1, dtype=self.dtype)[..., 1:].contiguous()
        self.slot_N, self.position_N = torch.tensor(self.places).t().contiguous()

    def attend(self, rows: slice = slice(None), **settings) -> torch.Tensor:
        fresh = self.query_NHD[rows], self.key_NKD[rows], self.value_NKD[rows]
        places = self.slot_N[rows], self.position_N[rows]
        return attend(*fresh, self.keys_SKTD, self.values_SKTD, *places, **settings)

    def expected(self, row: int, scale: float, window: int | None = None) -> torch.Tensor:
        slot, last = self.places[row]
        seen = slice(0 if window is None else max(0, last + 1 - window), last + 1)
        return alone(self.query_NHD[row], self.keys_SKTD[slot, :, seen], self.values_SKTD[slot, :, seen], scale)


DECODING = [(slot, at) for slot, at in enumerate([0, 1, 7, 8, 30, 15, 3])]
MIXED = [(0, 9), (1, 3), *((2, at) for at in range(13)), *((3, at) for at in range(5, 22)), *((4, at) for at in range(2))]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 32), (8, 2, 96), (5, 1, 64), (14, 2, 128)])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("places", [DECODING, MIXED], ids=["decoding", "mixed"])
def test_attention_equals_that_of_torch_over_each_response_alone(
    dtype: torch.dtype, heads: int, kv_heads: int, width: int, window: int | None, places: list
) -> None:
    case = Case(dtype, places, heads, kv_heads, width)
    got_NHD = case.attend(scale=0.3, window=window)
    for row, (slot, at) in enumerate(places):
        assert torch.equal(case.keys_SKTD[slot, :, at], case.key_NKD[row])
        assert torch.equal(case.values_SKTD[slot, :, at], case.value_NKD[row])
        close(got_NHD[row], case.expected(row, 0.3, window), dtype)


def test_a_token_gets_the_same_bits_whatever_is_beside_it_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    case, threads = Case(dtype, MIXED), torch.get_num_threads()
    together = case.attend(scale=0.1)
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(case.attend(scale=0.1), together)
    finally:
        torch.set_num_threads(threads)
    for row in range(len(MIXED)):
        assert torch.equal(case.attend(slice(row, row + 1), scale=0.1)[0], together[row])


def test_attention_weights_of_very_unequal_scores_stay_finite(dtype: torch.dtype) -> None:
    case = Case(dtype, [(0, 7)])
    case.query_NHD, case.keys_SKTD, case.key_NKD = (
        torch.ones_like(case.query_NHD),
        *map(torch.zeros_like, (case.keys_SKTD, case.key_NKD)),
    )
    case.keys_SKTD[0, :, 2] = 1000.0
    close(case.attend(scale=1.0)[0], case.values_SKTD[0, :, 2].repeat_interleave(3, 0), dtype)


def test_what_is_not_finite_reaches_only_those_who_read_it(dtype: torch.dtype) -> None:
    case = Case(dtype, [(0, 5), (1, 6)])
    case.keys_SKTD[0, :, 3], case.keys_SKTD[1, :, 7] = torch.nan, torch.nan
    out_NHD = case.attend(scale=1.0)
    assert out_NHD[0].isnan().all() and out_NHD[1].isfinite().all()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 33, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(4, 32), (5, 64), (130, 576), (3, 1536), (1, 96)])
def test_products_equal_those_of_torch(dtype: torch.dtype, rows: int, outputs: int, inputs: int) -> None:
    # Strided rows on both sides.
    x_MK, weight_OK = normal(rows, inputs + 40, dtype=dtype)[:, 7 : 7 + inputs], normal(outputs, inputs, dtype=dtype)
    expected_MO = x_MK.double() @ weight_OK.double().t() / inputs**0.5
    for result in {dtype, torch.float32}:
        out_MO = torch.full((rows, outputs + 9), 7.0, dtype=result)
        product(x_MK, weight_OK, out_MO[:, 2 : 2 + outputs])
        close(out_MO[:, 2 : 2 + outputs] / inputs**0.5, expected_MO, result)
        assert (out_MO[:, :2] == 7).all() and (out_MO[:, 2 + outputs :] == 7).all()


def test_a_product_gives_a_row_the_same_bits_whatever_is_beside_it_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    x_MK, weight_OK, threads = normal(33, 576, dtype=dtype), normal(70, 576, dtype=dtype), torch.get_num_threads()
    together, again = torch.empty(2, 33, 70, dtype=dtype)
    product(x_MK, weight_OK, together)
    try:
        torch.set_num_threads(threads + 1)
        product(x_MK, weight_OK, again)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, together)
    for rows in (1, 2, 5, 8, 13):
        product(x_MK[:rows], weight_OK, again[:rows])
        assert torch.equal(again[:rows], together[:rows])


def test_what_the_kernels_cannot_read_is_left_to_torch() -> None:
    assert not usable(torch.zeros(8, 12))
    assert not usable(torch.zeros(64, 64).t()[:32])
    assert not usable(torch.zeros(8, 64, dtype=torch.float64))
    assert not usable(torch.zeros(8, 64, device="meta"))


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache of compiled kernels, and the old one again afterwards."""
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path))
    kernels._library.cache_clear()
    yield tmp_path / "kernels"
    kernels._library.cache_clear()


def test_without_a_compiler_the_kernels_do_not_apply(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not usable(torch.zeros(8, 64))


def test_without_a_place_to_write_to_the_kernels_do_not_apply(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FREERUN_CACHE", str(tmp_path / "file"))
    assert not usable(torch.zeros(8, 64))


def test_a_source_that_does_not_compile_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: Path, tmp_path: Path
) -> None:
    source = tmp_path / "decode.c"
    source.write_text("this is not C")
    monkeypatch.setattr(kernels, "_SOURCE", source)
    assert not usable(torch.zeros(8, 64))
    assert not fresh_cache.exists() or not list(fresh_cache.iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instructions of x86")
@pytest.mark.parametrize(
    ("flags", "needed", "multiple"), [("-msse4.2", "sse4_2", 8), ("-mavx2 -mfma", "avx2", 16), ("-mavx512f", "avx512_f", 32)]
)
def test_one_source_serves_vectors_of_every_width(
    monkeypatch: pytest.MonkeyPatch, fresh_cache: Path, flags: str, needed: str, multiple: int
) -> None:
    if not torch.cpu.get_capabilities().get(needed):
        pytest.skip(f"no {needed}")
    monkeypatch.setattr(kernels, "_FLAGS", (*kernels._FLAGS, *flags.split()))
    monkeypatch.setattr(kernels, "_TUNED", ("-fPIC",))
    if not usable(torch.zeros(8, 64)):
        pytest.skip("no compiler")
    assert kernels._library().multiple() == multiple
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(dtype, MIXED)
        got_NHD = case.attend(scale=0.1)
        for row in range(len(MIXED)):
            close(got_NHD[row], case.expected(row, 0.1), dtype)
        x_MK, weight_OK, out_MO = normal(8, 64, dtype=dtype), normal(6, 64, dtype=dtype), torch.empty(8, 6, dtype=dtype)
        product(x_MK, weight_OK, out_MO)
        close(out_MO / 8, (x_MK.float() @ weight_OK.float().t()) / 8, dtype)


def test_a_plan_takes_queries_and_keys_that_lie_in_memory_in_any_order(dtype: torch.dtype) -> None:
    given = {name: normal(3, heads, 64, dtype=dtype) for name, heads in (("query", 4), ("key", 2), ("value", 2))}
    outputs = []
    for turned in (False, True):
        slots = Slots(1, 1, 16)
        slots.reserve(16)
        plan, _, _ = make_plan(slots, "cpu", stretches=[Stretch(0, 0, [0, 0, 0])])
        strided = (x.transpose(1, 2).contiguous().transpose(1, 2) if turned else x for x in given.values())
        outputs.append(plan.attend(0, *strided, scale=None))
        assert slots.compiled
    assert torch.equal(*outputs)
