"""The compiled loops that read a coded table: rows for a lookup, and the logits of a tied head.

They read the bytes that are stored, so that a step of generation moves bytes of code and not floats. Float32 sums are
taken in another order than by torch; what comes out does not depend on the number of threads.
"""

from typing import Any

import numpy as np

from projclust.coding.kernels import compiled, compiled_sums

# A look into a table of sums finds that of the steps whose bits lie in a window of at most so many bits.
_WIDEST = 11
# So many rows of a class are worth windows of 9 bits, twice as many 10, and so on.
_ROWS_FOR_MORE = 256
# Classes are multiplied together up to so many rows: a product of few rows costs nearly that of more.
_FEWEST_ROWS = 64
# The rows of a decoder that are multiplied at once.
AT_ONCE = 8


@compiled
def plan(reading: Any, wanted: Any, parts: Any) -> tuple[int, int]:
    """What a lookup has to decode: the number of distinct ids and of products, or -1 where an id lies outside.

    Fills all of `wanted` but the ids, and a row of `parts` for each product: its first row and one past its last among
    those to decode, the first row of its decoder, and how many of the decoder's rows the classes need.
    """
    ids, order, following = wanted
    count, n, classes = len(ids), len(reading.classes), len(reading.first) - 1
    size = 16
    while size < 2 * count:
        size *= 2
    seen = np.full(size, -1, np.int32)  # a hash table of first places
    last, firsts = np.empty(count, np.int32), np.empty(count, np.int32)
    ends = np.zeros(classes + 1, np.int64)
    distinct = 0
    for place in range(count):
        row = ids[place]
        if row < 0 or row >= n:
            return -1, 0
        following[place] = -1
        at = (np.uint64(row) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & np.uint64(size - 1)
        while seen[at] >= 0 and ids[seen[at]] != row:
            at = (at + np.uint64(1)) & np.uint64(size - 1)
        first = seen[at]
        if first >= 0:
            following[last[first]] = place
            last[first] = place
        else:
            seen[at] = last[place] = firsts[distinct] = place
            distinct += 1
            ends[reading.classes[row] + 1] += 1
    for c in range(classes):
        ends[c + 1] += ends[c]
    for k in range(distinct):
        c = reading.classes[ids[firsts[k]]]
        order[ends[c]] = firsts[k]
        ends[c] += 1  # in the end, where the class ends
    products, start = 0, 0
    for c in range(classes):
        end = ends[c]
        if end > start:
            base, needed, last_part = reading.bases[c], reading.needed[c], parts[max(products - 1, 0)]
            if products > 0 and last_part[2] == base and start - last_part[0] < _FEWEST_ROWS:
                last_part[1], last_part[3] = end, max(last_part[3], needed)
            else:
                own = parts[products]
                own[0], own[1], own[2], own[3] = start, end, base, needed
                products += 1
            start = end
    return distinct, products


@compiled
def decode(reading: Any, wanted: Any, first: int, coordinates: Any) -> None:
    """Fill `coordinates`, (rows, r), with those of the rows to decode from `first` on, times the decoder's scales."""
    last = np.uint64(max(len(reading.codes) - 1, 0))
    for i in range(len(coordinates)):
        row = wanted.ids[wanted.order[first + i]]
        c, own = reading.classes[row], coordinates[i]
        own[:] = 0
        start, base = np.uint64(reading.starts[row]), np.uint64(reading.bases[c])
        for k in range(reading.first[c], reading.first[c + 1]):
            # Unsigned, or each index would be compared with zero.
            place = reading.places[np.uint64(k)]
            at = start + np.uint64(place[1])
            # After a state that ends with a byte nothing is needed: the last byte will do.
            pair = np.uint32(reading.codes[at]) << np.uint32(8) | np.uint32(reading.codes[min(at + np.uint64(1), last)])
            state = pair >> np.uint32(place[2]) & np.uint32(255)
            value = reading.values[np.uint64(np.uint32(place[3]) + state)]
            own[np.uint64(place[0]) - base] = value * reading.factors[np.uint64(k)]


@compiled
def unpack(packed: Any, bits: int, numbers: Any) -> None:
    """Fill `numbers`, (m, d) float32, with the integers of decoder rows of 4 or 8 bits."""
    d = numbers.shape[1]
    for k in range(len(packed)):
        row, own = packed[k], numbers[k]
        if bits == 8:
            for j in range(d):
                own[j] = np.int32(row[j]) - 128
        else:
            for j in range(d // 2):
                own[2 * j] = np.int32(row[j] >> 4) - 8
                own[2 * j + 1] = np.int32(row[j] & 15) - 8
            if d % 2:
                own[d - 1] = np.int32(row[d // 2] >> 4) - 8


@compiled_sums
def _add(factors: Any, numbers: Any, total: Any) -> None:
    """Add 8 rows of `numbers`, (8, d), times their factors; all at once, so that the total is read and written once."""
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    f4, f5, f6, f7 = factors[4], factors[5], factors[6], factors[7]
    n0, n1, n2, n3 = numbers[0], numbers[1], numbers[2], numbers[3]
    n4, n5, n6, n7 = numbers[4], numbers[5], numbers[6], numbers[7]
    for j in range(len(total)):
        first = f0 * n0[j] + f1 * n1[j] + f2 * n2[j] + f3 * n3[j]
        total[j] += first + (f4 * n4[j] + f5 * n5[j] + f6 * n6[j] + f7 * n7[j])


@compiled
def put(reading: Any, wanted: Any, first: int, found: Any, rows: Any) -> None:
    """Put decoded rows from `first` on, (rows, d), plus the means of their classes, where their ids are: in `rows`."""
    for i in range(len(found)):
        place = wanted.order[first + i]
        own, row = found[i], rows[place]
        if len(reading.means) > 0:
            c = reading.classes[wanted.ids[place]]
            mean, scale = reading.means[c], reading.mean_scales[c]
            for j in range(len(row)):
                row[j] = own[j] + scale * np.float32(np.int32(mean[j]) - 128)
        else:
            row[:] = own
        place = wanted.following[place]
        while place >= 0:
            rows[place] = row
            place = wanted.following[place]


@compiled
def read_few(reading: Any, wanted: Any, bits: int, rows: Any) -> int:
    """Fill `rows`, (N, d), with those of a few ids, in one call; what `plan` says first.

    Decoders are unpacked a few of their rows at a time, and never lie in memory.
    """
    parts = np.empty((len(reading.bases), 4), np.int64)
    distinct, count = plan(reading, wanted, parts)
    if distinct < 0:
        return distinct
    d, longest = rows.shape[1], 0
    for part in parts[:count]:
        longest = max(longest, part[3])
    coordinates = np.empty((distinct, (longest + AT_ONCE - 1) // AT_ONCE * AT_ONCE), np.float32)
    decode(reading, wanted, 0, coordinates)
    found, numbers = np.zeros((distinct, d), np.float32), np.zeros((AT_ONCE, d), np.float32)
    for part in parts[:count]:
        start, end, base, needed = part[0], part[1], part[2], part[3]
        for k in range(0, needed, AT_ONCE):
            unpack(reading.decoders[base + k : base + min(k + AT_ONCE, needed)], bits, numbers)
            for i in range(start, end):
                own, some = coordinates[i, k : k + AT_ONCE], False
                for number in own:
                    some |= number != 0
                if some:  # its class may have no codes here
                    _add(own, numbers, found[i])
    put(reading, wanted, 0, found, rows)
    return distinct


@compiled_sums
def products(packed: Any, bits: int, hidden: Any, found: Any) -> None:
    """Fill `found`, (P, m), with the products of rows of integers, of 4 or 8 bits, and `hidden`, (P, width).

    With 4 bits `hidden` has the numbers that belong to the high halves of bytes before those of the low halves.
    """
    half = packed.shape[1]
    for k in range(len(packed)):
        row = packed[k]
        for p in range(len(hidden)):
            own, total = hidden[p], np.float32(0)
            if bits == 8:
                for j in range(half):
                    total += np.float32(np.int32(row[j]) - 128) * own[j]
            else:
                for j in range(half):
                    total += np.float32(np.int32(row[j] >> 4) - 8) * own[j]
                    total += np.float32(np.int32(row[j] & 15) - 8) * own[half + j]
            found[p, k] = total


@compiled_sums
def _step(reading: Any, k: int, first: int, inner: Any, sums: Any) -> int:
    """Fill ``sums[:, :256]`` with what the step that ends with coordinate k adds by state; the coordinate before it.

    The coordinates of the class begin with `first`.
    """
    end = _end(reading, k)
    for p in range(len(sums)):
        sums[p, :256] = 0
    while k >= first and _end(reading, k) == end:
        entry = reading.places[k, 3]
        values = reading.values[entry : entry + 256]
        for p in range(len(sums)):
            weight, own = inner[p, reading.places[k, 0]] * reading.factors[k], sums[p, :256]
            for state in range(256):
                own[state] += weight * values[state]
        k -= 1
    return k


@compiled
def _end(reading: Any, k: int) -> int:
    """Where in a row the bits of a coordinate's step end."""
    return 8 * reading.places[k, 1] + 16 - reading.places[k, 2]


@compiled
def _join(before: Any, sums: Any, joined: Any) -> None:
    """Fill `joined` with the sums by a wider window: its first 8 bits are a state of the step before."""
    width, mask = len(joined) // 256, len(sums) - 1
    for state in range(256):
        start = state * width
        own, known, more = joined[start : start + width], sums[start & mask : (start & mask) + width], before[state]
        for j in range(width):
            own[j] = more + known[j]


@compiled
def _windows(lanes: Any, end: int, width: int, found: Any) -> None:
    """Fill `found`, (rows,), with the bits of each row that end at `end`, from the bytes of rows, (bytes + 2, rows)."""
    byte = max(end - width, 0) >> 3  # before a row lie zeros
    shift, mask = np.uint32(24 - (end - 8 * byte)), np.uint32((1 << width) - 1)
    first, second, third = lanes[byte], lanes[byte + 1], lanes[byte + 2]
    for i in range(len(found)):
        bits = np.uint32(first[i]) << np.uint32(16) | np.uint32(second[i]) << np.uint32(8) | np.uint32(third[i])
        found[i] = bits >> shift & mask


@compiled
def logits(reading: Any, task: Any, hidden: Any, rows: Any, out: Any) -> None:
    """Fill `out`, (P, n), at some rows of one class: `task` is their class, first byte, and bytes each.

    `hidden` are the products of P hidden states and decoders, (P, G*r), and means, (P, C); `rows` are those of the
    vocabulary. A row's logit is a sum over its steps. What steps that follow each other add is summed up once for
    every value that their bits can have, so that a row of a long class needs one look for 4 bits or more.
    """
    (c, start, length), (inner, shift) = task, hidden
    count, positions = len(rows), len(inner)
    lanes = np.zeros((length + 2, count), np.uint8)
    for i in range(count):
        row = reading.codes[start + i * length : start + (i + 1) * length]
        for byte in range(length):
            lanes[byte, i] = row[byte]
    totals = np.empty((positions, count), np.float32)
    for p in range(positions):
        totals[p] = shift[p, c]
    most = 8
    while most < _WIDEST and count >= _ROWS_FOR_MORE << (most - 8):
        most += 1
    own, windows = np.empty((positions, 256), np.float32), np.empty(count, np.uint16)
    sums, spare = np.empty((positions, 1 << _WIDEST), np.float32), np.empty((positions, 1 << _WIDEST), np.float32)
    first, k = reading.first[c], reading.first[c + 1] - 1
    while k >= first:  # from the end of the row
        end = _end(reading, k)
        k, width = _step(reading, k, first, inner, sums), 8
        while k >= first and end - _end(reading, k) + 8 <= most:
            wider = end - _end(reading, k) + 8
            k = _step(reading, k, first, inner, own)
            for p in range(positions):
                _join(own[p], sums[p, : 1 << width], spare[p, : 1 << wider])
            sums, spare, width = spare, sums, wider
        _windows(lanes, end, width, windows)
        for p in range(positions):
            total, table = totals[p], sums[p]
            for i in range(count):
                total[i] += table[windows[i]]
    for p in range(positions):
        total, target = totals[p], out[p]
        for i in range(count):
            target[rows[i]] = total[i]


@compiled
def coordinates(codes: Any, layout: Any, values: Any, factors: Any, out: Any) -> None:
    """Fill `out`, (m, rows), with coordinates of rows of one class, times their (m,) factors.

    `codes` are those of all rows; `layout` are byte, shift and entry of each coordinate, (3, m), see `ClassLayout`.
    """
    count = out.shape[1]
    length = len(codes) // count
    # Byte after byte, so that what follows each other in memory is done at once.
    lanes = np.zeros((length + 1, count), np.uint8)
    for i in range(count):
        row = codes[i * length : (i + 1) * length]
        for byte in range(length):
            lanes[byte, i] = row[byte]
    for k in range(len(out)):
        byte, shift, entry = layout[0, k], np.uint16(layout[1, k]), layout[2, k]
        own, first, second = out[k], lanes[byte], lanes[byte + 1]
        table = values[entry : entry + 256] * factors[k]
        for i in range(count):
            pair = np.uint16(np.uint16(first[i]) << np.uint16(8) | np.uint16(second[i]))
            own[i] = table[np.intp((pair >> shift) & np.uint16(255))]
