"""Attention Couple: nodes of other packs that give parts of the picture their own prompts, inside the layers."""

import pytest
import torch
import torch.nn.functional as F

from tests.host.helpers import LEFT, RIGHT, TENSORS, apply, core, eps, faces, place, prompts, sample, tiny_unet

LATENT = TENSORS["in.latent.1id_nobox"]


def couple(model, texts, masks):
    """A patch as in those packs. texts: of the coupled prompts; masks: [1 + texts, 1, H, W], the prompt's first."""
    coupled, count, share = model.clone(), len(texts) + 1, masks / masks.sum(dim=0)

    def repeat_the_prompt(q, k, v, extra_options):
        parts = extra_options["cond_or_uncond"]
        queries, keys = [], []
        for part, query, key in zip(parts, q.chunk(len(parts)), k.chunk(len(parts)), strict=True):
            negative = part == 1
            queries.append(query if negative else query.repeat(count, 1, 1))
            keys.append(key if negative else torch.cat([key, *(text.repeat(len(key), 1, 1) for text in texts)]))
        return torch.cat(queries), torch.cat(keys), torch.cat(keys)

    def put_together(out, extra_options):
        parts = extra_options["cond_or_uncond"]
        size = len(out) // sum(1 if part == 1 else count for part in parts)
        here = F.interpolate(share, size=extra_options["activations_shape"][-2:], mode="nearest").flatten(2).mT
        rows = out.split([size if part == 1 else count * size for part in parts])
        return torch.cat(
            [
                one if part == 1 else (one * here.repeat_interleave(size, dim=0)).unflatten(0, (count, size)).sum(dim=0)
                for part, one in zip(parts, rows, strict=True)
            ]
        )

    coupled.set_model_attn2_patch(repeat_the_prompt)
    coupled.set_model_attn2_output_patch(put_together)
    return coupled


def soft_masks(count):
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(1)) + 0.1


def halves():
    """A faint mask everywhere, one of the left and one of the right."""
    masks = torch.full((3, 1, 32, 32), 0.1)
    masks[1, ..., :16] = masks[2, ..., 16:] = 1.0
    masks[1, ..., 16:] = masks[2, ..., :16] = 0.0
    return masks


def couple_with_itself(patched, masks):
    """Such a model paints the same as without."""
    model, positive, negative = patched
    return couple(model, [positive[0][0]] * (len(masks) - 1), masks), positive, negative


@pytest.mark.parametrize("prompts_more", [1, 2, 3])
def test_a_prompt_that_is_coupled_with_itself_paints_the_person_as_without(dynamicid, prompts_more):
    patched = apply(dynamicid, faces(1)[0])
    coupled = couple_with_itself(patched, soft_masks(1 + prompts_more))
    torch.testing.assert_close(eps(*coupled, LATENT), eps(*patched, LATENT), atol=1e-4, rtol=0)


def test_it_does_not_matter_which_of_both_nodes_comes_first(dynamicid):
    positive, masks = prompts()[0], soft_masks(2)
    ours_first, marked, negative = apply(dynamicid, faces(1)[0])
    after = eps(couple(ours_first, [positive[0][0]], masks), marked, negative, LATENT)
    couple_first = apply(dynamicid, faces(1)[0], model=couple(tiny_unet(), [positive[0][0]], masks))
    assert torch.equal(eps(*couple_first, LATENT), after)


def test_people_in_regions_stay_as_they_are_where_prompts_are_coupled(dynamicid):
    patched = apply(dynamicid, place(LEFT, RIGHT), layout_end=1.0)
    latents = torch.cat((LATENT, LATENT.flip(-1)))
    coupled = couple_with_itself(patched, halves())
    torch.testing.assert_close(eps(*coupled, latents), eps(*patched, latents), atol=1e-4, rtol=0)


def test_coupled_prompts_act_in_their_masks_and_people_in_their_regions(dynamicid):
    model, positive, negative = apply(dynamicid, place(LEFT, RIGHT))
    text = positive[0][0]
    before, after = (couple(model, [text, right], halves()) for right in (text, -text))
    change = (eps(after, positive, negative, LATENT) - eps(before, positive, negative, LATENT)).abs()
    assert change[0].max() == 0, "the negative prompt is coupled with nothing"
    assert change[1, ..., 16:].mean() > 1.5 * change[1, ..., :16].mean(), "more than through what mixes both halves"
    sample(after, positive, negative, latent=torch.zeros(1, 4, 32, 32))
    with torch.inference_mode():
        first, second = core("comfy_host.inspection").activation_maps(after, 1)["all"][0]
    assert first[:, :14].mean() > 0
    assert second[:, 18:].mean() > 0
    assert first[:, 20:].max() == second[:, :12].max() == 0


def test_prompts_can_be_coupled_without_a_negative_one(dynamicid):
    patched = apply(dynamicid, place(LEFT, RIGHT))
    expected = sample(*patched, cfg=1.0)
    torch.testing.assert_close(sample(*couple_with_itself(patched, halves()), cfg=1.0), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("combined", [False, True])
def test_the_activation_map_is_that_of_each_prompt_whatever_it_is_coupled_with(dynamicid, combined):
    model, positive, negative = apply(dynamicid, place(LEFT, RIGHT))
    asked = positive + [[-positive[0][0], positive[0][1]]] * combined
    masks = torch.zeros(3, 1, 32, 32)
    masks[0] = 1  # the coupled prompts change only the number of rows
    maps = []
    for one in (model, couple(model, [prompts()[1][0][0]] * 2, masks)):
        sample(one, asked, negative, latent=torch.zeros(2, 4, 16, 16), steps=1)
        with torch.inference_mode():
            maps.append(core("comfy_host.inspection").activation_maps(one, 2)["all"])
    torch.testing.assert_close(maps[1], maps[0], atol=1e-3, rtol=0)
