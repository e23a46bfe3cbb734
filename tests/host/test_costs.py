"""The cost of people in a layer, as far as it can be counted; benchmarks/ measures the rest."""

from contextlib import contextmanager
from types import SimpleNamespace

import comfy.model_sampling
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.host.helpers import LEFT, RIGHT, apply, core, faces, place, run, sample, tiny_unet

NO_KERNEL = ("aten._unsafe_view", "aten.empty", "aten.detach", "aten.lift_fresh", "aten.view", "aten._reshape_alias")
READS_BY_HOST = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.equal")
STEPS = 3


class Operations(TorchDispatchMode):
    """Names and largest results of operations that compute or copy."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), str(func).rsplit(".", 1)[0]
        if not func.is_view and not name.startswith(NO_KERNEL):
            self.names.append(name)
        results = [one for one in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(one, torch.Tensor)]
        self.largest = max([self.largest, *(one.numel() for one in results)])
        return out


@contextmanager
def layers(monkeypatch):
    """(operations, elements of the query) of every layer that runs within the context."""
    found, saa = [], core("saa")
    attend = saa.semantic_activated_attention

    def counted(text, query, *others, **named):
        with torch.inference_mode(False), torch.no_grad():  # in inference mode, composite operations hide their parts
            text, query = text.clone(), query.clone()
            with Operations() as operations:
                out = attend(text, query, *others, **named)
        found.append((operations, query.numel()))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(saa, "semantic_activated_attention", counted)
        yield found


def sample_quickly(dynamicid, who, dtype=torch.float32, **settings):
    sample(*apply(dynamicid, who, model=tiny_unet(dtype), **settings), latent=torch.zeros(1, 4, 32, 32), steps=STEPS)


@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("boost", [0.0, 2.0])
def test_a_layer_takes_as_many_operations_for_two_people_as_for_one(dynamicid, monkeypatch, people, boost):
    with layers(monkeypatch) as found:
        sample_quickly(dynamicid, place(*(LEFT, RIGHT)[:people]), layout_boost=boost, layout_end=1.0)
    assert len(found) == 16 * STEPS
    # bmm, aminmax, sub, threshold, sub, div, threshold, the attention, addcmul_; the boost is an addcmul more.
    assert {len(operations.names) for operations, _ in found} == {9 + (boost > 0)}


def test_soft_masks_take_two_attentions_for_any_number_of_people(dynamicid, monkeypatch):
    placements = ()
    for number, face in enumerate(faces(2) * 2):
        soft = torch.linspace(0, 1, 64).roll(16 * number).expand(1, 64, 64)
        (placements,) = run("DynamicIDPlaceFace", face=face, mask=soft, placements=placements)
    with layers(monkeypatch) as found:
        sample_quickly(dynamicid, placements)
    assert len(found) == 16 * STEPS
    for operations, _ in found:
        assert sum("scaled_dot_product" in name for name in operations.names) == 2


@pytest.mark.parametrize("who", ["one", "placed"])
def test_a_layer_waits_for_no_device_and_keeps_no_scores(dynamicid, monkeypatch, who):
    with layers(monkeypatch) as found:
        sample_quickly(dynamicid, faces(1)[0] if who == "one" else place(LEFT, RIGHT))
    assert len(found) == 16 * STEPS
    for operations, size in found:
        assert not [name for name in operations.names if name.startswith(READS_BY_HOST)]
        assert operations.largest == size  # scores would be heads x tokens for each query, more than its channels


def test_people_are_projected_once_for_all_steps(dynamicid, monkeypatch):
    projections, calls = dynamicid.projections.model, []
    forward = type(projections).forward
    monkeypatch.setattr(type(projections), "forward", lambda self, *given: calls.append(1) or forward(self, *given))
    sample_quickly(dynamicid, place(LEFT, RIGHT))
    assert len(calls) == 16


class UNetCall:
    """Replaces the executor of one call of the UNet: it has the schedule, and whether the layers are patched."""

    def __init__(self, schedule):
        self.class_obj, self.is_patched = SimpleNamespace(model_sampling=schedule), False

    def __call__(self, x, sigma, c_concat, c_crossattn, control, options):
        self.is_patched = "patches_replace" in options
        return x


@contextmanager
def calls_of_a_run(dynamicid, **settings):
    """Calls the wrapper of an application of two placed people in one run: (schedule, sigma) -> ``UNetCall``."""
    model, positive, _ = apply(dynamicid, place(LEFT, RIGHT), **settings)
    (key,) = positive[0][1]["model_conds"]
    (wrapper,) = model.get_all_wrappers("apply_model")
    rows, x = positive[0][1]["model_conds"][key].cond, torch.zeros(1, 4, 16, 16)

    def call(schedule, sigma):
        unet = UNetCall(schedule)
        wrapper(unet, x, sigma, **{key: rows})
        return unet

    with wrapper.__self__.observed(None, (16, 16)), torch.no_grad():
        yield call


def test_each_step_but_the_first_reads_one_number_from_the_device(dynamicid):
    read = []
    with calls_of_a_run(dynamicid, start_percent=0.1, end_percent=0.9) as call:
        schedule = comfy.model_sampling.ModelSamplingDiscrete()
        for sigma in schedule.sigma(torch.tensor([950.0, 800.0, 500.0, 20.0])).split(1):
            with Operations() as operations:
                call(schedule, sigma)
            read.append(sum(name.startswith(READS_BY_HOST) for name in operations.names))
    assert read[0] > 1
    assert read[1:] == [1, 1, 1]


def test_schedules_that_differ_in_one_run_keep_their_own_times(dynamicid):
    plain, short = (comfy.model_sampling.ModelSamplingDiscrete() for _ in range(2))
    short.set_sigmas(plain.sigmas[:500])
    with calls_of_a_run(dynamicid, start_percent=0.1, end_percent=0.8) as call:
        sigma = plain.sigma(torch.tensor([700.0]))
        patched = [call(schedule, sigma).is_patched for schedule in (plain, short, plain, short)]
    assert patched == [True, False, True, False]
