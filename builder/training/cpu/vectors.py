"""Vectors of 16 lanes for Numba, and tiles that stay in registers.

Numba has no vector type, and its loops over lanes reach only a fraction of a core's rate; these are thin
wrappers of LLVM's instructions. LLVM splits a vector where a processor's registers are shorter (in two for
AVX2, in four for NEON); a tile is made to fit them, some of the lanes at a time. A lane's numbers are the
same either way. In all uses here a lane is an image.
"""

from __future__ import annotations

import fractions
import functools
import itertools
import math
import operator
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

from builder import philox

LANES = 16
CHANNELS = 4  # output channels per tile

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_IR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint32: _I32}
_OFFSETS = types.UniTuple(types.int64, CHANNELS)

jit = numba.njit(error_model="numpy", cache=True, nogil=True)
# For work on each vector: a call would pass every array in a tuple of arrays.
inline = numba.njit(error_model="numpy", cache=True, nogil=True, forceinline=True)


class Vector(types.Type):
    """Numba's type of a vector; `dtype` is the lanes' type.

    Only in tiles may the number of lanes differ from LANES.
    """

    def __init__(self, dtype: Any, lanes: int = LANES) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _vector(vector.dtype, vector.lanes))


# Pieces of LLVM code: b is the builder, `data` the address of an array's first element.


