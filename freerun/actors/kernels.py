"""Two kernels of our own for decoding on a CPU with AVX2, in C, compiled once where a C compiler is found.

Shapes: M rows, N outputs, K inputs; n responses that decode, H query heads, K key/value heads, D head width, T positions.

A decode step multiplies a few rows by every weight of the model. The library packs each weight matrix before it multiplies,
which for few rows costs more than the product; and no weight is in cache when it is needed. `product` reads the weights once,
in place, four rows of them against three of ours, while the next four are fetched into the second-level cache. Measured on one
core of an AMD EPYC (Zen 4 without AVX-512), all linear layers of SmolLM2-135M, weights not in cache: 1 row 23 ms instead of 40,
3 rows 24 instead of 80, 9 rows 43 instead of 84, 24 rows 70 instead of 102, 64 rows 195 instead of 218.

`attend` is attention for one query per response, each over exactly its own length. The library's kernel works on rectangles, so
it reads every response up to the longest beside it, and its products with three query rows are slow.
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
void product(const float *x, long ldx, const float *w, const float *add, long lda, float *out, long ldo,
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

/* exp(x) for x <= 0: 2^i (1 + r + r^2/2 + ...) with |r| <= ln(2)/2; relative error below 2e-7. */
static inline __m256 exponential(__m256 x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-87.0f));
    __m256 i = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(i, _mm256_set1_ps(-2.12194440e-4f), _mm256_fnmadd_ps(i, _mm256_set1_ps(0.693359375f), x));
    __m256 y = _mm256_set1_ps(1.0f / 720);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(i), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

/* score[0..padded) = exp(scale (score - max)), zero from `length` on; returns their sum. `padded` is a multiple of 8. */
static float softmax(float *score, long length, long padded, float scale) {
    float most = score[0];
    for (long t = 1; t < length; t++) most = score[t] > most ? score[t] : most;
    for (long t = length; t < padded; t++) score[t] = most;
    __m256 total = _mm256_setzero_ps();
    for (long t = 0; t < padded; t += 8) {
        __m256 x = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(score + t), _mm256_set1_ps(most)), _mm256_set1_ps(scale));
        x = exponential(x);
        _mm256_storeu_ps(score + t, x);
        total = _mm256_add_ps(total, x);
    }
    for (long t = length; t < padded; t++) score[t] = 0;
    return sum(total) - (padded - length);
}

/* ROWS rows of weights p over `length` rows of v: COLS * 8 columns of the weighted sums, each times its row's factor. */
#define MIX(name, ROWS, COLS)                                                                                        \
    static void name(const float *p, long ldp, const float *v, long D, long length, const float *factor, float *out) { \
        __m256 total[ROWS][COLS];                                                                                    \
        _Pragma("GCC unroll 4") for (int m = 0; m < ROWS; m++)                                                       \
            _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++) total[m][n] = _mm256_setzero_ps();                \
        for (long t = 0; t < length; t++, v += D) {                                                                  \
            __m256 b[COLS];                                                                                          \
            _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++) b[n] = _mm256_loadu_ps(v + 8 * n);                \
            _Pragma("GCC unroll 4") for (int m = 0; m < ROWS; m++) {                                                 \
                __m256 a = _mm256_set1_ps(p[m * ldp + t]);                                                           \
                _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++)                                               \
                    total[m][n] = _mm256_fmadd_ps(a, b[n], total[m][n]);                                             \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 4") for (int m = 0; m < ROWS; m++)                                                       \
            _Pragma("GCC unroll 4") for (int n = 0; n < COLS; n++)                                                   \
                _mm256_storeu_ps(out + m * D + 8 * n, _mm256_mul_ps(total[m][n], _mm256_set1_ps(factor[m])));        \
    }
MIX(mix34, 3, 4) MIX(mix24, 2, 4) MIX(mix14, 1, 4) MIX(mix31, 3, 1) MIX(mix21, 2, 1) MIX(mix11, 1, 1)

/* One query per response i, whose last position is at[i]: out[i] = softmax(scale q[i] k^T) v over the last `window` positions.
   A response's queries and outputs are H rows of D; head h reads keys k + i slot + (h / (H / heads)) head. `score` has room for
   three rows of T, rounded up to eight. */
void attend(const float *q, long ldq, const float *k, const float *v, long slot, long head, const long *at, float *out,
            long n, long heads, long group, long D, float scale, long window, float *score) {
    for (long i = 0; i < n; i++)
        for (long h = 0; h < heads; h++)
            for (long g = 0; g < group; g += 3) {
                long rows = group - g < 3 ? group - g : 3, length = at[i] + 1, first = 0;
                if (window > 0 && length > window) first = length - window, length = window;
                long padded = (length + 7) / 8 * 8, where = i * slot + h * head + first * D, row = h * group + g;
                float factor[3];
                product(q + i * ldq + row * D, D, k + where, 0, 0, score, padded, rows, length, D);
                for (long m = 0; m < rows; m++) factor[m] = 1 / softmax(score + m * padded, length, padded, scale);
                float *to = out + (i * heads * group + row) * D;
                long d = 0;
                for (; d + 32 <= D; d += 32)
                    (rows == 3 ? mix34 : rows == 2 ? mix24 : mix14)(score, padded, v + where + d, D, length, factor, to + d);
                for (; d < D; d += 8)
                    (rows == 3 ? mix31 : rows == 2 ? mix21 : mix11)(score, padded, v + where + d, D, length, factor, to + d);
            }
}
"""
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can read this tensor here: float32 on a CPU whose best vectors are AVX2's, rows of a multiple of
    eight without gaps, one torch thread, and a compiler (or what one left in the cache)."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.shape[-1] % 8 == 0
        and tensor.is_contiguous()
        and torch.get_num_threads() == 1
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and _library() is not None
    )


