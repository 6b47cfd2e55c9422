"""Compile the attention kernels for an H100, which needs none, and print what ptxas says of each.

Run by test_hopper.py in a process of its own: Triton's interpreter, where it is on, is on for all.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.experimental.gluon.language as gl
from triton.backends.compiler import GPUTarget
from triton.compiler import compile as compile_kernel
from triton.experimental.gluon._runtime import GluonASTSource

from cs336.files import read_json
from cs336.kernels.hopper_backward import _backward_dk_dv_kernel, _backward_dq_kernel
from cs336.kernels.hopper_forward import _forward_kernel
from cs336.kernels.hopper_tiles import STREAMED
from cs336.kernels.tuned import TILES_FILE

HOPPER = GPUTarget("cuda", 90, 32)
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
TILES = read_json(TILES_FILE)  # that a GPU uses in place of those by default
STREAMING = {  # by kernel: the tiles that stream past; the others are of 64 rows
    "_forward_kernel": ("k_tiles", "v_tiles"),
    "_backward_dq_kernel": ("k_tiles", "v_tiles"),
    "_backward_dk_dv_kernel": ("q_tiles", "grad_o_tiles"),
}


def compiled(kernel: Any, d_head: int, tile: int, stages: int) -> dict[str, Any]:
    name = kernel.fn.__name__
    streamed = "QUERY_TILE" if name == "_backward_dk_dv_kernel" else "KEY_TILE"
    constants = {"D": d_head, streamed: tile, "STAGES": stages, "IS_CAUSAL": True}
    signature, attributes = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument.endswith("_tiles"):
            block = [1, 1, tile if argument in STREAMING[name] else 64, d_head]
            layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
            signature[argument] = f"tensordesc<bf16{block},{layout!r}>"
        elif argument == "rows":
            layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
            signature[argument] = f"tensordesc<fp32[{tile}],{layout!r}>"
        else:
            signature[argument] = {"scale": "fp32"}.get(argument, "*fp32" if argument.endswith("_base") else "i32")
        if argument.endswith("_base") or argument in ("num_queries", "num_keys", "padded_queries"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = GluonASTSource(kernel, signature, constants, attributes)
    made = compile_kernel(source, target=HOPPER, options={"num_warps": 4})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(made.asm["ptx"])
        command = [str(PTXAS), "-v", "-arch=sm_90a", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": name,
        "d_head": d_head,
        "tiles": [tile, stages],
        "shared_bytes": made.metadata.shared,
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "serialized": "wgmma.mma_async instructions are serialized" in said,
        "products": made.asm["ptx"].count("wgmma.mma_async"),
    }


def main() -> None:
    of_names = {
        "forward": _forward_kernel,
        "dq": _backward_dq_kernel,
        "dk_dv": _backward_dk_dv_kernel,
    }
    for name, kernel in of_names.items():
        for d_head, default in STREAMED[name].items():
            tuned = [
                gpu[f"hopper {name} {d_head}"]["tiles"] for gpu in TILES.values() if f"hopper {name} {d_head}" in gpu
            ]
            for tile, stages in sorted({default, *map(tuple, tuned)}):
                print(json.dumps(compiled(kernel, d_head, tile, stages)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
