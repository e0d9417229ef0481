"""The kernels that read and make a coded table on a GPU, in Triton: rows for a lookup, logits, coordinates, codes.

Those that read take the bytes that are stored, decode them in registers, and multiply there: neither a table nor what
lies between the codes and the result is ever in memory. What a parameter holds is told in `projclust.coding.reading`.

Triton calls these with tensors as pointers; its own words for sizes that a kernel is compiled for are constants in
capitals. TRITON_INTERPRET=1 runs them on a CPU, for tests.
"""

import triton
import triton.language as tl


@triton.jit
def _unit(codes, at, last, shift, entry, values, live):
    """Coordinates in units of their deviations, from where their states begin; zero where not `live`."""
    # After a state that ends with a byte nothing is needed: the last byte will do.
    first = tl.load(codes + at, mask=live, other=0).to(tl.int32)
    second = tl.load(codes + tl.minimum(at + 1, last), mask=live, other=0).to(tl.int32)
    state = ((first << 8) | second) >> shift & 255
    return tl.load(values + entry + state, mask=live, other=0.0)


@triton.jit
def _integers(packed, row, column, width, live, BITS: tl.constexpr):
    """The integers of 4 or 8 bits at rows and columns of a packed matrix, as float32; zero where not `live`."""
    if BITS == 8:
        numbers = tl.load(packed + row * width + column, mask=live, other=128).to(tl.int32) - 128
    else:
        byte = tl.load(packed + row * width + column // 2, mask=live, other=136).to(tl.int32)
        numbers = tl.where(column % 2 == 0, byte >> 4, byte & 15) - 8
    return numbers.to(tl.float32)


@triton.jit
def lookup(
    ids,
    starts,  # (N,) the first byte of each id's codes
    out,  # (N, d)
    codes,
    last,  # the number of the last byte of all codes
    classes,
    first,
    places,
    factors,
    values,
    decoders,
    means,
    mean_scales,
    d,
    width,  # bytes of a row of the decoders
    BITS: tl.constexpr,  # of the decoders
    AFFINE: tl.constexpr,
    COORDINATES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some columns of one row of the table."""
    number = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    own = tl.load(classes + tl.load(ids + number)).to(tl.int32)
    start = tl.load(starts + number).to(tl.int64)
    end = tl.load(first + own + 1)
    total = tl.zeros([COLUMNS], tl.float32)
    for begin in range(tl.load(first + own), end, COORDINATES):
        k = begin + tl.arange(0, COORDINATES)
        live = k < end
        row = tl.load(places + 4 * k, mask=live, other=0)
        byte = tl.load(places + 4 * k + 1, mask=live, other=0)
        shift = tl.load(places + 4 * k + 2, mask=live, other=0)
        entry = tl.load(places + 4 * k + 3, mask=live, other=0)
        coordinate = _unit(codes, start + byte, last, shift, entry, values, live)
        coordinate *= tl.load(factors + k, mask=live, other=0.0)
        both = live[:, None] & inside[None, :]
        total += tl.sum(coordinate[:, None] * _integers(decoders, row[:, None], column[None, :], width, both, BITS), 0)
    if AFFINE:
        total += tl.load(mean_scales + own) * _integers(means, own, column, d, inside, 8)
    tl.store(out + number * d + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def products(
    packed,  # (m, width) integers
    scales,  # (m,), or anything without SCALED
    hidden,  # (P, d)
    out,  # (P, m) float32
    m,
    positions,
    d,
    width,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Products of some rows of integers, times their scales, and some hidden states."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    total = tl.zeros([ROWS, POSITIONS], tl.float32)
    for begin in range(0, d, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        live = (row < m)[:, None] & (column < d)[None, :]
        numbers = _integers(packed, row[:, None], column[None, :], width, live, BITS)
        wanted = (column < d)[:, None] & (position < positions)[None, :]
        states = tl.load(hidden + position[None, :] * d + column[:, None], mask=wanted, other=0.0).to(tl.float32)
        total = tl.dot(numbers, states, total, input_precision="ieee")
    if SCALED:
        total *= tl.load(scales + row, mask=row < m, other=0.0)[:, None]
    live = (row < m)[:, None] & (position < positions)[None, :]
    tl.store(out + position[None, :] * m + row[:, None], total, mask=live)


@triton.jit
def logits(
    inner,  # (P, G*r) products with the decoders
    shift,  # (P, C) products with the means, or anything without AFFINE
    out,  # (P, n)
    codes,
    last,
    blocks,  # (B, 5) int64: class, first row by class, rows, first byte, bytes of a row
    rows,  # (n,) int64 vocabulary rows, class after class
    first,
    places,
    factors,
    values,
    n,
    positions,
    inner_size,
    classes,
    AFFINE: tl.constexpr,
    ROWS: tl.constexpr,
    COORDINATES: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Logits of some rows of one class at some positions."""
    block = blocks + 5 * tl.program_id(0)
    own = tl.load(block).to(tl.int32)
    row = tl.arange(0, ROWS)
    present = row < tl.load(block + 2)
    start = tl.load(block + 3) + row * tl.load(block + 4)
    position = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    wanted = position < positions
    end = tl.load(first + own + 1)
    total = tl.zeros([ROWS, POSITIONS], tl.float32)
    for begin in range(tl.load(first + own), end, COORDINATES):
        k = begin + tl.arange(0, COORDINATES)
        live = k < end
        place = tl.load(places + 4 * k, mask=live, other=0)
        byte = tl.load(places + 4 * k + 1, mask=live, other=0)
        by = tl.load(places + 4 * k + 2, mask=live, other=0)
        entry = tl.load(places + 4 * k + 3, mask=live, other=0)
        both = present[:, None] & live[None, :]
        unit = _unit(codes, start[:, None] + byte[None, :], last, by[None, :], entry[None, :], values, both)
        unit *= tl.load(factors + k, mask=live, other=0.0)[None, :]
        needed = live[:, None] & wanted[None, :]
        weight = tl.load(inner + position[None, :] * inner_size + place[:, None], mask=needed, other=0.0)
        total = tl.dot(unit, weight, total, input_precision="ieee")
    if AFFINE:
        total += tl.load(shift + position * classes + own, mask=wanted, other=0.0)[None, :]
    number = tl.load(rows + tl.load(block + 1) + row, mask=present, other=0)
    target = out + position[None, :].to(tl.int64) * n + number[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=present[:, None] & wanted[None, :])


@triton.jit
def coordinates(
    codes,  # those of the rows
    last,
    out,  # (m, rows) float32
    rows,
    length,  # bytes of a row
    m,
    bytes_of,  # (m,) int32, as the next two: see `ClassLayout`
    shifts,
    entries,
    values,
    ROWS: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """Some coordinates, in units of their deviations, of some rows of one class."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * COORDINATES + tl.arange(0, COORDINATES)
    live = k < m
    both = live[:, None] & (row < rows)[None, :]
    byte = tl.load(bytes_of + k, mask=live, other=0)[:, None]
    shift = tl.load(shifts + k, mask=live, other=0)[:, None]
    entry = tl.load(entries + k, mask=live, other=0)[:, None]
    unit = _unit(codes, row.to(tl.int64)[None, :] * length + byte, last, shift, entry, values, both)
    tl.store(out + k[:, None].to(tl.int64) * rows + row[None, :], unit, mask=both)


@triton.jit
def viterbi(
    rows,  # (N, m) float32
    states,  # (N, steps) uint8, to be filled
    origins,  # (N, steps, 256) uint8, to work with
    bits,  # (steps,) int32
    first,  # (steps + 1,) int32
    books,  # (m, 256) float32
    offsets,  # (steps, 256) float32
    count,
    m,
    steps,
    ROWS: tl.constexpr,
):
    """The cheapest path of each of some rows: what `projclust.coding.kernels.viterbi` does, to the same bit."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    present = row < count
    state = tl.arange(0, 256)
    cost = tl.zeros([ROWS, 256], tl.float32) + tl.where(state == 0, 0.0, 1e30)[None, :]
    for t in range(steps):
        new = tl.load(bits + t)
        # State s comes from those whose low bits are s >> new; they differ in their high bits.
        low = tl.broadcast_to((state >> new)[None, :], [ROWS, 256])
        best = tl.gather(cost, low, 1)
        origin = tl.zeros([ROWS, 256], tl.int32)
        for high in range(1, 1 << new):
            other = tl.gather(cost, low + high * (256 >> new), 1)
            origin = tl.where(other < best, high, origin)
            best = tl.minimum(best, other)
        place = origins + (row * steps + t)[:, None] * 256 + state[None, :]
        tl.store(place, origin.to(tl.uint8), mask=present[:, None])
        error = tl.zeros([ROWS, 256], tl.float32) + tl.load(offsets + t * 256 + state)[None, :]
        for k in range(tl.load(first + t), tl.load(first + t + 1)):
            value = tl.load(rows + row * m + k, mask=present, other=0.0)
            error += value[:, None] * tl.load(books + k * 256 + state)[None, :]
        cost = best + error
    tl.debug_barrier()  # what other threads wrote is read
    last = tl.argmin(cost, 1)
    for back in range(steps):
        t = steps - 1 - back
        new = tl.load(bits + t)
        tl.store(states + row * steps + t, last.to(tl.uint8), mask=present)
        high = tl.load(origins + (row * steps + t) * 256 + last, mask=present, other=0).to(tl.int32)
        last = (last >> new) | (high << (8 - new))
