"""exp, log and the bits of floats for compiled loops: branch-free, so that LLVM makes vector instructions of them.

`EXACT` functions keep their order of operations wherever they are inlined. To import this module is to import numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# A function that only compiled code calls; wrappers for Python and C would double the time of its compilation.
# What is not said of `fastmath`, a function would inherit from whoever calls it first.
INNER: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "fastmath": False}
EXACT: Any = {**INNER, "fastmath": {"contract", "nsz"}, "forceinline": True}
INFINITE = 0x7F800000  # the bits of +inf; those of NaN are greater

_F = np.float32
_NORMAL = _F(-87.0)  # exp is a normal number above it, and 0 below


def _builtin(typed: Callable[..., Any]) -> Any:
    """`intrinsic`; the first parameter of what it decorates, the typing context, is no argument of a call."""
    return intrinsic(typed)


def _whole(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, ir.IntType(32))


def _constant(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


@_builtin
def read(context: Any, stored: Any) -> Any:
    """A stored logit as fp32: int16 holds the upper half of the bits (bf16)."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[0]
        wide = builder.shl(builder.zext(args[0], ir.IntType(32)), _constant(16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(stored), generate


@_builtin
def rounded(context: Any, stored: Any, value: Any) -> Any:
    """A finite fp32 value in the storage of `stored`; bf16 to nearest, ties to even."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[1]
        bits = _whole(builder, args[1])
        odd = builder.and_(builder.lshr(bits, _constant(16)), _constant(1))
        up = builder.add(builder.add(bits, _constant(0x7FFF)), odd)
        return builder.trunc(builder.lshr(up, _constant(16)), ir.IntType(16))

    return stored(stored, types.float32), generate


@_builtin
def order(context: Any, value: Any) -> Any:
    """An int32 that orders as fp32 values do: -0 equals 0, and NaN is beyond either infinity."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        bits = _whole(builder, args[0])
        sign = builder.ashr(bits, _constant(31))
        size = builder.and_(bits, _constant(0x7FFFFFFF))
        return builder.sub(builder.xor(size, sign), sign)

    return types.int32(types.float32), generate


@_builtin
def bits_of(context: Any, value: Any) -> Any:
    """The bits of an fp32 number, as int32."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return _whole(builder, args[0])

    return types.int32(types.float32), generate


@_builtin
def from_bits(context: Any, bits: Any) -> Any:
    """The fp32 number of these bits."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@_builtin
def _times_two_to(context: Any, value: Any, power: Any) -> Any:
    """`value` times 2**n, n being in the low bits of the fp32 number `power`."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        shift = builder.shl(_whole(builder, args[1]), _constant(23))
        return builder.bitcast(builder.add(_whole(builder, args[0]), shift), ir.FloatType())

    return types.float32(types.float32, types.float32), generate


@_builtin
def _parted(context: Any, value: Any) -> Any:
    """(m, n): a positive normal `value` as m * 2**n, m from 2/3 to 4/3."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = _whole(builder, args[0])
        exponent = builder.ashr(builder.sub(bits, _constant(0x3F2AAAAB)), _constant(23))
        rest = builder.sub(bits, builder.shl(exponent, _constant(23)))
        parts = (builder.bitcast(rest, ir.FloatType()), builder.sitofp(exponent, ir.FloatType()))
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.float32, 2)(types.float32), generate


@njit(**INNER, forceinline=True)
def minus(a: Any, b: Any) -> Any:
    """A difference that no product is fused into: of products that round to the same it is 0."""
    return a - b


@njit(**EXACT)
def exp(x: Any) -> Any:
    """For x up to 87; 1 at 0, and 0 below -87."""
    power = x * _F(1.4426950408889634) + _F(12582912.0)  # 1.5 * 2**23: the sum is rounded to a whole number
    n = power - _F(12582912.0)
    r = (x - n * _F(0.693359375)) - n * _F(-2.12194440e-4)
    poly = _F(1.9875691500e-4) * r + _F(1.3981999507e-3)
    poly = poly * r + _F(8.3334519073e-3)
    poly = poly * r + _F(4.1665795894e-2)
    poly = poly * r + _F(1.6666665459e-1)
    poly = poly * r + _F(5.0000001201e-1)
    poly = poly * (r * r) + r + _F(1.0)
    return _times_two_to(poly, power) if x > _NORMAL else _F(0.0)


@njit(**EXACT)
def log(x: Any) -> Any:
    """For positive normal x."""
    m, n = _parted(x)
    f = m - _F(1.0)
    s = f * f
    r = _F(-0.130310059) * s + _F(-0.121484190)
    t = _F(0.140869141) * s + _F(0.139814854)
    r = r * s + _F(-0.166846052)
    t = t * s + _F(0.200120345)
    r = r * s + _F(-0.249996200)
    r = t * f + r
    r = r * f + _F(0.333331972)
    r = r * f + _F(-0.5)
    r = r * s + f
    return n * _F(0.693147182) + r
