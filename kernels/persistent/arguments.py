"""The kernels' arguments as C structures, as `csrc/` declares them."""

import ctypes

_POINTER = ctypes.c_void_p


class ForwardArguments(ctypes.Structure):
    """See csrc/forward.h."""

    _fields_ = [
        ("images", _POINTER),
        ("weights", _POINTER),
        ("affine", _POINTER),
        ("maps", _POINTER),
        ("statistics", _POINTER),
        ("pooled", _POINTER * 3),
        ("exchange", _POINTER),
        ("eps", ctypes.c_float),
    ]


class BackwardArguments(ctypes.Structure):
    """See csrc/backward.h."""

    _fields_ = [
        ("images", _POINTER),
        ("maps", _POINTER),
        ("statistics", _POINTER),
        ("affine", _POINTER),
        ("weights", _POINTER),
        ("d_pooled", _POINTER * 3),
        ("order", _POINTER),
        ("columns", _POINTER),
        ("grads", _POINTER),
        ("scratch", _POINTER),
        ("planes", _POINTER),
        ("exchange", _POINTER),
        ("eps", ctypes.c_float),
    ]


def pack_structure(num_parameters: int) -> type[ctypes.Structure]:
    """Return the structure of csrc/pack.cu for a network of so many parameters."""

    class PackArguments(ctypes.Structure):
        _fields_ = [
            ("parameters", _POINTER * num_parameters),
            ("halves_from", _POINTER),
            ("halves", _POINTER),
            ("affine_from", _POINTER),
            ("affine", _POINTER),
            ("exchange", _POINTER),
            ("num_halves", ctypes.c_int),
            ("num_affine", ctypes.c_int),
            ("num_words", ctypes.c_int),
        ]

    return PackArguments
