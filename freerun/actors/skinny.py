"""Matrix products with few rows on a CPU with AVX2: a kernel of our own in C, compiled once where a C compiler is found.

Shapes: M rows (responses that decode), N outputs, K inputs.

A decode step multiplies a few rows by every weight of the model. The library packs each weight matrix before it multiplies,
which for few rows costs more than the product; and no weight is in cache when it is needed. This kernel reads the weights once,
in place, four rows of them against three of ours, while the next four are fetched into the second-level cache. Measured on one
core of an AMD EPYC (Zen 4 without AVX-512), all linear layers of SmolLM2-135M, weights not in cache: 1 row 23 ms instead of 40,
3 rows 24 instead of 80, 9 rows 43 instead of 84, 24 rows 70 instead of 102, 64 rows 195 instead of 218.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from freerun.models.gguf import cache_directory

MOST_ROWS = 96
"""With more rows the library's product is as fast."""

_SOURCE = r"""
#include <immintrin.h>

static inline float sum(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/* ROWS rows of x times COLS rows of w, both K long; meanwhile fetch what `ahead` points at, `stride` bytes per eight k. */
#define TILE(name, ROWS, COLS)                                                                                       \
    static void name(const float *restrict x, long ldx, const float *restrict w, const float *add, long lda,          \
                     float *out, long ldo, long K, const char *ahead, long stride) {                                 \
        __m256 total[ROWS][COLS];                                                                                    \
        _Pragma("GCC unroll 4") for (int m = 0; m < ROWS; m++)                                                       \
            _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++) total[m][n] = _mm256_setzero_ps();                \
        for (long k = 0; k < K; k += 8) {                                                                            \
            __m256 b[COLS];                                                                                          \
            _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++) b[n] = _mm256_loadu_ps(w + n * K + k);            \
            _mm_prefetch(ahead, _MM_HINT_T1);                                                                        \
            if (stride == 128) _mm_prefetch(ahead + 64, _MM_HINT_T1);                                                \
            ahead += stride;                                                                                         \
            _Pragma("GCC unroll 4") for (int m = 0; m < ROWS; m++) {                                                 \
                __m256 a = _mm256_loadu_ps(x + m * ldx + k);                                                         \
                _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++)                                               \
                    total[m][n] = _mm256_fmadd_ps(a, b[n], total[m][n]);                                             \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 4") for (int m = 0; m < ROWS; m++)                                                       \
            _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++)                                                   \
                out[m * ldo + n] = sum(total[m][n]) + (add ? add[m * lda + n] : 0.0f);                               \
    }
TILE(tile34, 3, 4) TILE(tile24, 2, 4) TILE(tile14, 1, 4) TILE(tile11, 1, 1)

/* out[M, N] = x[M, K] w[N, K]^T (+ add[M, N]); K is a multiple of 8, rows of w follow one another. */
void skinny(const float *x, long ldx, const float *w, const float *add, long lda, float *out, long ldo,
            long M, long N, long K) {
    long stride = 128 / ((M + 2) / 3), n = 0;
    for (; n + 4 <= N; n += 4) {
        const float *here = w + n * K;
        const char *ahead = (const char *)(n + 8 <= N ? here + 4 * K : here);
        for (long m = 0; m < M; m += 3) {
            const float *more = add ? add + m * lda + n : 0;
            (m + 3 <= M ? tile34 : m + 2 <= M ? tile24 : tile14)(
                x + m * ldx, ldx, here, more, lda, out + m * ldo + n, ldo, K, ahead, stride);
            ahead += stride * (K / 8);
        }
    }
    for (; n < N; n++)
        for (long m = 0; m < M; m++)
            tile11(x + m * ldx, ldx, w + n * K, add ? add + m * lda + n : 0, lda, out + m * ldo + n, ldo, K,
                   (const char *)(w + n * K), 0);
}
"""
_ARGUMENTS = [
    *(ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p),
    *(ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_long),
    *(ctypes.c_long, ctypes.c_long, ctypes.c_long),
]


def applies(*weights: Tensor) -> bool:
    """Whether the kernel can multiply by all these weights [N, K] here: a CPU whose best vectors are AVX2's, one torch thread,
    float32, rows without gaps and a multiple of eight long, and a compiler (or what one left in the cache)."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX2"
        and torch.get_num_threads() == 1
        and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
        and all(w.is_contiguous() and w.shape[1] % 8 == 0 for w in weights)
        and _kernel() is not None
    )


def product(x_MK: Tensor, weight_NK: Tensor, *, out_MN: Tensor | None = None, add_MN: Tensor | None = None) -> Tensor:
    """`x weight^T`, plus `add_MN` if given, into `out_MN` if given. Rows may be strided, elements of a row may not.

    Only for weights that `applies` accepted, and at least one row; more than `MOST_ROWS` are not worth it.
    """
    rows, inputs = x_MK.shape
    outputs = weight_NK.shape[0]
    out = x_MK.new_empty(rows, outputs) if out_MN is None else out_MN
    add, add_stride = (None, 0) if add_MN is None else (add_MN.data_ptr(), add_MN.stride(0))
    # Strides of a tensor of one row say nothing, and are not used.
    _kernel()(
        *(x_MK.data_ptr(), x_MK.stride(0), weight_NK.data_ptr()),
        *(add, add_stride, out.data_ptr(), out.stride(0)),
        *(rows, outputs, inputs),
    )
    return out


@cache
def _kernel() -> "ctypes._CFuncPtr | None":
    """The compiled function, or None where there is no compiler. Compiled into the user's cache, under a name that changes with
    the source, by a rename, so that processes that start together do not see each other's half."""
    digest = hashlib.sha256(_SOURCE.encode()).hexdigest()[:16]
    library = cache_directory() / "kernels" / f"skinny-{digest}.so"
    if not library.exists():
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
        if compiler is None:
            return None
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / "skinny.so"
            flags = ["-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-x", "c", "-"]
            done = subprocess.run(
                [compiler, "-o", str(made), *flags], input=_SOURCE, text=True, capture_output=True, check=False
            )
            if done.returncode:
                return None
            made.rename(library)
    function = ctypes.CDLL(str(library)).skinny
    function.argtypes, function.restype = _ARGUMENTS, None
    return function
