"""SAA of one layer against the released code, and where the released code fails."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dynamicid_core import saa
from dynamicid_core.regions import Box, from_mask, layout_on_grid

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())["layers"]["saa_small64"]
HEADS = 8
TEXT_TOKENS, TOKENS_PER_PERSON = 77, 4
TOLERANCE = 2e-5
# Where boxes overlap the released code gives NaN; boxes below a cell vanish there and keep a cell here (design 3.5).
OTHERS = ("_fp32", "overlap", "tiny")
MATCHED = [name for name in CASES if not any(other in name for other in OTHERS)]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "saa_small64.safetensors")


def weight(golden, name):
    """A projection with its low-rank update merged, as the host merges it."""
    base = golden[f"attn.{name}.weight"] if name != "to_out" else golden["attn.to_out.0.weight"]
    return base + golden[f"proc.{name}_lora.up.weight"] @ golden[f"proc.{name}_lora.down.weight"]


def settings_of(case):
    return saa.SaaSettings(weight=case["id_scale"], gate=case["activate_query"])


def layout_of(case, pad=False):
    boxes = [Box(x0, y0, x1, y1) for y0, x0, y1, x1 in case["bbox"]]
    if case["mix_scale"] is not None:  # a mix is one person with everybody's tokens
        tokens = [TOKENS_PER_PERSON * case["n_id"]]
    else:
        boxes += [None] * (case["n_id"] - len(boxes))
        tokens = [TOKENS_PER_PERSON] * case["n_id"]
    return layout_on_grid(boxes, tokens, case["grid_h"], case["grid_w"], case["infer_scale_effective"], pad=pad)


def attention_parts(golden, case, pad=False):
    hidden = golden[f"in.hidden_{case['grid_h'] * case['grid_w']}"]
    context = golden[f"in.context_{case['n_id']}id"]
    text, tokens = context[:, :TEXT_TOKENS], context[:, TEXT_TOKENS:]
    query = F.linear(hidden, weight(golden, "to_q"))
    split = [
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in (query, F.linear(text, weight(golden, "to_k")), F.linear(text, weight(golden, "to_v")))
    ]
    text_out = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    keys = F.linear(tokens, golden["proc.to_k_ip.weight"])
    values = F.linear(tokens, golden["proc.to_v_ip.weight"]) * case["id_scale"]
    scale = None
    if case["mix_scale"] is not None:
        weights = torch.tensor([case["mix_scale"]] + [1 - case["mix_scale"]] * (case["n_id"] - 1))
        scale = weights.repeat_interleave(TOKENS_PER_PERSON)
    return query, text_out, saa.project_tokens(keys, values, HEADS, query.dtype, scale, pad)


@pytest.mark.parametrize("pad", [False, True], ids=["as many tokens", "tokens filled up"])
@pytest.mark.parametrize("name", MATCHED)
def test_layer_matches_the_released_processor(golden, name, pad):
    case = CASES[name]
    query, text, identity = attention_parts(golden, case, pad)
    assert identity.keys.shape[2] == (16 if pad else 4 * case["n_id"])
    out = saa.semantic_activated_attention(text, query, identity, settings_of(case), layout_of(case, pad))
    out = F.linear(out, weight(golden, "to_out"), golden["attn.to_out.0.bias"])
    torch.testing.assert_close(out, golden[f"{name}.out"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", [name for name in MATCHED if CASES[name]["activate_query"]])
def test_gate_before_and_after_threshold_and_boxes_matches(golden, name):
    case = CASES[name]
    query, _, identity = attention_parts(golden, case)
    plain = saa.relevance_gate(query, identity.key_sum, threshold=0.0)[..., 0]
    torch.testing.assert_close(plain, golden[f"{name}.gate_norm"], atol=TOLERANCE, rtol=0)
    gate = saa.relevance_gate(query, identity.key_sum, threshold=0.3)
    layout = layout_of(case)
    if layout.gate_scale is not None:
        gate = gate * layout.gate_scale + layout.gate_offset
    torch.testing.assert_close(gate[..., 0], golden[f"{name}.gate"], atol=TOLERANCE, rtol=0)


def test_nearly_all_cases_of_the_layer_are_matched():
    assert len(MATCHED) >= 17


def test_self_attention_layer_with_its_low_rank_update_matches():
    golden = load_file(GOLDEN / "sa_small64.safetensors")
    hidden = golden["in.hidden"]
    parts = [
        F.linear(hidden, weight(golden, name)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for name in ("to_q", "to_k", "to_v")
    ]
    out = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    out = F.linear(out, weight(golden, "to_out"), golden["attn.to_out.0.bias"])
    torch.testing.assert_close(out, golden["out"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pad", [False, True], ids=["as many tokens", "tokens filled up"])
@pytest.mark.parametrize("people", [1, 2, 5])
@pytest.mark.parametrize("views", [(None,), (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))], ids=["whole", "two parts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_soft_masks_weaken_what_each_person_adds_and_nothing_else(people, pad, views, dtype):
    torch.manual_seed(people)
    counts, heads, cells = [4, 8, 4, 4, 4][:people], 2, 4
    query, text = torch.randn(2, cells * cells, 8), torch.zeros(2, cells * cells, 8)
    keys, values = torch.randn(2, sum(counts), 8), torch.randn(2, sum(counts), 8)
    masks = torch.rand(people, cells, cells).clamp(0.01)
    masks[0, 0] = 0
    regions = [from_mask(mask) for mask in masks]
    if people == 5:
        regions[3] = None
    scale = torch.ones(sum(counts))
    scale[:4] = 0.5
    layout, exact = (
        layout_on_grid(regions, counts, cells, cells, 2, views, "cpu", d, pad) for d in (dtype, torch.float32)
    )
    settings = saa.SaaSettings(threshold=0.0)
    identity = saa.project_tokens(keys, values, heads, dtype, scale, pad)
    added = saa.semantic_activated_attention(text, query, identity, settings, layout)

    expected, ends = torch.zeros_like(added), torch.tensor(counts).cumsum(0).tolist()
    covered = [[None if r is None else r.coverage(cells, cells, view).flatten() for r in regions] for view in views]
    for person, (end, count) in enumerate(zip(ends, counts, strict=True)):
        alone = torch.zeros_like(values)
        alone[:, end - count : end] = values[:, end - count : end]
        identity = saa.project_tokens(keys, alone, heads, torch.float32, scale, pad)
        whole = saa.semantic_activated_attention(text, query, identity, settings, replace(exact, shares=None))
        taken = torch.stack([torch.ones(cells**2) if c[person] is None else c[person] for c in covered])
        expected += whole * torch.where(taken > 0, taken, 1.0)[..., None]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(added, expected, atol=tolerance, rtol=tolerance)
    assert not torch.equal(added, whole)


def test_a_flat_relevance_map_gives_no_identity_instead_of_nan():
    query = torch.ones(2, 9, 16)
    gate = saa.relevance_gate(query, torch.randn(2, 16, 1), threshold=0.0)
    assert torch.equal(gate, torch.zeros(2, 9, 1))


def test_a_single_query_gives_no_identity_instead_of_nan():
    gate = saa.relevance_gate(torch.randn(1, 1, 16), torch.randn(1, 16, 1), threshold=0.0)
    assert torch.equal(gate, torch.zeros(1, 1, 1))


def test_a_gate_equal_to_the_threshold_is_kept():
    query = torch.tensor([0.0, 0.3, 1.0])[None, :, None]
    gate = saa.relevance_gate(query, torch.ones(1, 1, 1), threshold=0.3)
    assert torch.equal(gate[0, :, 0], torch.tensor([0.0, 0.3, 1.0]))


def test_rows_of_a_batch_are_normalised_separately():
    query = torch.randn(2, 50, 16)
    key_sum = torch.randn(1, 16, 1).expand(2, -1, -1)
    together = saa.relevance_gate(query * torch.tensor([1.0, 100.0])[:, None, None], key_sum, threshold=0.0)
    apart = saa.relevance_gate(query[1:], key_sum[1:], threshold=0.0)
    torch.testing.assert_close(together[1:], apart)


def test_half_precision_gates_stay_close_to_single_precision():
    query, keys = torch.randn(1, 64, 32), torch.randn(1, 4, 32)
    single = saa.project_tokens(keys, keys, 4, torch.float32)
    half = saa.project_tokens(keys, keys, 4, torch.float16)
    assert half.key_sum.dtype == torch.float32
    torch.testing.assert_close(
        saa.relevance_gate(query.half(), half.key_sum, 0.0),
        saa.relevance_gate(query, single.key_sum, 0.0),
        atol=2e-3,
        rtol=0,
    )


def test_text_attention_is_not_changed_in_place():
    text, query = torch.randn(1, 9, 16), torch.randn(1, 9, 16)
    before = text.clone()
    identity = saa.project_tokens(torch.randn(1, 4, 16), torch.randn(1, 4, 16), 2, torch.float32)
    saa.semantic_activated_attention(text, query, identity, saa.SaaSettings())
    assert torch.equal(text, before)


def test_person_gates_of_all_people_add_up_to_the_gate():
    query = torch.randn(2, 9, 16)
    identity = saa.project_tokens(torch.randn(2, 8, 16), torch.randn(2, 8, 16), 2, torch.float32, pad=True)
    gates = saa.person_gates(query, identity, 0.3, None, [4, 4])
    assert gates.shape == (2, 2, 9)
    torch.testing.assert_close(gates.sum(dim=1), saa.relevance_gate(query, identity.key_sum, 0.3)[..., 0])


def test_where_boxes_overlap_the_people_share_and_nothing_is_nan(golden):
    case = CASES["2id_overlap_NaN"]
    query, text, identity = attention_parts(golden, case)
    out = saa.semantic_activated_attention(text, query, identity, settings_of(case), layout_of(case))
    assert out.isfinite().all()
    expected = F.linear(out, weight(golden, "to_out"), golden["attn.to_out.0.bias"])
    defined = ~golden["2id_overlap_NaN.out"].isnan()
    assert (~defined).sum() > 0
    gate = saa.relevance_gate(query, identity.key_sum, 0.3)
    overlap = ~defined.all(dim=-1)
    everybody = text + (gate + case["infer_scale_effective"]) * saa.identity_attention(query, identity)
    torch.testing.assert_close(out[overlap], everybody[overlap], atol=1e-5, rtol=0)
    outside = defined.all(dim=-1)
    close = (expected - golden["2id_overlap_NaN.out"]).abs().amax(dim=-1) < TOLERANCE
    assert close[outside].all(), "where the released code gives numbers, they are ours"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("overwrite", [False, True])
def test_half_precision_layers_stay_in_their_dtype_and_close_to_single_precision(dtype, overwrite):
    text, query, keys, values = (
        torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (16, 17, 8, 9)
    )
    query, values = query[:, :16], values[:, :8]
    layout = layout_on_grid([Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)], [4, 4], 4, 4, boost=2, pad=True)
    settings = saa.SaaSettings(threshold=0.0)
    single = saa.project_tokens(keys, values, 4, torch.float32, pad=True)
    expected = saa.semantic_activated_attention(text, query, single, settings, layout)
    half = saa.project_tokens(keys, values, 4, dtype, pad=True)
    layout = layout_on_grid([Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1)], [4, 4], 4, 4, boost=2, dtype=dtype, pad=True)
    given = text.to(dtype)
    out = saa.semantic_activated_attention(given, query.to(dtype), half, settings, layout, overwrite_text=overwrite)
    assert out.dtype == dtype
    assert (out is given) == overwrite
    assert (out.float() - expected).norm() / expected.norm() < 1e-2


def test_the_gate_of_half_precision_layers_is_that_of_single_precision():
    query, keys = torch.randn(1, 64, 32), 30 * torch.randn(1, 4, 32)
    single, half = (saa.project_tokens(keys, keys, 4, dtype) for dtype in (torch.float32, torch.float16))
    assert torch.equal(half.key_sum, single.key_sum)
    gates = [saa.relevance_gate(one, half.key_sum, 0.0) for one in (query.half(), query.half().float())]
    assert torch.equal(*gates)


def test_person_gates_are_each_persons_part_of_the_attention():
    query, keys = torch.randn(1, 9, 16), torch.randn(1, 8, 16)
    identity = saa.project_tokens(keys, keys, 1, torch.float32)
    gates = saa.person_gates(query, identity, 0.0, None, [4, 4])
    part = (query @ keys.mT / 4).softmax(dim=-1)[..., :4].sum(dim=-1)
    torch.testing.assert_close(gates[:, 0], saa.relevance_gate(query, identity.key_sum, 0.0)[..., 0] * part)


def test_what_rounding_leaves_of_a_flat_map_gives_no_identity():
    query = torch.tensor([0.0, 5e-7, 2e-7])[None, :, None]
    assert not saa.relevance_gate(query, torch.ones(1, 1, 1), threshold=0.0).any()


def test_a_person_with_a_soft_mask_stays_out_of_another_ones_box():
    query, keys, values, text = (torch.randn(1, count, 16) for count in (4, 8, 8, 4))
    soft = from_mask(torch.tensor([[0.6, 0.0], [0.6, 0.0]]))
    layout = layout_on_grid([soft, Box(0.5, 0, 1, 1)], [4, 4], 2, 2, boost=2)

    def painted(values):
        identity = saa.project_tokens(keys, values, 2, torch.float32)
        return saa.semantic_activated_attention(text, query, identity, saa.SaaSettings(threshold=0.0), layout)

    changed = values.clone()
    changed[:, :4] += 5
    difference = (painted(values) - painted(changed)).abs().amax(dim=-1)[0]
    assert difference[[0, 2]].min() > 0.1
    assert difference[[1, 3]].max() < 1e-6


def test_what_a_gate_shows_of_a_soft_mask_is_as_soft():
    query, keys = torch.randn(1, 4, 16), torch.randn(1, 4, 16)
    identity = saa.project_tokens(keys, keys, 2, torch.float32)

    def gates(mask):
        return saa.person_gates(query, identity, 0.0, layout_on_grid([from_mask(mask)], [4], 2, 2, boost=0), [4])

    half, whole = gates(torch.tensor([[1.0, 0.5], [0.5, 0.5]])), gates(torch.ones(2, 2))
    torch.testing.assert_close(half[0, 0, 1:], whole[0, 0, 1:] / 2)


@pytest.mark.parametrize(("device", "wanted"), [("mps", torch.float32), ("cuda", torch.float16)])
def test_apples_devices_attend_in_float32_since_half_precision_overflows_there(device, wanted):
    query = SimpleNamespace(device=torch.device(device), dtype=torch.float16)
    assert saa.attention_dtype(query) == wanted
