"""Models that torch.compile compiled, behind Apply DynamicID or before it."""

import pytest
import torch
from comfy.ldm.modules import attention

from tests.host.rig import LEFT, RIGHT, apply, faces, place, sample, tiny_unet

compiling = pytest.importorskip("comfy_api.torch_helpers", reason="this ComfyUI has no wrapper for torch.compile")


@pytest.fixture
def graphs(monkeypatch):
    """Counts what dynamo makes of the model, with an attention that it can follow."""
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
