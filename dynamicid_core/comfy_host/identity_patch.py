"""SAA in ComfyUI's UNet, during a sampling run."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from comfy.ldm.modules import attention
from torch import Tensor, nn

from .. import adapter, regions, saa
from ..errors import InputError
from ..face import Placement
from .model_calls import REPLAYED_OPTIONS, REPLAYING, ModelCall, SamplingRuns
from .people import People
from .rows import NEGATIVE, POSITIVE, Application, Forward, Row, RowRoles, crop_to_window, mark

_log = logging.getLogger(__name__)
# Hosts before 0.3.60 do not take transformer_options here; later ones need them for attention overrides.
_TAKES_OPTIONS = any(
    name in inspect.signature(inspect.unwrap(attention.optimized_attention)).parameters
    for name in ("transformer_options", "kwargs")
)

KEY = "dynamicid_"
"""The key of our wrappers, and the prefix of the keys that link conditioning to its application."""

Observer = Callable[
    [adapter.AttentionLayer, Tensor, saa.IdentityTokens, saa.Layout | None, tuple[int, int], tuple[int, ...]], None
]


class IdentityPatch:
    """SAA in every cross-attention layer of a UNet, during a forward.

    It never edits ``patches_replace`` at graph time: in each forward it wraps whatever other packs have put there by
    then, so that the order of nodes does not matter and several applications stack. What does not change during a
    sampling run (projected tokens, layouts) is cached until the run ends, however it ends.
    """

    def __init__(
        self,
        key: str,
        application: Application,
        projections: nn.Module,
        layers: Iterable[adapter.AttentionLayer],
        placements: Sequence[Placement],
        settings: saa.SaaSettings,
    ) -> None:
        self.key, self.settings = key, settings
        self._application = application
        self.runs = SamplingRuns()
        self._projections = projections
        self._layers = [layer for layer in layers if layer.is_cross]
        self._people = People.from_placements(placements, settings.weight)
        self._latent: tuple[int, int] | None = None
        self._pictures: int | None = None
        self._cache: dict[Any, Any] = {}
        self._observer: Observer | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of tokens of each person."""
        return self._people.counts

    @contextmanager
    def observed(self, observer: Observer, latent: tuple[int, int]) -> Iterator[None]:
        """Calls the observer with the inputs of each layer while a call for this latent is replayed."""
        self._observer, self._latent = observer, latent
        try:
            yield
        finally:
            self._observer = self._latent = None
            self._cache.clear()

    def around_sampling(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: rejects prompts that did not pass through the node, and clears the cache at the end."""
        conds = getattr(executor.class_obj, "conds", {})
        self._check_conditioning(conds)
        self._mark_negative(conds)
        with self.runs.sampling(noise) as run, self._application.sampling():
            self._latent, self._pictures = (noise.shape[-2], noise.shape[-1]), len(noise)
            try:
                latent = executor(noise, *args, **kwargs)
            finally:
                self._latent = self._pictures = None
                self._cache.clear()
            if isinstance(latent, Tensor):
                run.set_result(latent)
            return latent

    def _check_conditioning(self, conds: Mapping[str, Any]) -> None:
        roles = {part: {row.role for cond in conds[part] or () for row in self._rows(cond)} for part in conds}
        # Guiders with two prompts may have the faces in either.
        asked = set().union(*(roles[part] for part in roles if "negative" not in part))
        if POSITIVE not in asked:
            if self._are_of_others(conds):
                raise InputError(
                    "The prompts and the model come from different Apply DynamicID nodes. With several in a row, "
                    "connect model, positive and negative of the first to the second, and those of the last to the "
                    "sampler."
                )
            if POSITIVE in roles.get("negative", ()):
                raise InputError(
                    "The sampler's negative input has the positive output of Apply DynamicID, so that it avoids these "
                    "people. Connect positive to positive and negative to negative."
                )
            raise InputError(
                "The sampler has the model of Apply DynamicID, but not its positive conditioning, which carries the "
                "faces. Connect the positive and negative outputs of Apply DynamicID to the sampler as well."
            )
        if POSITIVE in roles.get("negative", ()):
            _log.warning(
                "The sampler's negative prompt also carries the faces, which weakens them. Put nodes such as "
                "Conditioning Zero Out before the negative input of Apply DynamicID, not after its positive output."
            )

    def _mark_negative(self, conds: dict[str, Any]) -> None:
        """Negative prompts get the tokens of no face even if they did not pass through the node; so does an empty one
        that a guider adds.
        """
        roles = RowRoles((Row(NEGATIVE),), self._application)
        for part, prompts in conds.items():
            if "negative" in part and prompts and not any(self._rows(cond) for cond in prompts):
                conds[part] = [mark(cond, self.key, roles) for cond in prompts]

    def _are_of_others(self, conds: Mapping[str, Any]) -> bool:
        carried = {key for part in conds.values() for cond in part or () for key in cond.get("model_conds", {})}
        return self.key not in carried and any(key.startswith(KEY) for key in carried)

    def _rows(self, cond: Mapping[str, Any]) -> tuple[Row, ...]:
        marking = cond.get("model_conds", {}).get(self.key)
        return () if marking is None else marking.cond

    def around_model(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """APPLY_MODEL wrapper: one forward of the UNet with the identity attention in place."""
        options = dict(transformer_options or {})
        building: AbstractContextManager[None] = nullcontext()
        boost = self._boost(executor.class_obj.model_sampling, sigma) if self.key in conds else None
        if boost is not None:
            latent = self._latent or (x.shape[-2], x.shape[-1])
            rows = crop_to_window(conds[self.key], options.get("context_window"), latent)
            conds = {**conds, self.key: rows}
            if REPLAYING not in options and any(row.role == POSITIVE for row in rows):
                replayed = {name: options[name] for name in REPLAYED_OPTIONS if name in options}
                self.runs.record(ModelCall(latent, self._pictures, replayed, x, sigma, c_concat, c_crossattn, conds))
            forward = Forward(rows, boost, latent, len(x))
            replaced = {**options.get("patches_replace", {})}
            replaced["attn2"] = self._wrap(replaced.get("attn2", {}), forward)
            options["patches_replace"] = replaced
            building = self._eager_first(("built", forward, x.shape, x.dtype))
        others = {name: value for name, value in conds.items() if name != self.key}
        try:
            with building:
                return executor(x, sigma, c_concat, c_crossattn, control, options, **others)
        finally:
            if self._latent is None:  # no sampling run, whose end would clear it
                self._cache.clear()

    def _boost(self, sampling: Any, sigma: Tensor) -> float | None:
        """The layout boost at this point of the schedule; None where the identity does not act."""
        settings = self.settings
        always = settings.start_percent <= 0 and settings.end_percent >= 1
        boosts = settings.layout_boost != 0 and settings.layout_end > 0 and self._people.have_regions
        if always and not boosts:
            return 0.0  # without reading sigma from the device

        def build() -> list[float]:
            percents = settings.start_percent, settings.end_percent, settings.layout_end
            return [float(sampling.percent_to_sigma(one)) for one in percents]  # each waits for the device

        start, end, layout_end = self._cached(("sigmas", sampling), build)
        now = float(sigma.max())
        if not always and not start >= now >= end:
            return None
        return settings.layout_boost if boosts and now >= layout_end else 0.0

    def _wrap(self, replaced: Mapping[Any, Any], forward: Forward) -> dict[Any, Any]:
        wrapped = dict(replaced)
        for layer in self._layers:
            previous = replaced.get(layer.block, replaced.get(layer.block[:2]))
            wrapped[layer.block] = self._attention(layer, previous, forward)
        return wrapped

    def _attention(
        self, layer: adapter.AttentionLayer, previous: Callable[..., Tensor] | None, forward: Forward
    ) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            text = (previous or text_attention)(q, k, v, extra_options)
            order = forward.order(len(q), extra_options.get("cond_or_uncond", ()))
            here = forward.reordered(order)
            grid = tuple(extra_options["activations_shape"][-2:])
            identity = self._identity(layer, q, here, extra_options["n_heads"])
            layout = self._layout(grid, here, q)
            if self._observer is not None:
                self._observer(layer, q, identity, layout, grid, order)
            # A tensor returned by another pack may still be needed there.
            return saa.semantic_activated_attention(
                text, q, identity, self.settings, layout, overwrite_text=previous is None
            )

        return attend

    def _identity(self, layer: adapter.AttentionLayer, q: Tensor, forward: Forward, heads: int) -> saa.IdentityTokens:
        roles = [row.role for row in forward.rows]

        def build() -> saa.IdentityTokens:
            keys, values = self._projections(layer.index, self._people.tokens.to(q.device))
            values = values * self._people.token_weights.to(q.device)
            # Without the gate, the weights of a mix have no effect, nor have regions, as in the released code. Maps
            # show what the gate would have done.
            gate = self.settings.gate or self._observer is not None
            key_scale = self._people.key_scale.to(q.device) if gate else None
            return saa.project_tokens(
                keys[roles], values[roles], heads, saa.attention_dtype(q), key_scale, self._pads(q)
            )

        return self._cached((layer.index, *roles, q.device, q.dtype), build)

    def _layout(self, grid: tuple[int, int], forward: Forward, q: Tensor) -> saa.Layout | None:
        views, dtype = forward.views(), saa.attention_dtype(q)

        def build() -> saa.Layout | None:
            placed = self._people.regions_for(forward.latent)
            return regions.layout_on_grid(
                placed, self.counts, *grid, forward.boost, views=views, device=q.device, dtype=dtype, pad=self._pads(q)
            )

        return self._cached((grid, forward.latent, forward.boost, views, q.device, dtype), build)

    def _eager_first(self, call: Any) -> AbstractContextManager[None]:
        """Runs the first call of its kind without torch.compile, which should not trace how the cache is filled."""
        if call in self._cache or not hasattr(torch.compiler, "set_stance"):  # since PyTorch 2.6
            return nullcontext()
        self._cache[call] = True
        return torch.compiler.set_stance("force_eager")

    def _pads(self, q: Tensor) -> bool:
        """Whether to pad tokens: with a mask, which needs other kernels, it pays on every device, else on the CPU."""
        return self._people.have_regions or q.device.type == "cpu"

    def _cached(self, key: Any, build: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = build()
        return self._cache[key]


def text_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """The host's own attention, [B, N, C], with the arguments of a replacement patch."""
    options = {"transformer_options": extra_options} if _TAKES_OPTIONS else {}
    return attention.optimized_attention(  # looked up each time: other packs may replace it at any time
        q, k, v, extra_options["n_heads"], attn_precision=extra_options["attn_precision"], **options
    )
