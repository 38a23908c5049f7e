"""What the checks pass to each kernel, by the names that the kernels give their parameters.

`compare` holds it against the sources: a kernel that nobody checks, or one whose parameters are others by now, is an
error.
"""

import re

from checks.declarations import SCALARS

HEAD = "q_at k_at v_at queries keys"
BACK = "q k v d_o lse delta"
BACK_AT = "q_at k_at v_at d_o_at queries keys"

# A pattern of kernels' names -> their arguments.
CALLS = {
    r"flash_forward(_partial)?_bf16_d(64|96|128)": f"q k v o lse {HEAD} scale",
    r"flash_backward_kv(_partial)?_bf16_d(64|96|128)": f"{BACK} dk dv {BACK_AT} scale",
    r"flash_backward_q(_partial)?_bf16_d(64|96|128)": f"{BACK} dq {BACK_AT} scale",
    r"flash_forward_f32": f"q k v o lse {HEAD} d scale",
    r"flash_backward_kv_f32": f"{BACK} dk dv {BACK_AT} d scale",
    r"flash_backward_q_f32": f"{BACK} dq {BACK_AT} d scale",
    r"layer_norm_forward_(f32|bf16)": "x y scale shift rows width one eps",
    r"layer_norm_backward_(f32|bf16)": "x dy dx saved scale rows width one eps",
    r"layer_norm_columns_(f32|bf16)": "x dy saved parts rows n width",
    r"rms_rope_forward_(f32|bf16)": "x y weight rope rows width eps",
    r"rms_rope_backward_(f32|bf16)": "x dy dx saved weight rope rows width eps",
    r"rms_rope_columns_(f32|bf16)": "x dy saved parts rope rows n width",
    r"gate_forward_(f32|bf16)": "x y out gate rows n width",
    r"gate_backward_(f32|bf16)": "y d_out dy parts gate rows n width",
    r"gelu_forward_(f32|bf16)": "x y n",
    r"gelu_backward_(f32|bf16)": "x dy dx n",
    r"sum_runs": "parts gradient stride runs which count width",
    r"noisy_patches": "frames key token count keep add x0 noise x",
    r"adamw": "params grads m v average n step no_decay ranges",
    r"norm_squared": "values parts n",
    r"copy_rows_(16|4|2)": "from to from_at to_at count1 count2 units",
    r"ring_merge": "o lse more more_lse rows d",
    r"add_assign": "x y n",
    r"to_bf16|to_f32": "x y n",
    r"conv_pack_(f32|bf16)": "x y factors n channels silu",
    r"conv_gather_(16|4|2)": "oldest middle newest a first taps n",
    r"softmax_(f32|bf16)": "x y width scale",
    r"dropout": "x y key token n width least scale add",
}


def arguments(name):
    """The names of what is passed to a kernel, or None if no check knows it."""
    return next((names.split() for pattern, names in CALLS.items() if re.fullmatch(pattern, name)), None)


def compare(kernels, structs):
    """name -> what is wrong, of the kernels that cannot be checked."""
    wrong = {}
    for kernel in kernels.values():
        passed, declared = arguments(kernel.name), [parameter.name for parameter in kernel.parameters]
        if passed is None:
            wrong[kernel.name] = f"launch.h has {kernel.name}, which no check knows: add it to scripts/bundle/checks"
        elif odd := [
            str(p) for p in kernel.parameters if not p.pointer and p.type not in SCALARS and p.type not in structs
        ]:
            wrong[kernel.name] = (
                f"{kernel.name} takes {odd[0]}, a type that scripts/bundle/checks/declarations.py does not know"
            )
        elif passed != declared:
            wrong[kernel.name] = f"{kernel.name} takes ({', '.join(declared)}), the checks pass ({', '.join(passed)})"
    return wrong
