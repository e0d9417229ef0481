"""The kernels that read and make a coded table on a GPU, in Triton: rows for a lookup, logits, coordinates, codes.

Those that read take the codes that are stored and decode them in registers. What a parameter holds is told in
`projclust.coding.gpu_reading`.

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
def _windows(places, k, live):
    """Of coordinates k: their rows of the basis, and where their states are, as byte, shift and entry."""
    place = places + 4 * k
    row, byte = tl.load(place, mask=live, other=0), tl.load(place + 1, mask=live, other=0)
    return row, byte, tl.load(place + 2, mask=live, other=0), tl.load(place + 3, mask=live, other=0)


@triton.jit
def place(
    ids,
    starts,  # (N,) the first byte of each id's codes
    out,  # (N, width) float32 zeros
    codes,
    last,  # the number of the last byte of all codes
    classes,
    first,
    places,
    factors,
    values,
    width,
    means_from,  # the column of the first class's mean
    AFFINE: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """The coordinates of one row of the table, where their rows of the basis are."""
    number = tl.program_id(0).to(tl.int64)
    own = tl.load(classes + tl.load(ids + number)).to(tl.int32)
    start = tl.load(starts + number).to(tl.int64)
    end = tl.load(first + own + 1)
    target = out + number * width
    for begin in range(tl.load(first + own), end, COORDINATES):
        k = begin + tl.arange(0, COORDINATES)
        live = k < end
        row, byte, shift, entry = _windows(places, k, live)
        unit = _unit(codes, start + byte, last, shift, entry, values, live)
        tl.store(target + row, unit * tl.load(factors + k, mask=live, other=0.0), mask=live)
    if AFFINE:
        tl.store(target + means_from + own, 1.0)


@triton.jit
def logits(
    inner,  # (P, width) products with the basis
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
    width,
    means_from,  # the column of the first class's mean
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
        basis, byte, by, entry = _windows(places, k, live)
        both = present[:, None] & live[None, :]
        unit = _unit(codes, start[:, None] + byte[None, :], last, by[None, :], entry[None, :], values, both)
        unit *= tl.load(factors + k, mask=live, other=0.0)[None, :]
        needed = live[:, None] & wanted[None, :]
        weight = tl.load(inner + position[None, :] * width + basis[:, None], mask=needed, other=0.0)
        total = tl.dot(unit, weight, total, input_precision="ieee")
    if AFFINE:
        total += tl.load(inner + position * width + means_from + own, mask=wanted, other=0.0)[None, :]
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
    factors,  # (m,)
    ROWS: tl.constexpr,
    COORDINATES: tl.constexpr,
):
    """Some coordinates, times their factors, of some rows of one class."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * COORDINATES + tl.arange(0, COORDINATES)
    live = k < m
    both = live[:, None] & (row < rows)[None, :]
    byte = tl.load(bytes_of + k, mask=live, other=0)[:, None]
    shift = tl.load(shifts + k, mask=live, other=0)[:, None]
    entry = tl.load(entries + k, mask=live, other=0)[:, None]
    unit = _unit(codes, row.to(tl.int64)[None, :] * length + byte, last, shift, entry, values, both)
    unit *= tl.load(factors + k, mask=live, other=0.0)[:, None]
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
