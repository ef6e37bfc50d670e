"""Cache pages of one layer, for tests of the attention kernels that write and read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.attention import kv_layout
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul import quantize
from support.kernels import Batch, assert_guards, call, guarded


class Cache:
    """Pages of one layer: the keys and values of the sequences' rows, and NaN everywhere else."""

    def __init__(self, batch: Batch, k: np.ndarray, v: np.ndarray, threads: int, kv_dtype: str = "f16") -> None:
        _, G, K = k.shape
        V = v.shape[-1]
        self.batch, self.heads, self.widths, self.kv_dtype = batch, G, (K, V), kv_dtype
        sizes = [G * kv_layout.head_bytes(kv_dtype, width) for width in (K, V)]
        self.memory = guarded((batch.pool, sum(sizes)), np.uint8)
        address = self.memory.ctypes.data
        self.places = {"keys": address, "values": address + sizes[0], "page_bytes": sum(sizes), "group": 0}
        widths = {"kv_heads": G, "head_dim": K, "value_dim": V}
        call(KernelKey("cache_write", kv_dtype=kv_dtype), batch, threads, k=k, v=v, **widths, **self.places)
        assert_guards(self.memory)

    def part(self, which: str) -> np.ndarray:
        """Keys (P, G, K, S) or values (P, G, S, V) as float32, by the layout of ``kernels/attention/kv_layout.py``."""
        K, width = self.widths[0], self.widths[which == "values"]
        size = self.heads * kv_layout.head_bytes(self.kv_dtype, width)
        start = self.heads * kv_layout.head_bytes(self.kv_dtype, K) if which == "values" else 0
        raw = self.memory[:, start : start + size].reshape(len(self.memory), self.heads, -1)
        shape = (*raw.shape[:2], *((width, PAGE) if which == "keys" else (PAGE, width)))
        if self.kv_dtype in ("f16", "f32"):
            return raw.view(np.float16 if self.kv_dtype == "f16" else np.float32).reshape(shape).astype(np.float32)
        if self.kv_dtype == "bf16":  # in pairs, of columns or of tokens
            numbers = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            pairs = numbers.reshape(*raw.shape[:2], shape[2] // 2, shape[3], 2)
            return pairs.swapaxes(-1, -2).reshape(shape)
        q, scales = raw[..., : width * PAGE].view(np.int8), raw[..., width * PAGE :].view(np.float16)
        if which == "keys":
            scales = np.repeat(scales.reshape(*raw.shape[:2], -1, PAGE), 32, 2)
        else:
            scales = np.repeat(scales.reshape(*raw.shape[:2], PAGE, -1), 32, 3)
        return q.reshape(shape) * scales.astype(np.float32)

    def attend(
        self, q: np.ndarray, batch: Batch, threads: int, activation_bits: int = 8, kernel: str = "attention", **how: Any
    ) -> np.ndarray:
        T, H, K = q.shape
        V = self.widths[1]
        out = guarded((T, H, V))
        blocks = guarded((T, H * V // 32), quantize.block_dtype(activation_bits)) if V % 32 == 0 else 0
        plain = {"scale": K**-0.5, "softcap": 0.0, "causal": 1, "window": 0, "sinks": 0, "cross": 0}
        how = plain | {"chunked": 0, "bias": 0, "bias_stride": 0, "bias_step": 4} | how
        heads = {"heads": H, "kv_heads": self.heads}
        fields = {"q": q, "out": out, "quantized": blocks, **heads, **self.places, **how}
        call(
            KernelKey(kernel, head_dim=K, value_dim=V, kv_dtype=self.kv_dtype, activation_bits=activation_bits),
            batch,
            threads,
            **fields,
        )
        if isinstance(blocks, np.ndarray):
            assert blocks.tobytes() == quantize.reference(out.reshape(T, H * V), activation_bits).tobytes()
        return out