def product(x_MK: Tensor, weight_NK: Tensor, *, out_MN: Tensor | None = None, add_MN: Tensor | None = None) -> Tensor:
    """`x weight^T`, plus `add_MN` if given, into `out_MN` if given. Rows may be strided, elements of a row may not.

    Only for a `usable` weight, and at least one row; more than `MOST_ROWS` are not worth it.
    """
    rows, inputs = x_MK.shape
    outputs = weight_NK.shape[0]
    out = x_MK.new_empty(rows, outputs) if out_MN is None else out_MN
    add, add_stride = (None, 0) if add_MN is None else (add_MN.data_ptr(), add_MN.stride(0))
    _library().product(
        *(x_MK.data_ptr(), x_MK.stride(0), weight_NK.data_ptr()),
        *(add, add_stride, out.data_ptr(), out.stride(0)),
        *(rows, outputs, inputs),
    )
    return out


def attend(
    query_nHD: Tensor, keys_SKTD: Tensor, values_SKTD: Tensor, position_n: Tensor, *, scale: float, window: int | None = None
) -> Tensor:
    """Attention [n, H, D] of response i's query over positions 0 to `position_n[i]` (int64) of slot i, the last `window` of
    them if given. Only for `usable` keys and values, which may be one layer of a larger tensor."""
    count, heads, width = query_nHD.shape
    _, kv_heads, capacity, _ = keys_SKTD.shape
    out_nHD = query_nHD.new_empty(count, heads, width)
    score = query_nHD.new_empty(3 * (capacity + 8))
    _library().attend(
        *(query_nHD.data_ptr(), query_nHD.stride(0), keys_SKTD.data_ptr(), values_SKTD.data_ptr()),
        *(keys_SKTD.stride(0), keys_SKTD.stride(1), position_n.data_ptr(), out_nHD.data_ptr()),
        *(count, kv_heads, heads // kv_heads, width, scale, window or 0, score.data_ptr()),
    )
    return out_nHD


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there is no compiler. Compiled into the user's cache, under a name that changes with
    the source, by a rename, so that processes that start together do not see each other's half."""
    digest = hashlib.sha256(_SOURCE.encode()).hexdigest()[:16]
    path = cache_directory() / "kernels" / f"decode-{digest}.so"
    if not path.exists():
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
        if compiler is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            flags = ["-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-x", "c", "-"]
            done = subprocess.run(
                [compiler, "-o", str(made), *flags], input=_SOURCE, text=True, capture_output=True, check=False
            )
            if done.returncode:
                return None
            made.rename(path)
    library = ctypes.CDLL(str(path))
    library.product.argtypes = [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG, _LONG, _LONG]
    library.attend.argtypes = [
        *(_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER),
        *(_LONG, _LONG, _LONG, _LONG, _FLOAT, _LONG, _POINTER),
    ]
    library.product.restype = library.attend.restype = None
    return library
