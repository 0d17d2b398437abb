"""Which sizes graphs have, and that drawing in one tensor is drawing; what runs on a GPU is tested in tests/cuda."""

import torch

from freerun.actors.graphs import SIZES, rounded
from freerun.ops.sampling import SamplingRows, draw, drawn, stream_key, uniform
from freerun.types import Sampling


def test_at_most_a_third_of_the_rows_of_a_graph_fill_it_up() -> None:
    for count in range(1, SIZES[-1] + 1):
        size = rounded(count)
        assert size is not None and count <= size and 3 * (size - count) <= size


def test_passes_that_are_too_long_have_no_graph() -> None:
    assert rounded(SIZES[-1]) == SIZES[-1]
    assert rounded(SIZES[-1] + 1) is None


def test_drawing_as_one_tensor_gives_the_same_tokens_and_log_probs() -> None:
    logits_BV = 3 * torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    settings = [Sampling(temperature=t, min_p=p) for t, p in ((1.0, 0.0), (0.0, 0.0), (0.7, 0.1), (1.0, 0.0))]
    key_B, position_B = torch.tensor([stream_key(0, i) for i in range(4)]), torch.arange(4)
    rows = SamplingRows.of(settings)
    again = rows.with_tensors(*rows.tensors())
    token_B, logp_B = draw(logits_BV, rows, uniform(key_B, position_B))
    got_2B = drawn(logits_BV, again, key_B, position_B)
    assert got_2B[0].long().tolist() == token_B.tolist()
    assert got_2B[1].float().tolist() == logp_B.tolist()
