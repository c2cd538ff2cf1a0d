"""Print the GPU that MLX computes on, and fail where there is none with Metal."""

import mlx.core as mx

if not mx.metal.is_available():
    raise SystemExit("MLX has no Metal here")
print(f"MLX {mx.__version__}")
for name, value in mx.device_info(mx.gpu).items():
    print(f"{name}: {value}")
if mx.sum(mx.arange(5, stream=mx.gpu), stream=mx.gpu).item() != 10:
    raise SystemExit("the GPU adds wrongly")