def _vector(dtype: Any, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(_IR[dtype], lanes)


def _constant(vector: ir.VectorType, value: Any) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _data(context: Any, b: Any, array: Any, value: Any) -> Any:
    if isinstance(array, types.CPointer):
        return value
    return cgutils.create_struct_proxy(array)(context, b, value=value).data


def _address(b: Any, data: Any, index: Any, element: Any, target: Any) -> Any:
    return b.bitcast(b.gep(data, [index], source_etype=element), ir.PointerType(target))


def _load(b: Any, data: Any, index: Any, dtype: Any, lanes: int = LANES) -> Any:
    vector = _vector(dtype, lanes)
    return b.load(_address(b, data, index, _IR[dtype], vector), align=dtype.bitwidth // 8, typ=vector)


def _store(b: Any, data: Any, index: Any, dtype: Any, value: Any) -> None:
    b.store(value, _address(b, data, index, _IR[dtype], value.type), align=dtype.bitwidth // 8)


def _element(b: Any, data: Any, index: Any, element: Any) -> Any:
    return b.load(_address(b, data, index, element, element), typ=element)


def _splat(b: Any, scalar: Any, lanes: int = LANES) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    return b.shuffle_vector(
        b.insert_element(undefined, scalar, _I32(0)), undefined, _constant(ir.VectorType(_I32, lanes), 0)
    )


def _call(b: Any, name: str, *values: Any) -> Any:
    """LLVM's overloaded intrinsic `name` for the type of the first value."""
    vector = values[0].type
    suffix = f".v{vector.count}f{64 if isinstance(vector.element, ir.DoubleType) else 32}"
    function = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(vector, [v.type for v in values]), name + suffix
    )
    return b.call(function, values)


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(b, "llvm.fma", x, y, z)


def _maximum(b: Any, x: Any, y: Any) -> Any:
    """x if it is larger, else y: a NaN in y survives."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _shuffle(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, LANES), lanes))


def _totals(b: Any, vectors: list[Any]) -> Any:
    """A vector whose first lanes are the sums of up to 16 vectors, from halves added repeatedly."""
    zero = _constant(vectors[0].type, 0.0)
    held, width = list(vectors), LANES  # each vector in `held` consists of runs of `width` partial sums
    while len(held) & (len(held) - 1):
        held.append(zero)
    while width > 1:
        half, runs = width // 2, LANES // width
        low = [r * width + i for r in range(runs) for i in range(half)]
        high = [lane + half for lane in low]
        if len(held) > 1:  # two vectors' halves fill one vector
            pairs = zip(held[::2], held[1::2], strict=True)
            held = [b.fadd(_both(b, x, y, low), _both(b, x, y, high)) for x, y in pairs]
        else:
            held = [b.fadd(_both(b, held[0], zero, low), _both(b, held[0], zero, high))]
        width = half
    return held[0]


def _both(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    """The chosen lanes of x, then those of y."""
    return _shuffle(b, x, y, lanes + [lane + LANES for lane in lanes])


@intrinsic
def raw(typing: Any, array: Any) -> Any:
    """The address of a flat array's numbers.

    Taking an array out of a tuple counts references, which costs more than work on a vector.
    """
    return types.CPointer(array.dtype)(array), lambda context, b, signature, values: _data(
        context, b, array, values[0]
    )


# Vectors. Below, an array may be flat, or the address of a flat array.


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16] of a flat array."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        index_ = context.cast(b, values[1], signature.args[1], types.int64)
        return _load(b, _data(context, b, signature.args[0], values[0]), index_, array.dtype)

    return Vector(array.dtype)(array, index), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, x: Any) -> Any:
    """array[index : index + 16] = x."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        index_ = context.cast(b, values[1], signature.args[1], types.int64)
        _store(b, _data(context, b, signature.args[0], values[0]), index_, array.dtype, values[2])
        return context.get_dummy_value()

    return types.void(array, index, x), emit


@intrinsic
def entry(typing: Any, array: Any, index: Any) -> Any:
    """array[index] of a flat array, without Numba's check for negative indices; an int32 becomes int64."""
    number = types.int64 if array.dtype == types.int32 else array.dtype

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        index_ = context.cast(b, values[1], signature.args[1], types.int64)
        element = context.get_data_type(array.dtype)
        return context.cast(
            b,
            _element(b, _data(context, b, signature.args[0], values[0]), index_, element),
            array.dtype,
            number,
        )

    return number(array, index), emit


@intrinsic
def fill(typing: Any, array: Any, scalar: Any) -> Any:
    """A vector of the array's type with the same number in every lane."""
    dtype = array.dtype
    return Vector(dtype)(array, scalar), lambda context, b, s, v: _splat(
        b, context.cast(b, v[1], s.args[1], dtype)
    )


def _elementwise(emit: Callable[..., Any]) -> Any:
    """An operation on two vectors of a type."""

    @intrinsic
    def operation(typing: Any, x: Any, y: Any) -> Any:
        return x(x, y), lambda context, b, signature, values: emit(b, *values)

    return operation


def _mask(emit: Callable[..., Any]) -> Any:
    """A comparison of two vectors: a uint16 with one bit per lane."""

    @intrinsic
    def operation(typing: Any, x: Any, y: Any) -> Any:
        return types.uint16(x, y), lambda context, b, signature, values: b.bitcast(emit(b, *values), _I16)

    return operation


def _unary(emit: Callable[..., Any]) -> Any:
    @intrinsic
    def operation(typing: Any, x: Any) -> Any:
        return x(x), lambda context, b, signature, values: emit(b, values[0])

    return operation


def _define(symbol: Any, operation: Any) -> None:
    @overload(symbol, strict=False)  # annotations need not be equal
    def _(x: Any, y: Any) -> Any:
        if isinstance(x, Vector) and x == y:
            return lambda x, y: operation(x, y)
        return None


_define(operator.add, _elementwise(lambda b, x, y: b.fadd(x, y)))
_define(operator.sub, _elementwise(lambda b, x, y: b.fsub(x, y)))
_define(operator.mul, _elementwise(lambda b, x, y: b.fmul(x, y)))
_define(operator.truediv, _elementwise(lambda b, x, y: b.fdiv(x, y)))
maximum = _elementwise(_maximum)  # y if neither is larger
# y if neither is smaller
minimum = _elementwise(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
greater = _mask(lambda b, x, y: b.fcmp_ordered(">", x, y))
equal = _mask(lambda b, x, y: b.fcmp_ordered("==", x, y))
floor = _unary(lambda b, x: _call(b, "llvm.floor", x))


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    return x(x, y, z), lambda context, b, signature, values: _fma(b, *values)


@intrinsic
def choose(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    """x where the mask's bit is set, else y."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        bits = b.bitcast(
            context.cast(b, values[0], signature.args[0], types.uint16), ir.VectorType(ir.IntType(1), LANES)
        )
        return b.select(bits, values[1], values[2])

    return x(mask, x, y), emit


@intrinsic
def keep(typing: Any, mask: Any, x: Any) -> Any:
    """x where the mask's bit is set, else 0."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        bits = b.bitcast(
            context.cast(b, values[0], signature.args[0], types.uint16), ir.VectorType(ir.IntType(1), LANES)
        )
        return b.select(bits, values[1], _constant(_vector(x.dtype), 0.0))

    return x(mask, x), emit


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """The sum of the lanes."""
    return x.dtype(x), lambda context, b, signature, values: b.extract_element(
        _totals(b, [values[0]]), _I32(0)
    )


# The exponential: 2**k * exp(r) with |r| <= log(2) / 2, and the series of exp(r) - 1.


class _Exponential(NamedTuple):
    integer: Any
    bits: int  # of the mantissa
    bias: int
    terms: int  # of the series, for an error below half a unit in the last place
    low: float  # outside low .. high the result is the one at the nearer end
    high: float
    log2: tuple[float, float]  # log(2) as a short number and the remainder


def _split_log2(code: str, short: float) -> tuple[float, float]:
    log2 = "0.693147180559945309417232121458"
    rest = struct.unpack(code, struct.pack(code, float(log2) - short))[0]
    return short, rest


_EXPONENTIALS = {
    types.float32: _Exponential(_I32, 23, 127, 7, -87.0, 88.0, _split_log2("f", 0.693145751953125)),
    types.float64: _Exponential(
        _I64, 52, 1023, 13, -708.0, 709.0, (0.6931471803691238, 1.9082149292705877e-10)
    ),
}


def _exponential(b: Any, x: Any, dtype: Any) -> tuple[Any, Any]:
    """2**k and exp(r) - 1; NaN stays NaN."""
    e, vector = _EXPONENTIALS[dtype], _vector(dtype)
    x = b.select(b.fcmp_ordered(">", x, _constant(vector, e.high)), _constant(vector, e.high), x)
    x = b.select(b.fcmp_ordered("<", x, _constant(vector, e.low)), _constant(vector, e.low), x)
    magic = _constant(vector, 1.5 * 2.0**e.bits)  # adding it leaves the nearest integer in the lowest bits
    shifted = _fma(b, x, _constant(vector, 1.4426950408889634), magic)
    k = b.fsub(shifted, magic)
    r = _fma(b, k, _constant(vector, -e.log2[1]), _fma(b, k, _constant(vector, -e.log2[0]), x))
    series, factorial = _constant(vector, 0.0), 1.0
    coefficients = [1.0]
    for n in range(2, e.terms + 1):
        factorial *= n
        coefficients.append(1 / factorial)
    for coefficient in reversed(coefficients):
        series = _fma(b, series, r, _constant(vector, coefficient))
    integers = ir.VectorType(e.integer, LANES)
    exponent = b.add(
        b.shl(b.bitcast(shifted, integers), _constant(integers, e.bits)),
        _constant(integers, e.bias << e.bits),
    )
    return b.bitcast(exponent, vector), b.fmul(series, r)


@intrinsic
def exp(typing: Any, x: Any) -> Any:
    """The exponential."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        power, rest = _exponential(b, values[0], x.dtype)
        return _fma(b, power, rest, power)

    return x(x), emit


@intrinsic
def expm1(typing: Any, x: Any) -> Any:
    """The exponential minus 1, exact near 0 too."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        power, rest = _exponential(b, values[0], x.dtype)
        return _fma(b, power, rest, b.fsub(power, _constant(power.type, 1.0)))

    return x(x), emit


# The sine and the cosine: of r with |r| <= pi / 2, from which half turns were taken, each of which changes
# both signs


class _Turns(NamedTuple):
    integer: Any
    bits: int  # of the mantissa
    half: tuple[float, ...]  # pi as a sum of numbers of the type
    # coefficients of polynomials of r**2: (sin(r) / r - 1) / r**2, (cos(r) - 1) / r**2
    sine: tuple[float, ...]
    cosine: tuple[float, ...]


HALF_TURN = "3.14159265358979323846264338327950288419716939937510582"


def _split_half(code: str) -> tuple[float, ...]:
    rest, parts = fractions.Fraction(HALF_TURN), []
    for _ in range(3):
        parts.append(struct.unpack(code, struct.pack(code, float(rest)))[0])
        rest -= fractions.Fraction(parts[-1])
    return tuple(parts)


def _series(first: int, terms: int) -> tuple[float, ...]:
    """Taylor's, of the sine (first = 1) or the cosine (0)."""
    return tuple((-1) ** n / math.factorial(2 * n + first) for n in range(1, terms + 1))


_TURNS = {
    types.float32: _Turns(
        _I32,
        23,
        _split_half("f"),
        # of the least largest error, found by Remez's exchange: 6e-9 and 3e-10
        (-0.166666594101, 0.00833305768243, -0.000198086729609, 2.60316140445e-6),
        (-0.499999994519, 0.0416666363273, -0.00138883431345, 2.47586732709e-5, -2.60188897446e-7),
    ),
    types.float64: _Turns(_I64, 52, _split_half("d"), _series(1, 10), _series(0, 11)),
}


def _polynomial(b: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    sum_ = _constant(x.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        sum_ = _fma(b, sum_, x, _constant(x.type, coefficient))
    return sum_


@intrinsic
def sine_cosine(typing: Any, x: Any) -> Any:
    """The sine to two units in its last place, the cosine to two in that of 1, of numbers below a million."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        t, vector = _TURNS[x.dtype], _vector(x.dtype)
        integers = ir.VectorType(t.integer, LANES)
        # added, it leaves the nearest integer in the lowest bits
        magic = _constant(vector, 1.5 * 2.0**t.bits)
        shifted = _fma(b, values[0], _constant(vector, 1 / math.pi), magic)
        turns, r = b.fsub(shifted, magic), values[0]
        for part in t.half:
            r = _fma(b, turns, _constant(vector, -part), r)
        square = b.fmul(r, r)
        sine = _fma(b, b.fmul(r, square), _polynomial(b, square, t.sine), r)
        cosine = _fma(b, square, _polynomial(b, square, t.cosine), _constant(vector, 1.0))
        sign = b.shl(b.bitcast(shifted, integers), _constant(integers, t.integer.width - 1))
        found = [b.bitcast(b.xor(b.bitcast(v, integers), sign), vector) for v in (sine, cosine)]
        return cgutils.pack_array(b, found)

    return types.UniTuple(x, 2)(x), emit


# B-splines on equal intervals


@intrinsic
def splines(
    typing: Any,
    x: Any,
    u: Any,
    to: Any,
    slopes: Any,
    stride: Any,
    intervals: Any,
    degree: Any,
) -> Any:
    """x[to + j * stride :] = the B-splines at u, and x[slopes + j * stride :] their derivatives, by the
    recursion of Cox and de Boor.

    The j-th begins at u = j. `intervals` and `degree` are tuples, which have as many elements as there are
    intervals between knots, and as the splines' degree says: so all is unrolled.
    """
    count, order = intervals.count, degree.count

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        data, vector = _data(context, b, signature.args[0], values[0]), _vector(x.dtype)
        zero, one = _constant(vector, 0.0), _constant(vector, 1.0)
        to_, slopes_, stride_ = (
            context.cast(b, values[i], signature.args[i], types.int64) for i in (2, 3, 4)
        )
        t = [b.fsub(values[1], _constant(vector, float(j))) for j in range(count + 1)]

        def box(j: int) -> Any:
            inside = b.and_(b.fcmp_ordered(">=", t[j], zero), b.fcmp_ordered("<", t[j + 1], zero))
            return b.select(inside, one, zero)

        def hat(j: int) -> Any:
            falling = b.fneg(t[j + 2])
            lower = b.select(b.fcmp_ordered("<", t[j], falling), t[j], falling)
            return b.select(b.fcmp_ordered(">", lower, zero), lower, zero)

        def put(held: list[Any], at: Any, factor: float) -> None:
            for j, value in enumerate(held):
                scaled = b.fmul(value, _constant(vector, factor)) if factor != 1 else value
                _store(b, data, b.add(at, b.mul(_I64(j), stride_)), x.dtype, scaled)

        first = 1 if order > 1 else 0  # degree to begin with
        held = [(hat if first else box)(j) for j in range(count - first)]
        changes = [zero] * count
        for d in range(first + 1, order + 1):  # each d times too large
            if d == order:
                changes = [b.fsub(x, y) for x, y in itertools.pairwise(held)]
            held = [
                _fma(b, t[j], held[j], b.fneg(b.fmul(t[j + d + 1], held[j + 1]))) for j in range(count - d)
            ]
        put(held, to_, 1 / math.factorial(order))
        put(changes, slopes_, 1 / math.factorial(max(0, order - 1)))
        return context.get_dummy_value()

    return types.void(x, u, to, slopes, stride, intervals, degree), emit


# Images and random numbers, an image a lane


def _bytes(b: Any, data: Any, indices: list[Any], vector: ir.VectorType) -> Any:
    """The bytes at 16 indices, as floating point."""
    found = ir.Constant(ir.VectorType(_I8, LANES), ir.Undefined)
    for lane, index in enumerate(indices):
        found = b.insert_element(found, _element(b, data, index, _I8), _I32(lane))
    return b.uitofp(found, vector)


@intrinsic
def pixels(typing: Any, like: Any, images: Any, starts: Any, first: Any, offset: Any) -> Any:
    """images[starts[first + lane] + offset] of a flat uint8 array, in the type of `like`."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        data, table = (_data(context, b, signature.args[i], values[i]) for i in (1, 2))
        first_, offset_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (3, 4))
        indices = [
            b.add(_element(b, table, b.add(first_, _I64(lane)), _I64), offset_) for lane in range(LANES)
        ]
        return _bytes(b, data, indices, _vector(like.dtype))

    return Vector(like.dtype)(like, images, starts, first, offset), emit


@intrinsic
def sample(typing: Any, images: Any, plane: Any, starts: Any, first: Any, size: Any, y: Any, x: Any) -> Any:
    """Pixel (y, x), integers, of the plane [size, size] at starts[first + lane] + plane; 0 outside."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        data, table = (_data(context, b, signature.args[i], values[i]) for i in (0, 2))
        plane_, first_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (1, 3))
        edge = _splat(b, context.cast(b, values[4], signature.args[4], types.int32))
        integers = ir.VectorType(_I32, LANES)
        row, column = (b.fptosi(v, integers) for v in values[5:])
        # a negative number becomes a large one
        inside = b.and_(b.icmp_unsigned("<", row, edge), b.icmp_unsigned("<", column, edge))
        inner = b.select(inside, b.add(b.mul(row, edge), column), _constant(integers, 0))
        starts_ = [
            b.add(plane_, _element(b, table, b.add(first_, _I64(lane)), _I64)) for lane in range(LANES)
        ]
        indices = [
            b.add(start, b.sext(b.extract_element(inner, _I32(lane)), _I64))
            for lane, start in enumerate(starts_)
        ]
        return b.select(inside, _bytes(b, data, indices, _vector(y.dtype)), _constant(_vector(y.dtype), 0.0))

    return y(images, plane, starts, first, size, y, x), emit


def _product(b: Any, x: Any, factor: int) -> tuple[Any, Any]:
    """Low and high words of x * factor; even and odd lanes apart, as in processors, so that no lane moves."""
    pairs = ir.VectorType(_I64, LANES // 2)

    def all_(value: int) -> ir.Constant:
        return ir.Constant(pairs, [value] * (LANES // 2))

    low_word, bits, times = all_(0xFFFFFFFF), all_(32), all_(factor)
    both = b.bitcast(x, pairs)
    even, odd = b.mul(b.and_(both, low_word), times), b.mul(b.lshr(both, bits), times)
    low = b.or_(b.and_(even, low_word), b.shl(odd, bits))
    high = b.or_(b.lshr(even, bits), b.and_(odd, all_(0xFFFFFFFF00000000)))
    return b.bitcast(low, x.type), b.bitcast(high, x.type)


@intrinsic
def words(typing: Any, index: Any, first: Any, epoch: Any, model: Any, block: Any, key: Any) -> Any:
    """`philox.philox` of (index[first + lane], epoch, model, block): four vectors of 32-bit words.

    index is int64; key is a uint32 array of two.
    """
    word = Vector(types.uint32)

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        narrow, wide = ir.VectorType(_I32, LANES), ir.VectorType(_I64, LANES)
        data, keys = (_data(context, b, signature.args[i], values[i]) for i in (0, 5))
        first_ = context.cast(b, values[1], signature.args[1], types.int64)
        indices = b.load(_address(b, data, first_, _I64, wide), align=8, typ=wide)
        c = [b.trunc(indices, narrow)] + [
            _splat(b, context.cast(b, values[i], signature.args[i], types.uint32)) for i in (2, 3, 4)
        ]
        k = [_splat(b, _element(b, keys, _I64(i), _I32)) for i in range(2)]
        for _ in range(philox.ROUNDS):
            (low0, high0), (low1, high1) = (_product(b, c[2 * i], philox.MULTIPLIERS[i]) for i in range(2))
            c = [b.xor(b.xor(high1, c[1]), k[0]), low1, b.xor(b.xor(high0, c[3]), k[1]), low0]
            k = [b.add(k[i], _constant(narrow, philox.KEY_STEPS[i])) for i in range(2)]
        return cgutils.pack_array(b, c)

    return types.UniTuple(word, 4)(index, first, epoch, model, block, key), emit


def _half(emit: Callable[..., Any]) -> Any:
    @intrinsic
    def operation(typing: Any, x: Any) -> Any:
        return x(x), lambda context, b, signature, values: emit(b, values[0])

    return operation


low_half = _half(lambda b, x: b.and_(x, _constant(x.type, 0xFFFF)))
high_half = _half(lambda b, x: b.lshr(x, _constant(x.type, 16)))


@intrinsic
def at_least(typing: Any, x: Any, threshold: Any) -> Any:
    """A mask of the words that are at least `threshold`."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        return b.bitcast(
            b.icmp_unsigned(
                ">=", values[0], _splat(b, context.cast(b, values[1], signature.args[1], types.uint32))
            ),
            _I16,
        )

    return types.uint16(x, threshold), emit


@intrinsic
def lookup(typing: Any, table: Any, x: Any) -> Any:
    """table[x] for a vector of words."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        data, element = _data(context, b, signature.args[0], values[0]), _IR[table.dtype]
        found = ir.Constant(_vector(table.dtype), ir.Undefined)
        for lane in range(LANES):
            index = b.zext(b.extract_element(values[1], _I32(lane)), _I64)
            found = b.insert_element(found, _element(b, data, index, element), _I32(lane))
        return found

    return Vector(table.dtype)(table, x), emit


# Tiles: a tuple of vectors, one for each pixel (or tap) and each of CHANNELS output channels, accumulated
# in registers


@intrinsic
def barrier(typing: Any) -> Any:
    """Keep LLVM from overlapping a loop's rounds, for which a full tile leaves no registers."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        b.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def channels(typing: Any, start: Any, first: Any, count: Any, stride: Any) -> Any:
    """Offsets of channels first .. first + CHANNELS - 1 of `count`; past the end, the last one repeats."""

    def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
        start_, first_, count_, stride_ = (
            context.cast(b, v, t, types.int64) for v, t in zip(values, signature.args, strict=True)
        )
        last = b.sub(count_, _I64(1))
        offsets = []
        for i in range(CHANNELS):
            channel = b.add(first_, _I64(i))
            channel = b.select(b.icmp_signed("<", channel, last), channel, last)
            offsets.append(b.add(start_, b.mul(channel, stride_)))
        return cgutils.pack_array(b, offsets)

    return _OFFSETS(start, first, count, stride), emit


class Registers(NamedTuple):
    """A processor's vector registers."""

    lanes: int  # float32 numbers per register
    number: int  # registers that a tile may fill


def registers_of(target: llvm.Target, processor: str, features: str) -> Registers:
    """Find a processor's registers from what LLVM adds two vectors of LANES lanes with."""
    module, vector = ir.Module(), _vector(types.float32)
    b = ir.IRBuilder(
        ir.Function(module, ir.FunctionType(vector, [vector, vector]), "add").append_basic_block()
    )
    b.ret(b.fadd(*b.function.args))
    assembly = target.create_target_machine(cpu=processor, features=features).emit_assembly(
        llvm.parse_assembly(str(module))
    )
    if "zmm" in assembly:
        return Registers(16, 32)
    if "ymm" in assembly:
        return Registers(8, 16)
    # NEON has 32, but LLVM moves sums around when a tile fills more
    return Registers(4, 16 if target.name.startswith("x86") else 24)


@functools.cache
def registers() -> Registers:
    """The registers of the processor that Numba compiles for."""
    triple, processor, features = cpu_target.target_context.codegen().magic_tuple()
    return registers_of(llvm.Target.from_triple(triple), processor, features)


def inputs_of_tile() -> int:
    """Registers left for inputs, beside CHANNELS times as many sums and a weight."""
    return (registers().number - 1) // (CHANNELS + 1)


def part_of(pixels: int) -> tuple[int, int]:
    """How many of a tile's pixels, and how many lanes of each, are summed at a time to fit the registers.

    Example:
        AVX2's 16 registers of 8 lanes fit half the lanes of 3 pixels, 12 sums and a weight: 4 parts make a
        tile of 6 pixels.
    """
    lanes, max_inputs = registers().lanes, inputs_of_tile()
    parts = [
        (p, n)
        for p in range(1, pixels + 1)
        for n in (4, 8, 16)
        if pixels % p == 0 and n >= lanes and p * n <= max_inputs * lanes
    ]
    return max(parts, key=lambda part: (part[0] * part[1], part[0]))


class Tile(NamedTuple):
    """Operations on a tile of some pixels (or taps); pixel p, channel q is vector q * pixels + p."""

    offsets: Any
    zeros: Any
    filled: Any
    multiply: Any
    outer: Any
    put: Any
    spill: Any
    taken: Any


def _make_zeros(size: int, lanes: int) -> Any:
    """A tile of `size` vectors of zeros."""

    @intrinsic
    def zeros(typing: Any, like: Any) -> Any:
        """Zeros in the type of an array."""
        zero, tile = (
            _constant(_vector(like.dtype, lanes), 0.0),
            types.UniTuple(Vector(like.dtype, lanes), size),
        )
        return tile(like), lambda context, b, signature, values: cgutils.pack_array(b, [zero] * size)

    return zeros


def make_tile(count: int, lanes: int) -> Tile:
    """Make the operations for `count` pixels or taps, `lanes` images of each."""
    size = count * CHANNELS
    offsets_type = types.UniTuple(types.int64, count)

    def tile_of(dtype: Any) -> Any:
        return types.UniTuple(Vector(dtype, lanes), size)

    @intrinsic
    def offsets(typing: Any, table: Any, first: Any, start: Any) -> Any:
        """start + table[first : first + count]."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            data = _data(context, b, signature.args[0], values[0])
            first_, start_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (1, 2))
            found = [b.sext(_element(b, data, b.add(first_, _I64(p)), _I32), _I64) for p in range(count)]
            return cgutils.pack_array(b, [b.add(start_, offset) for offset in found])

        return offsets_type(table, first, start), emit

    @intrinsic
    def filled(typing: Any, array: Any, positions: Any) -> Any:
        """A tile whose channel q is array[positions[q]] everywhere."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            data = _data(context, b, signature.args[0], values[0])
            found = [
                _splat(b, _element(b, data, position, _IR[array.dtype]), lanes)
                for position in cgutils.unpack_tuple(b, values[1])
            ]
            return cgutils.pack_array(b, [vector for vector in found for _ in range(count)])

        return tile_of(array.dtype)(array, positions), emit

    @intrinsic
    def multiply(
        typing: Any, tile: Any, x: Any, bases: Any, offset: Any, weights: Any, starts: Any, shift: Any
    ) -> Any:
        """tile[p, q] += x[bases[p] + offset] * weights[starts[q] + shift]."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            held, bases_, starts_ = (list(cgutils.unpack_tuple(b, values[i])) for i in (0, 2, 5))
            data, weight = (_data(context, b, signature.args[i], values[i]) for i in (1, 4))
            offset_, shift_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (3, 6))
            inputs = [_load(b, data, b.add(base, offset_), x.dtype, lanes) for base in bases_]
            for q, channel in enumerate(starts_):
                factor = _splat(b, _element(b, weight, b.add(channel, shift_), _IR[x.dtype]), lanes)
                for p in range(count):
                    held[q * count + p] = _fma(b, inputs[p], factor, held[q * count + p])
            return cgutils.pack_array(b, held)

        return tile(tile, x, bases, offset, weights, starts, shift), emit

    @intrinsic
    def outer(typing: Any, tile: Any, x: Any, starts: Any, change: Any, start: Any, taps: Any) -> Any:
        """tile[p, q] += x[starts[q] + change] * x[start + taps[p]]."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            held, starts_, taps_ = (list(cgutils.unpack_tuple(b, values[i])) for i in (0, 2, 5))
            data = _data(context, b, signature.args[1], values[1])
            change_, start_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (3, 4))
            inputs = [_load(b, data, b.add(start_, tap), x.dtype, lanes) for tap in taps_]
            for q, channel in enumerate(starts_):
                gradient = _load(b, data, b.add(channel, change_), x.dtype, lanes)
                for p in range(count):
                    held[q * count + p] = _fma(b, inputs[p], gradient, held[q * count + p])
            return cgutils.pack_array(b, held)

        return tile(tile, x, starts, change, start, taps), emit

    @intrinsic
    def put(typing: Any, tile: Any, x: Any, positions: Any, starts: Any, lowest: Any) -> Any:
        """x[positions[p] + starts[q]] = the larger of tile[p, q] and the number `lowest`; NaN stays NaN."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            held, found, starts_ = (list(cgutils.unpack_tuple(b, values[i])) for i in (0, 2, 3))
            data = _data(context, b, signature.args[1], values[1])
            lowest_ = _splat(b, context.cast(b, values[4], signature.args[4], x.dtype), lanes)
            for q, channel in enumerate(starts_):
                for p, position in enumerate(found):
                    _store(
                        b, data, b.add(position, channel), x.dtype, _maximum(b, lowest_, held[q * count + p])
                    )
            return context.get_dummy_value()

        return types.void(tile, x, positions, starts, lowest), emit

    @intrinsic
    def spill(typing: Any, tile: Any, x: Any, start: Any, stride: Any) -> Any:
        """x[start + q * stride + p * LANES] = tile[p, q]."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            data = _data(context, b, signature.args[1], values[1])
            start_, stride_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (2, 3))
            for k, vector in enumerate(cgutils.unpack_tuple(b, values[0])):
                position = b.add(start_, b.mul(stride_, _I64(k // count)))
                _store(b, data, b.add(position, _I64(k % count * LANES)), x.dtype, vector)
            return context.get_dummy_value()

        return types.void(tile, x, start, stride), emit

    @intrinsic
    def taken(typing: Any, x: Any, start: Any, stride: Any) -> Any:
        """The tile that was spilled there."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            data = _data(context, b, signature.args[0], values[0])
            start_, stride_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (1, 2))
            starts = [b.add(start_, b.mul(stride_, _I64(q))) for q in range(CHANNELS)]
            held = [
                _load(b, data, b.add(at, _I64(p * LANES)), x.dtype, lanes)
                for at in starts
                for p in range(count)
            ]
            return cgutils.pack_array(b, held)

        return tile_of(x.dtype)(x, start, stride), emit

    return Tile(offsets, _make_zeros(size, lanes), filled, multiply, outer, put, spill, taken)


class Outer(NamedTuple):
    """Operations on sums of outer products; row r's v-th vector is number r * count + v."""

    starts: Any
    zeros: Any
    multiply: Any
    put: Any
    add: Any


def make_outer(rows: int, count: int, lanes: int) -> Outer:
    """The operations for `rows` scalars times `count` vectors of `lanes` numbers that stand side by side."""
    size, starts_type = rows * count, types.UniTuple(types.int64, rows)

    @intrinsic
    def starts(typing: Any, first: Any, row: Any, stop: Any, stride: Any) -> Any:
        """first + stride * the rows from `row` on; past the end the last one again, whose sums are equal."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            first_, row_, stop_, stride_ = (
                context.cast(b, v, t, types.int64) for v, t in zip(values, signature.args, strict=True)
            )
            last, found = b.sub(stop_, _I64(1)), []
            for r in range(rows):
                at = b.add(row_, _I64(r))
                at = b.select(b.icmp_signed("<", at, last), at, last)
                found.append(b.add(first_, b.mul(at, stride_)))
            return cgutils.pack_array(b, found)

        return starts_type(first, row, stop, stride), emit

    @intrinsic
    def multiply(typing: Any, tile: Any, x: Any, positions: Any, shift: Any, at: Any) -> Any:
        """tile[r, v] += x[positions[r] + shift] * x[at + v * lanes : at + (v + 1) * lanes]."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            held, positions_ = (list(cgutils.unpack_tuple(b, values[i])) for i in (0, 2))
            data = _data(context, b, signature.args[1], values[1])
            shift_, at_ = (context.cast(b, values[i], signature.args[i], types.int64) for i in (3, 4))
            inputs = [_load(b, data, b.add(at_, _I64(v * lanes)), x.dtype, lanes) for v in range(count)]
            for r, position in enumerate(positions_):
                factor = _splat(b, _element(b, data, b.add(position, shift_), _IR[x.dtype]), lanes)
                for v in range(count):
                    held[r * count + v] = _fma(b, inputs[v], factor, held[r * count + v])
            return cgutils.pack_array(b, held)

        return tile(tile, x, positions, shift, at), emit

    def finish(adding: bool) -> Any:
        @intrinsic
        def operation(typing: Any, tile: Any, x: Any, positions: Any, column: Any) -> Any:
            def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
                held, positions_ = (list(cgutils.unpack_tuple(b, values[i])) for i in (0, 2))
                data = _data(context, b, signature.args[1], values[1])
                column_ = context.cast(b, values[3], signature.args[3], types.int64)
                at = [b.add(p, b.add(column_, _I64(v * lanes))) for p in positions_ for v in range(count)]
                if adding:  # all are read first: a row that stands twice is added once
                    held = [
                        b.fadd(_load(b, data, a, x.dtype, lanes), h) for a, h in zip(at, held, strict=True)
                    ]
                for a, h in zip(at, held, strict=True):
                    _store(b, data, a, x.dtype, h)
                return context.get_dummy_value()

            return types.void(tile, x, positions, column), emit

        return operation

    return Outer(starts, _make_zeros(size, lanes), multiply, finish(adding=False), finish(adding=True))


def make_totals(count: int) -> Any:
    """The sums over the lanes of `count` vectors."""

    @intrinsic
    def totals(typing: Any, x: Any) -> Any:
        """x[k] = the sum of x[16 * k : 16 * k + 16]; x is written up to the next multiple of 16."""

        def emit(context: Any, b: Any, signature: Any, values: Any) -> Any:
            data = _data(context, b, signature.args[0], values[0])
            for first in range(0, count, LANES):  # written below what is still to be read
                vectors = [
                    _load(b, data, _I64(k * LANES), x.dtype) for k in range(first, min(first + LANES, count))
                ]
                _store(b, data, _I64(first), x.dtype, _totals(b, vectors))
            return context.get_dummy_value()

        return types.void(x), emit

    return totals
