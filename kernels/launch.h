// How each kernel is launched: KERNEL(name, threads of a block, bytes of shared memory of a block).
//
// The one place where these are said: the kernels check themselves against it as they compile, the tests launch by it,
// scripts/check-cuda.sh holds it against the GPU's limits, and whoever launches a kernel on a GPU reads it.

KERNEL(flash_forward_bf16_d64, 128, 49152)
KERNEL(flash_forward_bf16_d96, 128, 73728)
KERNEL(flash_forward_bf16_d128, 128, 65536)
KERNEL(flash_forward_partial_bf16_d64, 128, 49152)
KERNEL(flash_forward_partial_bf16_d96, 128, 73728)
KERNEL(flash_forward_partial_bf16_d128, 128, 65536)
KERNEL(flash_backward_kv_bf16_d64, 128, 45440)
KERNEL(flash_backward_q_bf16_d64, 128, 49152)
KERNEL(flash_backward_kv_bf16_d96, 128, 49664)
KERNEL(flash_backward_q_bf16_d96, 128, 49152)
KERNEL(flash_backward_kv_bf16_d128, 128, 66048)
KERNEL(flash_backward_q_bf16_d128, 128, 65536)
KERNEL(flash_backward_kv_partial_bf16_d64, 128, 45440)
KERNEL(flash_backward_q_partial_bf16_d64, 128, 49152)
KERNEL(flash_backward_kv_partial_bf16_d96, 128, 49664)
KERNEL(flash_backward_q_partial_bf16_d96, 128, 49152)
KERNEL(flash_backward_kv_partial_bf16_d128, 128, 66048)
KERNEL(flash_backward_q_partial_bf16_d128, 128, 65536)
