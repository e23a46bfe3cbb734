"""SAA inside ComfyUI's UNet, for the duration of a sampling run."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import comfy.conds
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from .. import adapter, regions, saa
from ..errors import InputError
from ..face import Placement

POSITIVE, NEGATIVE = 0, 1
"""Which of a person's tokens a row of the batch carries: those of the face, or those of no face."""

# Hosts before 0.3.60 do not take transformer_options here; later ones need them for attention overrides.
_TAKES_OPTIONS = any(
    name in inspect.signature(inspect.unwrap(optimized_attention)).parameters
    for name in ("transformer_options", "kwargs")
)


class RowRoles(comfy.conds.CONDRegular):
    """The role of each row of a batch. Plain numbers instead of a tensor: reading them needs no wait for the device."""

    def process_cond(self, batch_size: int, **_: Any) -> "RowRoles":
        """The roles of a whole batch of one conditioning."""
        return RowRoles(self.cond * batch_size)

    def can_concat(self, other: Any) -> bool:
        """Whether rows of another conditioning may run in the same forward."""
        return isinstance(other, RowRoles)

    def concat(self, others: Sequence["RowRoles"]) -> tuple[int, ...]:
        """The roles of all rows of a forward, as they reach the model."""
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        """For the host's memory estimate."""
        return [len(self.cond)]


class IdentityPatch:
    """SAA in every cross-attention layer of a UNet, for the duration of a forward.

    It never edits ``patches_replace`` at graph time: around each forward it wraps whatever other packs have put there
    by then, so that the order of nodes does not matter and several applications stack. What does not change during a
    sampling run (projected tokens, grids) is kept until the run ends, however it ends.
    """

    def __init__(
        self,
        key: str,
        projections: nn.Module,
        layers: Iterable[adapter.AttentionLayer],
        placements: Sequence[Placement],
        settings: saa.SaaSettings,
    ) -> None:
        self._key, self._projections, self._settings = key, projections, settings
        self._layers = [layer for layer in layers if layer.is_cross]
        self._boxes = [placement.box for placement in placements]
        self._counts = [placement.face.tokens.shape[1] for placement in placements]
        # [2, tokens of all people, size]; the first row is POSITIVE, the second NEGATIVE.
        self._tokens = torch.cat(
            (
                torch.cat([placement.face.tokens for placement in placements], dim=1),
                torch.cat([placement.face.uncond_tokens for placement in placements], dim=1),
            )
        ).float()
        weights = [settings.weight * placement.weight for placement in placements]
        self._token_weights = torch.tensor(weights).repeat_interleave(torch.tensor(self._counts))[None, :, None]
        self._kept: dict[Any, Any] = {}

    def around_sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: refuses conditioning that did not pass the node, and forgets the run at its end."""
        conds = getattr(executor.class_obj, "conds", {})
        if not any(self._key in cond.get("model_conds", {}) for part in conds.values() for cond in part):
            raise InputError(
                "The sampler has the model of Apply DynamicID, but not its conditioning: the faces travel with it. "
                "Connect the positive and negative outputs of Apply DynamicID to the sampler as well."
            )
        try:
            return executor(*args, **kwargs)
        finally:
            self._kept.clear()

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
        roles = conds.pop(self._key, None)
        options = dict(transformer_options or {})
        if roles is not None and self._acts(executor.class_obj.model_sampling, sigma):
            boost = self._boost(executor.class_obj.model_sampling, sigma)
            replace = {**options.get("patches_replace", {})}
            replace["attn2"] = self._wrap(replace.get("attn2", {}), roles, boost)
            options["patches_replace"] = replace
        return executor(x, sigma, c_concat, c_crossattn, control, options, **conds)

    def _acts(self, sampling: Any, sigma: Tensor) -> bool:
        start, end = self._settings.start_percent, self._settings.end_percent
        if start <= 0 and end >= 1:
            return True  # without asking the device for sigma
        return sampling.percent_to_sigma(start) >= float(sigma.max()) >= sampling.percent_to_sigma(end)

    def _boost(self, sampling: Any, sigma: Tensor) -> float:
        settings = self._settings
        if settings.layout_boost == 0 or settings.layout_end <= 0 or all(box is None for box in self._boxes):
            return 0.0
        early = float(sigma.max()) >= sampling.percent_to_sigma(settings.layout_end)
        return settings.layout_boost if early else 0.0

    def _wrap(self, replace: Mapping[Any, Any], roles: tuple[int, ...], boost: float) -> dict[Any, Any]:
        wrapped = dict(replace)
        for layer in self._layers:
            previous = replace.get(layer.block, replace.get(layer.block[:2]))
            wrapped[layer.block] = self._attention(layer, previous, roles, boost)
        return wrapped

    def _attention(
        self,
        layer: adapter.AttentionLayer,
        previous: Callable[..., Tensor] | None,
        roles: tuple[int, ...],
        boost: float,
    ) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
            text = (previous or _text_attention)(q, k, v, extra_options)
            identity = self._identity(layer, q, roles, extra_options["n_heads"])
            layout = self._layout(extra_options["activations_shape"][-2:], q.device, boost)
            return saa.semantic_activated_attention(text, q, identity, self._settings, layout)

        return attend

    def _identity(
        self, layer: adapter.AttentionLayer, q: Tensor, roles: tuple[int, ...], heads: int
    ) -> saa.IdentityTokens:
        rows = _rows(roles, len(q))
        return self._keep((layer.index, rows, q.device, q.dtype), lambda: self._project(layer.index, rows, q, heads))

    def _project(self, index: int, rows: list[int] | tuple[int, ...], q: Tensor, heads: int) -> saa.IdentityTokens:
        keys, values = self._projections(index, self._tokens.to(q.device))
        values = values * self._token_weights.to(q.device)
        rows = list(rows)
        return saa.project_tokens(keys[rows], values[rows], heads, saa.attention_dtype(q))

    def _layout(self, grid: Sequence[int], device: torch.device, boost: float) -> saa.Layout | None:
        height, width = grid

        def build() -> saa.Layout | None:
            return regions.layout_on_grid(self._boxes, self._counts, height, width, boost, device)

        return self._keep((height, width, boost, device), build)

    def _keep(self, key: Any, build: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = build()
        return self._kept[key]


def _text_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    options = {"transformer_options": extra_options} if _TAKES_OPTIONS else {}
    return optimized_attention(
        q, k, v, extra_options["n_heads"], attn_precision=extra_options["attn_precision"], **options
    )


def _rows(roles: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """The role of every row; packs that tile the picture run several tiles of the whole batch at once."""
    if batch % len(roles) != 0:
        raise RuntimeError(f"{batch} rows reached a layer, but the conditioning speaks of {len(roles)}")
    return roles * (batch // len(roles))
