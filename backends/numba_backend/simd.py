"""A SIMD vocabulary for Numba: vectors of float32 that each fill one register of this CPU.

Numba compiles a loop and hopes that LLVM vectorises it. Here the vectors are written down instead:
a vector is a value like any other, and each word of the vocabulary is an instruction or two.

    @njit
    def scale(x, y, factor, n):                    # y = factor * x; n is a multiple of LANES
        for i in range(0, n, LANES):
            store(y, i, splat(factor) * load(x, i))

A word is an *intrinsic*: Numba calls it with the types of its arguments and gets back a signature
and a function that emits LLVM instructions. Arrays are contiguous, of any shape; an index counts
elements, from anywhere, and is not checked.

A *line* is a tuple of vectors that stand at equal steps in memory, such as the pixels of a column.

A *tile* is rows x columns vectors that live in registers, as a rule ROWS of WIDTH floats or, where
registers allow, of BROAD. A matrix product is a loop around one step, `add_outer_product`:

                     WIDTH
              +-----------------+
              |  b: one row     |     tile[r] += a[r] * b
              +-----------------+
      +---+   +-----------------+     A row of b is loaded once and used ROWS times, an element of a
      | a |   |  tile           |     is loaded once and used for WIDTH floats. With enough sums in
 ROWS |   |   |  in registers   |     flight to hide an instruction's latency, that is all there is
      |   |   |                 |     to a fast product (Goto & van de Geijn, Anatomy of High-
      +---+   +-----------------+     Performance Matrix Multiplication, ACM TOMS 34(3), 2008).
"""

from __future__ import annotations

import operator
from functools import partial

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_jitable, register_model

from .arrays import CACHE_LINE
from .host import BROAD, LANES, WIDTH

FLOAT, INDEX, LANE = ir.FloatType(), ir.IntType(64), ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
_unpack = cgutils.unpack_tuple
LARGE = 2**20  # floats; measured on a Zen 4, from here on streaming wins


class VectorType(types.Type):
    """The Numba type of a vector of LANES float32."""

    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


class TileType(types.Type):
    """The Numba type of a tile: its vectors, row by row."""

    def __init__(self, rows, columns):
        super().__init__(name=f"tile {rows}x{columns}")
        self.dtype, self.rows, self.columns = vector, rows, columns

    def __len__(self):
        return self.rows * self.columns


vector = VectorType()
register_model(VectorType)(
    lambda manager, numba_type: models.PrimitiveModel(manager, numba_type, VECTOR)
)
register_model(TileType)(models.UniTupleModel)
BYTES = ir.VectorType(ir.IntType(8), LANES)


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _steps(builder, base, step, n):
    return [builder.gep(base, [builder.mul(step, INDEX(i))]) for i in range(n)]


def _load(builder, address):
    value = builder.load(builder.bitcast(address, VECTOR.as_pointer()))
    value.align = 4  # that of a float: the vector may begin at any
    return value


def _load_if(builder, inside, address):
    """Load a vector, or zeros from where there are some: without a branch, nothing else is read."""
    zeros = builder.bitcast(cgutils.global_constant(builder, "zeros", ZEROS), address.type)
    return _load(builder, builder.select(inside, address, zeros))


def _store(builder, value, address):
    builder.store(value, builder.bitcast(address, VECTOR.as_pointer())).align = 4


def _stream(builder, value, address):
    # a non-temporal store to anything but a multiple of its size is an error of the CPU
    written = builder.store(value, builder.bitcast(address, VECTOR.as_pointer()))
    written.align = 4 * LANES
    written.set_metadata("nontemporal", builder.module.add_metadata([LANE(1)]))


def _splat(builder, scalar):
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, LANE(0))
    zeros = ir.Constant(ir.VectorType(LANE, LANES), [0] * LANES)
    return builder.shuffle_vector(first, first, zeros)


def _each(context, builder, kind, function, *args):
    """Do to a vector what a function does, and to a tile the same with each of its vectors."""
    if kind is vector:
        return function(*args)
    cells = zip(*(_unpack(builder, tile) for tile in args), strict=True)
    return context.make_tuple(builder, kind, [function(*cell) for cell in cells])


def _call(builder, name, *args):
    kind = ir.FunctionType(VECTOR, [VECTOR] * len(args))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, args)


# ---- memory ----


@intrinsic
def load(typing, a, i):
    """Read a[i : i + LANES]."""

    def emit(context, builder, sig, args):
        return _load(builder, _address(context, builder, sig.args[0], *args))

    return vector(a, types.intp), emit


