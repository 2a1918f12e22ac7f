"""Weight codes that keep a layer's outputs: GPTQ, then coordinate descent, on the second moments of its inputs.

GPTQ (Frantar et al., ICLR 2023) rounds one input channel after another and lets the channels to come take up the error; coordinate
descent then moves single codes for as long as the error falls. Plain loops in a fixed order: equal moments make equal codes on every
processor, which LAPACK and BLAS do not promise.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from eamsim.compiled.compiler import kept, njit

DAMPING = 0.01  # of the mean diagonal: keeps channels that hardly move from taking up errors without limit
SHRINKS = (0.65, 0.75, 0.85, 0.95)  # of a row's whole range: which one is best is decided after rounding
SWEEPS = 5
LEAST_SCALE = 2.0**-16  # of the largest scale of a layer, as `reference.quantisation.quantisers` has it
THREADS = 2


def round_weights(weight: np.ndarray, moments: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of least error e H e^T, e = weight - (code - zero) * scale, for every row on its own.

    weight: float64 [out_channels, in_channels]; moments: H, float64 [in_channels, in_channels], covariance of the inputs, symmetric.
    Returns codes float64 [out_channels, in_channels] in 0..2^bits - 1, scale (24 bits) and zero (a code), float64 [out_channels].
    """
    damped = moments + np.eye(len(moments)) * max(DAMPING * moments.diagonal().mean(), np.finfo(float).tiny)
    order = np.argsort(-damped.diagonal(), kind="stable")
    damped = np.ascontiguousarray(damped[np.ix_(order, order)])
    factor = inverse_factor(damped)
    rows = np.ascontiguousarray(weight[:, order])
    codes, scale, zero = np.empty_like(rows), np.empty(len(rows)), np.empty(len(rows))
    grids = [_grid(weight, shrink, bits) for shrink in SHRINKS]
    scales, zeros = (np.stack([grid[part] for grid in grids]) for part in (0, 1))

    def some(part: slice) -> None:
        _round_rows(rows[part], damped, factor, scales[:, part], zeros[:, part], float(2**bits - 1), codes[part], scale[part], zero[part])

    edges = np.linspace(0, len(rows), 4 * THREADS + 1).astype(int)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, map(slice, edges[:-1], edges[1:])))
    found = np.empty_like(codes)
    found[:, order] = codes
    return found, scale, zero


def _grid(weight: np.ndarray, shrink: float, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of every row's range, shrunk; the range contains 0."""
    top = 2**bits - 1
    low, high = (limit(weight, 0) for limit in (np.minimum, np.maximum))
    low, high = low.min(axis=1) * shrink, high.max(axis=1) * shrink
    scale = ((high - low) / top).astype(np.float32).astype(np.float64)
    least = scale.max() * LEAST_SCALE
    scale = np.maximum(scale, least) if least > 0 else np.ones_like(scale)
    return scale, np.clip(np.rint(-low / scale), 0, top)


@kept(__file__)
@njit(nogil=True)
def inverse_factor(moments):
    """U, upper triangular, with H^-1 = U^T U: float64 [n, n] of a positive definite H [n, n]."""
    n = len(moments)
    lower = np.empty_like(moments)
    for i in range(n):
        for j in range(n):
            lower[i, j] = moments[n - 1 - i, n - 1 - j]
    for k in range(n):  # Cholesky: column after column, each taken off the rest
        root = np.sqrt(lower[k, k])
        for i in range(k, n):
            lower[i, k] /= root
        column = lower[:, k].copy()
        for i in range(k + 1, n):
            factor = column[i]
            for j in range(k + 1, i + 1):
                lower[i, j] -= factor * column[j]
    inverse = np.zeros_like(lower)
    for i in range(n):
        inverse[i, i] = 1.0
        for k in range(i):
            factor = lower[i, k]
            for j in range(k + 1):
                inverse[i, j] -= factor * inverse[k, j]
        for j in range(i + 1):
            inverse[i, j] /= lower[i, i]
    upper = np.zeros_like(lower)
    for i in range(n):
        for j in range(i + 1):
            upper[n - 1 - i, n - 1 - j] = inverse[i, j]
    return upper


@kept(__file__)
@njit(nogil=True)
def _round_rows(rows, moments, factor, scales, zeros, top, codes, scale, zero):
    """For every row the grid, of scales and zeros [grids, rows], whose codes have the least error."""
    n = rows.shape[1]
    rounded, change = np.empty(n), np.empty(n)
    for r in range(len(rows)):
        least = np.inf
        for grid in range(len(scales)):
            step, low = scales[grid, r], -zeros[grid, r]
            _gptq(rows[r], factor, step, low, top + low, rounded)
            error = _descend(rows[r], moments, step, low, top + low, rounded, change)
            if error < least:
                least, scale[r], zero[r] = error, step, -low
                for i in range(n):
                    codes[r, i] = rounded[i] - low


@njit(nogil=True)
def _gptq(row, factor, step, low, high, rounded):
    """rounded: the row in whole steps, each rounding error spread over the channels to come."""
    work = row.copy()
    for i in range(len(row)):
        rounded[i] = min(max(np.rint(work[i] / step), low), high)
        error = (work[i] - rounded[i] * step) / factor[i, i]
        for j in range(i + 1, len(row)):
            work[j] -= error * factor[i, j]


@njit(nogil=True)
def _descend(row, moments, step, low, high, rounded, change):
    """Move single codes to where the error is least, the others held; returns the error. change: scratch, (row - rounded step) H."""
    n = len(row)
    change[:] = 0.0
    for i in range(n):
        left = row[i] - rounded[i] * step
        for j in range(n):
            change[j] += left * moments[i, j]
    for _ in range(SWEEPS):
        moved = False
        for i in range(n):
            best = min(max(np.rint(rounded[i] + change[i] / (moments[i, i] * step)), low), high)
            if best == rounded[i]:
                continue
            moved, by = True, (best - rounded[i]) * step
            rounded[i] = best
            for j in range(n):
                change[j] -= by * moments[i, j]
        if not moved:
            break
    error = 0.0
    for i in range(n):
        error += change[i] * (row[i] - rounded[i] * step)
    return error
