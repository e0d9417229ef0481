"""Compiles every kernel for GPUs that need not be here, and prints its name when it is done."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from projclust.coding import gpu_kernels

# What a parameter is; the numbers that say how many there are of anything are int32.
BYTES = {"codes", "classes", "states", "origins"}
INTEGERS = {"starts", "first", "places", "bytes_of", "shifts", "entries", "bits"}
LONG = {"ids", "blocks"}
FLOATS = {"out", "factors", "values", "inner", "books", "offsets"}
KERNELS: dict[str, list[dict[str, Any]]] = {
    "place": [{"AFFINE": affine, "COORDINATES": 128} for affine in (False, True)],
    "logits": [{"AFFINE": affine, "ROWS": 64, "COORDINATES": 16, "POSITIONS": 16} for affine in (False, True)],
    "coordinates": [{"ROWS": 64, "COORDINATES": 16}],
    "viterbi": [{"ROWS": 4}],
}
# Where the same name is something else.
OWN = {
    ("logits", "rows"): "*i64",
    ("coordinates", "rows"): "i32",
    ("viterbi", "rows"): "*fp32",
}


def type_of(kernel: str, name: str, constants: dict[str, Any]) -> str:
    """As Triton spells it."""
    if name in constants:
        return "constexpr"
    for names, spelled in ((BYTES, "*u8"), (INTEGERS, "*i32"), (LONG, "*i64"), (FLOATS, "*fp32")):
        if name in names:
            return OWN.get((kernel, name), spelled)
    return OWN.get((kernel, name), "i32")


for kernel, variants in KERNELS.items():
    function = getattr(gpu_kernels, kernel)
    for constants in variants:
        signature = {name: type_of(kernel, name, constants) for name in function.arg_names}
        for capability in (80, 90):
            source = ASTSource(fn=function, signature=signature, constexprs=constants)
            assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    print(kernel)