@intrinsic
def store(typing, a, i, v):
    """Write a[i : i + LANES] = v."""

    def emit(context, builder, sig, args):
        array, index, v = args
        _store(builder, v, _address(context, builder, sig.args[0], array, index))
        return context.get_dummy_value()

    return types.void(a, types.intp, vector), emit


@intrinsic
def stream(typing, a, i, v):
    """Write a[i : i + LANES] = v past the caches, to a multiple of its size; then `fence`."""

    def emit(context, builder, sig, args):
        array, index, v = args
        _stream(builder, v, _address(context, builder, sig.args[0], array, index))
        return context.get_dummy_value()

    return types.void(a, types.intp, vector), emit


@intrinsic
def store_bytes(typing, a, i, v):
    """Write v, numbers from 0 to 255, as bytes (uint8)."""

    def emit(context, builder, sig, args):
        array, index, v = args
        place = _address(context, builder, sig.args[0], array, index)
        place = builder.bitcast(place, BYTES.as_pointer())
        builder.store(builder.fptoui(v, BYTES), place).align = 1
        return context.get_dummy_value()

    return types.void(a, types.intp, vector), emit


@intrinsic
def where_byte(typing, a, i, byte, v):
    """Take v where a[i : i + LANES] (uint8) equals a byte, else 0."""

    def emit(context, builder, sig, args):
        array, index, byte, v = args
        place = _address(context, builder, sig.args[0], array, index)
        value = builder.load(builder.bitcast(place, BYTES.as_pointer()))
        value.align = 1
        first = builder.insert_element(ir.Constant(BYTES, ir.Undefined), byte, LANE(0))
        zeros = ir.Constant(ir.VectorType(LANE, LANES), [0] * LANES)
        same = builder.icmp_unsigned("==", value, builder.shuffle_vector(first, first, zeros))
        return builder.select(same, v, ZEROS)

    return vector(a, types.intp, types.uint8, vector), emit


@intrinsic
def gather(typing, a, i, step):
    """Read a[i], a[i + step], a[i + 2 * step], ...: LANES of them."""

    def emit(context, builder, sig, args):
        array, index, step = args
        v, base = ZEROS, _address(context, builder, sig.args[0], array, index)
        for lane, place in enumerate(_steps(builder, base, step, LANES)):
            v = builder.insert_element(v, builder.load(place), LANE(lane))
        return v

    return vector(a, types.intp, types.intp), emit


@intrinsic
def scatter(typing, a, i, step, v):
    """Write v to a[i], a[i + step], a[i + 2 * step], ..."""

    def emit(context, builder, sig, args):
        array, index, step, v = args
        base = _address(context, builder, sig.args[0], array, index)
        for lane, place in enumerate(_steps(builder, base, step, LANES)):
            builder.store(builder.extract_element(v, LANE(lane)), place)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp, vector), emit


@intrinsic
def copy(typing, a, i, b, j, n):
    """Write a[i : i + n] = b[j : j + n]."""

    def emit(context, builder, sig, args):
        a, i, b, j, n = args
        to = _address(context, builder, sig.args[0], a, i)
        cgutils.raw_memcpy(builder, to, _address(context, builder, sig.args[2], b, j), n, 4)
        return context.get_dummy_value()

    return types.void(a, types.intp, b, types.intp, types.intp), emit


@intrinsic
def clear(typing, a, i, n):
    """Write zeros to a[i : i + n]."""

    def emit(context, builder, sig, args):
        array, index, n = args
        start = _address(context, builder, sig.args[0], array, index)
        cgutils.memset(builder, start, builder.mul(n, INDEX(4)), 0)
        return context.get_dummy_value()

    return types.void(a, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def prefetch(typing, a, i, write):
    """Ask for the cache line of a[i], to read it or (1) to write it, and go on."""
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), LANE, LANE, LANE])
    numbers = (write.literal_value, 2, 1)  # 2: into the L2 cache; 1: data

    def emit(context, builder, sig, args):
        place = _address(context, builder, sig.args[0], args[0], args[1])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, *map(LANE, numbers)])
        return context.get_dummy_value()

    return types.void(a, types.intp, write), emit


@njit
def streams(a):
    """Say if what is written to an array is better streamed: it is large, a vector a whole line.

    A line that is only written is then not read from memory first.
    """
    return LANES * 4 == CACHE_LINE and a.size >= LARGE


