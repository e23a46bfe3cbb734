"""Smooth surfaces from the coarse quads of the head: Catmull-Clark subdivision as sparse matrices."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the head, refined.

    kind: of MATERIALS. refine: sparse [n, all control vertices]. quads: [q, 4] of the n. rest: [n, 3], see
    ``HeadMesh``.
    """

    kind: str
    refine: sparse.csr_matrix
    quads: Array
    rest: Array


def refine_part(kind: str, quads: Array, base: Array) -> Part:
    """Subdivides quads [q, 4] over the control vertices base [v, 3], as often as this kind of part needs."""
    used, local = np.unique(quads, return_inverse=True)
    local = local.reshape(quads.shape)
    refine = sparse.identity(len(used), format="csr", dtype=np.float32)
    for _ in range({"skin": 1, "eyes": 2, "lashes": 0}.get(kind, 1)):
        step, local = catmull_clark(local, refine.shape[0])
        refine = (step @ refine).tocsr()
    points = base[used]
    rest = refine @ points
    if kind == "eyes":
        refine, rest = _as_ball(refine, points)
    select = sparse.csr_matrix((np.ones(len(used), np.float32), (range(len(used)), used)), (len(used), len(base)))
    return Part(kind, (refine @ select).tocsr(), local, rest.astype(np.float32))


def _as_ball(refine: sparse.csr_matrix, points: Array) -> tuple[sparse.csr_matrix, Array]:
    """The refinement matrix with an eyeball's shrinkage undone, and each fine vertex's direction from its centre."""
    centre = points.mean(axis=0)
    fine = refine @ points - centre
    growth = np.linalg.norm(points - centre, axis=1).mean() / np.linalg.norm(fine, axis=1).mean()
    mean = sparse.csr_matrix(np.full(refine.shape, 1 / len(points), np.float32))
    return (mean + growth * (refine - mean)).tocsr(), fine / np.linalg.norm(fine, axis=1, keepdims=True)


def catmull_clark(quads: Array, count: int) -> tuple[sparse.csr_matrix, Array]:
    """One step on quads [q, 4] over ``count`` vertices: the matrix [n, count] of the new vertices, and the new quads.

    New vertices are the moved old ones, then one for each edge, then one for each quad. Borders may be open.
    """
    sides = np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1).reshape(-1, 2)
    edges, edge_of = np.unique(np.sort(sides, axis=1), axis=0, return_inverse=True)
    edge_of = edge_of.reshape(quads.shape)
    quad_rows = np.arange(len(quads)).repeat(4)
    middle_of_quad = _matrix(quad_rows, quads.ravel(), (len(quads), count)) * 0.25
    middle_of_edge = _matrix(np.arange(len(edges)).repeat(2), edges.ravel(), (len(edges), count)) * 0.5
    beside = _matrix(edge_of.ravel(), quad_rows, (len(edges), len(quads)))
    border = np.asarray(beside.sum(axis=1)).ravel() == 1

    beside_edge = _normalised_rows(beside) @ middle_of_quad
    edge_points = _choose(border, middle_of_edge, (middle_of_edge + beside_edge) * 0.5)

    at_vertex = _matrix(edges.ravel(), np.arange(len(edges)).repeat(2), (count, len(edges)))
    valence = np.maximum(np.asarray(at_vertex.sum(axis=1)).ravel(), 1)
    around = _normalised_rows(_matrix(quads.ravel(), quad_rows, (count, len(quads)))) @ middle_of_quad
    along = _normalised_rows(at_vertex) @ middle_of_edge
    self = sparse.identity(count, format="csr", dtype=np.float32)
    inner = sparse.diags(1 / valence) @ (around + 2 * along + sparse.diags(valence - 3) @ self)
    on_border = _normalised_rows(at_vertex @ sparse.diags(border.astype(np.float32))) @ middle_of_edge
    is_border = np.isin(np.arange(count), edges[border])
    vertex_points = _choose(is_border, (self + on_border) * 0.5, inner)

    edge_of, centre = edge_of + count, (count + len(edges) + np.arange(len(quads)))
    fine = [np.stack([quads[:, k], edge_of[:, k], centre, edge_of[:, k - 1]], axis=1) for k in range(4)]
    matrix = sparse.vstack([vertex_points, edge_points, middle_of_quad]).tocsr().astype(np.float32)
    return matrix, np.concatenate(fine)


def _matrix(rows: Array, columns: Array, shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)


def _normalised_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.diags(1 / np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1)) @ matrix


def _choose(which: Array, yes: sparse.csr_matrix, no: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.diags(which.astype(np.float32)) @ yes + sparse.diags((~which).astype(np.float32)) @ no
