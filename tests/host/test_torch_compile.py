"""Models compiled by torch.compile, before or after Apply DynamicID."""

import pytest
import torch
from comfy.ldm.modules import attention

from tests.host.helpers import LEFT, RIGHT, apply, faces, place, sample, tiny_unet

compiling = pytest.importorskip("comfy_api.torch_helpers", reason="this ComfyUI has no wrapper for torch.compile")


@pytest.fixture
def graphs(monkeypatch):
    """Counts dynamo's graphs of the model, with an attention that it can trace."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("this PyTorch has no torch.compiler.set_stance")
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    reset()
    counters.clear()
    yield counters
    reset()


def compiled(model, backend):
    model = model.clone()
    compiling.set_torch_compile_wrapper(model, backend=backend)
    return model


@pytest.mark.parametrize(("people", "kinds"), [("two placed", 2), ("two in a row", 1)])
def test_applications_share_compiled_graphs_without_breaks(people, kinds, dynamicid, graphs):
    base, steps, asked = tiny_unet(), 4, []

    def backend(graph, _):
        def run(*args):
            asked.append(graph)
            return graph(*args)

        return run

    for weight in (1.0, 0.8, 0.6):
        who = place(LEFT, RIGHT) if people == "two placed" else faces(1)[0]
        model, *prompts = apply(dynamicid, who, model=base, weight=weight, layout_end=0.5)
        if people == "two in a row":
            model, *prompts = apply(dynamicid, faces(2)[1], model, *prompts, weight=weight)
        expected = sample(model, *prompts, steps=steps)
        found = sample(compiled(model, backend), *prompts, steps=steps)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert graphs["stats"]["unique_graphs"] == kinds, "steps in which regions pull are of a kind of their own"
    assert not graphs["graph_break"]
    assert len(asked) == 3 * (steps - kinds), "the first step of a kind builds, outside of the graph"


def compiled_as_object(model):
    """As nodes of other packs do."""
    model = model.clone()
    model.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend="eager"))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_model_that_was_compiled_in_the_last_run_takes_people_and_their_updates_in_the_next(dtype, dynamicid, graphs):
    base, face = tiny_unet(dtype), faces(1)[0]
    expected = sample(*apply(dynamicid, face, tiny_unet(dtype)))
    model, *prompts = apply(dynamicid, face, model=base)
    sample(compiled_as_object(model), *prompts, steps=1)
    left = base.model.diffusion_model
    assert hasattr(left, "_orig_mod"), "the host was meant to leave the compiled UNet in the model"
    again = apply(dynamicid, face, model=base)
    assert base.model.diffusion_model is left
    torch.testing.assert_close(sample(*again), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_warning_says_when_a_compiled_object_hides_weights_from_their_updates(dtype, dynamicid, graphs, caplog):
    model, *prompts = apply(dynamicid, faces(1)[0], tiny_unet(dtype))
    sample(model, *prompts, steps=1)
    assert "hides its weights" not in caplog.text
    model, *prompts = apply(dynamicid, faces(1)[0], tiny_unet(dtype))
    sample(compiled_as_object(model), *prompts, steps=1)
    assert "hides its weights" in caplog.text