@intrinsic
def fence(typing):
    """Let other threads see what was streamed before they see what is stored after."""

    def emit(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


# ---- arithmetic: of vectors, or of tiles of one shape ----


@intrinsic
def splat(typing, scalar):
    """Repeat one float32 in all lanes."""
    return vector(types.float32), lambda context, builder, sig, args: _splat(builder, args[0])


def _binary(function, instruction):
    """Give a Python operator its meaning for two vectors, or tiles: one LLVM instruction each.

    LLVM may not make a fused one of two, for it would do so in one place and not in another: the
    same function would round differently, in kernels compiled and in kernels loaded. `fma` is
    written where it is meant.
    """

    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            ours = isinstance(args[0], VectorType | TileType) and args == args[:1] * 2
            return signature(args[0], *args) if ours else None

    @lower_builtin(function, vector, vector)
    @lower_builtin(function, TileType, TileType)
    def lower(context, builder, sig, args):
        return _each(context, builder, sig.return_type, getattr(builder, instruction), *args)


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")


@intrinsic
def fma(typing, a, b, c):
    """Compute a * b + c, rounded once."""

    def emit(context, builder, sig, args):
        return _each(context, builder, a, partial(_call, builder, "fma"), *args)

    return a(a, b, c), emit


@intrinsic
def select_greater(typing, a, b, x, y):
    """x where a > b, else y; where a or b is NaN, y."""

    def emit(context, builder, sig, args):
        def select(a, b, x, y):
            return builder.select(builder.fcmp_ordered(">", a, b), x, y)

        return _each(context, builder, x, select, *args)

    return x(a, b, x, y), emit


@intrinsic
def select_larger(typing, a, b, x, y):
    """Select x where a > b or a is NaN, else y: as if NaN were the largest of all."""

    def emit(context, builder, sig, args):
        a, b, x, y = args
        larger = builder.fcmp_ordered(">", a, b)
        return builder.select(builder.or_(larger, builder.fcmp_unordered("uno", a, a)), x, y)

    return vector(vector, vector, vector, vector), emit


@njit
def maximum(a, b):
    """Take the larger of each pair, b where either is NaN."""
    return select_greater(a, b, a, b)


# ---- lines: n vectors at equal steps ----


@intrinsic(prefer_literal=True)
def load_line(typing, a, i, step, n):
    """Read n vectors, number r from a[i + r * step :]."""
    line = types.UniTuple(vector, n.literal_value)

    def emit(context, builder, sig, args):
        base = _address(context, builder, sig.args[0], args[0], args[1])
        places = _steps(builder, base, args[2], n.literal_value)
        return context.make_tuple(builder, line, [_load(builder, place) for place in places])

    return line(a, types.intp, types.intp, n), emit


@intrinsic(prefer_literal=True)
def load_inside(typing, a, i, step, n, first, size):
    """Read a line; its vectors with first + r outside of [0, size) are zeros, and not read."""
    line = types.UniTuple(vector, n.literal_value)

    def emit(context, builder, sig, args):
        array, index, step, _, first, size = args
        base, loaded = _address(context, builder, sig.args[0], array, index), []
        for r, place in enumerate(_steps(builder, base, step, n.literal_value)):
            # as unsigned numbers, the negative ones are larger than any size
            inside = builder.icmp_unsigned("<", builder.add(first, INDEX(r)), size)
            loaded.append(_load_if(builder, inside, place))
        return context.make_tuple(builder, line, loaded)

    return line(a, types.intp, types.intp, n, types.intp, types.intp), emit


def _writer(name, doc, write):
    def word(typing, a, i, step, values, n):
        def emit(context, builder, sig, args):
            base = _address(context, builder, sig.args[0], args[0], args[1])
            vectors = iter(_unpack(builder, args[3]))
            for r, row in enumerate(_rows(builder, base, args[2], values)):
                written = [(next(vectors), place) for place in row]
                with builder.if_then(builder.icmp_signed("<", INDEX(r), args[4])):
                    for v, place in written:
                        write(builder, v, place)
            return context.get_dummy_value()

        return types.void(a, types.intp, types.intp, values, types.intp), emit

    word.__name__, word.__doc__ = name, doc
    return intrinsic(word)


def _rows(builder, base, step, values):
    """Give the addresses of a line's or a tile's vectors, row by row; a line has one in each."""
    columns = getattr(values, "columns", 1)
    rows = _steps(builder, base, step, len(values) // columns)
    return [_steps(builder, row, INDEX(LANES), columns) for row in rows]


store_rows = _writer(
    "store_rows",
    "Write the first n vectors of a line or rows of a tile, or all, to where load_* would read.",
    _store,
)
stream_rows = _writer(
    "stream_rows",
    "Do the same past the caches, each vector to a multiple of its size; then `fence`.",
    _stream,
)


@intrinsic
def add_lines(typing, x, y):
    """Add two lines of equal length."""

    def emit(context, builder, sig, args):
        pairs = zip(*(_unpack(builder, line) for line in args), strict=True)
        sums = [builder.fadd(a, b) for a, b in pairs]
        return context.make_tuple(builder, sig.return_type, sums)

    return x(x, y), emit


@intrinsic
def at_least(typing, values, least):
    """Replace what is smaller than a float32 in a line or a tile; a NaN stays one."""

    def emit(context, builder, sig, args):
        limit = _splat(builder, args[1])
        limited = [
            builder.select(builder.fcmp_ordered("<=", v, limit), limit, v)
            for v in _unpack(builder, args[0])
        ]
        return context.make_tuple(builder, sig.return_type, limited)

    return values(values, types.float32), emit


# ---- tiles ----


@register_jitable
def tile_width(O):
    """Choose how many of O channels, a multiple of WIDTH, a tile has: BROAD if they divide so."""
    return WIDTH if O % BROAD else BROAD


@intrinsic(prefer_literal=True)
def zero_tile(typing, rows, width):
    """Make a tile of zeros, of so many rows and floats across."""
    tile = TileType(rows.literal_value, width.literal_value // LANES)

    def emit(context, builder, sig, args):
        return context.make_tuple(builder, tile, [ZEROS] * len(tile))

    return tile(rows, width), emit


@intrinsic
def width_of(typing, tile):
    """Count the floats across a tile."""
    return types.intp(tile), lambda context, builder, sig, args: INDEX(tile.columns * LANES)


@intrinsic
def rows_of(typing, tile):
    """Count the rows of a tile."""
    return types.intp(tile), lambda context, builder, sig, args: INDEX(tile.rows)


@intrinsic
def load_tile(typing, a, i, step, like):
    """Read a tile as large as another, row r from a[i + r * step :]."""

    def emit(context, builder, sig, args):
        base = _address(context, builder, sig.args[0], args[0], args[1])
        places = [place for row in _rows(builder, base, args[2], like) for place in row]
        return context.make_tuple(builder, like, [_load(builder, place) for place in places])

    return like(a, types.intp, types.intp, like), emit


@intrinsic
def add_stored(typing, tile, a, i, step, n):
    """Add to a tile the first n rows, or all, of what load_tile would read; no other is read."""

    def emit(context, builder, sig, args):
        base, stored = _address(context, builder, sig.args[1], args[1], args[2]), []
        for r, row in enumerate(_rows(builder, base, args[3], tile)):
            inside = builder.icmp_signed("<", INDEX(r), args[4])
            stored += [_load_if(builder, inside, place) for place in row]
        pairs = zip(_unpack(builder, args[0]), stored, strict=True)
        return context.make_tuple(builder, tile, [builder.fadd(*pair) for pair in pairs])

    return tile(tile, a, types.intp, types.intp, types.intp), emit


@intrinsic
def add_outer_product(typing, tile, a, i, step, b, j):
    """Add a[i + r * step] * b[j : j + its width] to each row r of a tile."""

    def emit(context, builder, sig, args):
        sums, a, i, step, b, j = args
        column = _steps(builder, _address(context, builder, sig.args[1], a, i), step, tile.rows)
        start = _address(context, builder, sig.args[4], b, j)
        row = [_load(builder, at) for at in _steps(builder, start, INDEX(LANES), tile.columns)]
        factors = [_splat(builder, builder.load(place)) for place in column]
        pairs = [(factor, v) for factor in factors for v in row]
        added = zip(pairs, _unpack(builder, sums), strict=True)
        return context.make_tuple(
            builder, tile, [_call(builder, "fma", *pair, total) for pair, total in added]
        )

    return tile(tile, a, types.intp, types.intp, b, types.intp), emit


@njit
def add_product(tile, a, i, row, step, b, j, b_step, depth):
    """Add a product of depth `depth` to a tile.

    Element (r, d) of the left factor is a[i + r * row + d * step], row d of the right one
    b[j + d * b_step :], as wide as the tile.
    """
    for d in range(depth):
        tile = add_outer_product(tile, a, i + d * step, row, b, j + d * b_step)
    return tile
