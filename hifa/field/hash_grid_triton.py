"""Hash encoding in Triton kernels for a GPU. Triton comes with PyTorch's CUDA builds and needs no nvcc.

One program handles a block of points at one level. Neighboring points of a ray share cells, so the backward pass uses
atomic adds. The order of atomic adds varies on a GPU, so the last bits of a gradient differ from run to run.
"""

# Triton declares the functions of its language for compilation only.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor


BLOCK = 256  # points per program


@triton.jit
def _cell(coordinate, resolution):
    """Return the cell index of a coordinate in [0, 1] along an axis, and the position inside the cell."""
    scaled = tl.minimum(tl.maximum(coordinate, 0.0), 1.0) * resolution
    cell = tl.minimum(tl.floor(scaled), resolution - 1.0)
    return cell.to(tl.int32), scaled - cell


@triton.jit
def _share(n, block: tl.constexpr):
    """Return the level of a program, the indices of its points, and the mask of valid indices."""
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    return tl.program_id(1), index, index < n


@triton.jit
def _cells(points, index, inside, resolution):
    """Return the cell index and the position inside the cell, along each axis, for the points at `index`."""
    x, fx = _cell(tl.load(points + 3 * index, inside, 0.0), resolution)
    y, fy = _cell(tl.load(points + 3 * index + 1, inside, 0.0), resolution)
    z, fz = _cell(tl.load(points + 3 * index + 2, inside, 0.0), resolution)
    return x, fx, y, fy, z, fz


@triton.jit
def _row(x, y, z, resolution, entries):
    """Return the table row of a grid point: dense if the level fits, else the hash of instant-ngp's equation 4."""
    side = resolution + 1
    # 32-bit products have the low bits of the exact products, and `entries`, a power of two, keeps only low bits.
    hashed = x.to(tl.uint32) ^ (y.to(tl.uint32) * 2654435761) ^ (z.to(tl.uint32) * 805459861)
    hashed = (hashed & (entries - 1).to(tl.uint32)).to(tl.int32)
    dense = x + side * (y + side * z)
    return tl.where(side.to(tl.int64) * side * side <= entries, dense, hashed)


@triton.jit
def _corner(cx: tl.constexpr, cy: tl.constexpr, cz: tl.constexpr, x, y, z, fx, fy, fz, resolution, entries):
    """Return the table row and the trilinear weight of one corner of each cell."""
    wx = fx if cx else 1.0 - fx
    wy = fy if cy else 1.0 - fy
    wz = fz if cz else 1.0 - fz
    return _row(x + cx, y + cy, z + cz, resolution, entries), wx * wy * wz


@triton.jit
def _forward(points, table, resolutions, out, n, entries, levels, block: tl.constexpr):
    level, index, inside = _share(n, block)
    resolution = tl.load(resolutions + level).to(tl.int32)
    x, fx, y, fy, z, fz = _cells(points, index, inside, resolution)
    base = table + level.to(tl.int64) * entries * 2
    first = tl.full((block,), 0.0, tl.float32)
    second = tl.full((block,), 0.0, tl.float32)
    for cx in tl.static_range(2):
        for cy in tl.static_range(2):
            for cz in tl.static_range(2):
                row, weight = _corner(cx, cy, cz, x, y, z, fx, fy, fz, resolution, entries)
                first += weight * tl.load(base + 2 * row, inside, 0.0).to(tl.float32)
                second += weight * tl.load(base + 2 * row + 1, inside, 0.0).to(tl.float32)
    target = out + index * (2 * levels) + 2 * level
    tl.store(target, first, inside)
    tl.store(target + 1, second, inside)


@triton.jit
def _backward(points, grad, resolutions, grad_table, n, entries, levels, block: tl.constexpr):
    level, index, inside = _share(n, block)
    resolution = tl.load(resolutions + level).to(tl.int32)
    x, fx, y, fy, z, fz = _cells(points, index, inside, resolution)
    source = grad + index * (2 * levels) + 2 * level
    first = tl.load(source, inside, 0.0).to(tl.float32)
    second = tl.load(source + 1, inside, 0.0).to(tl.float32)
    # Points behind a surface and in the background have no gradient.
    active = inside & ((first != 0.0) | (second != 0.0))
    base = grad_table + level.to(tl.int64) * entries * 2
    for cx in tl.static_range(2):
        for cy in tl.static_range(2):
            for cz in tl.static_range(2):
                row, weight = _corner(cx, cy, cz, x, y, z, fx, fy, fz, resolution, entries)
                tl.atomic_add(base + 2 * row, weight * first, active)
                tl.atomic_add(base + 2 * row + 1, weight * second, active)


class EncodeTriton(torch.autograd.Function):
    """Equivalent of `hash_grid.encode_torch`, called by `apply(points, table, resolutions, entries)`.

    Args:
        points: `(n, 3)` in [0, 1]. Points are converted to float32, the dtype of all sums.
        table: `(levels * entries, 2)`, float32, float16 or bfloat16.
        resolutions: `(levels,)` int64, on the device of the points.
        entries: Table size of a level, a power of two.

    Returns:
        `(n, 2 * levels)` in the dtype of the table. Gradients reach the table only.
    """

    @staticmethod
    def forward(ctx, points: Tensor, table: Tensor, resolutions: Tensor, entries: int) -> Tensor:
        """Encode the points."""
        points, levels = points.detach().float().contiguous(), len(resolutions)
        out = torch.empty(len(points), 2 * levels, device=points.device, dtype=table.dtype)
        ctx.save_for_backward(points, resolutions)
        ctx.entries, ctx.table = entries, (table.shape, table.dtype)
        if len(points):
            with torch.cuda.device_of(points):  # Triton launches on the current device, not on the points' device
                _forward[_programs(points, levels)](
                    points, table.detach().contiguous(), resolutions, out, len(points), entries, levels, BLOCK
                )
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Return the gradient of the table."""
        points, resolutions = ctx.saved_tensors
        shape, dtype = ctx.table
        # Sum in float32: thousands of points may share an entry of a coarse level.
        grad_table = torch.zeros(shape, device=grad.device, dtype=torch.float32)
        if len(points):
            grad, levels = grad.contiguous(), len(resolutions)
            with torch.cuda.device_of(points):
                _backward[_programs(points, levels)](
                    points, grad, resolutions, grad_table, len(points), ctx.entries, levels, BLOCK
                )
        return None, grad_table.to(dtype), None, None


def _programs(points: Tensor, levels: int) -> tuple[int, int]:
    return triton.cdiv(len(points), BLOCK), levels  # pyright: ignore[reportReturnType]
