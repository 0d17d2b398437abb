/* What decoding spends its time on: products of a few rows with every weight of the model, and attention of tokens over the
   keys and values in their slots. For float32 and bfloat16; see kernels.py.

   Vectors are GCC's and Clang's own, so one source serves AVX-512, AVX2 and NEON. Sums are in float32 whatever the inputs are.
   Functions that take `low` (bfloat16) or `rows` are inlined where these are constants. With few rows most of the time goes
   into reading weights, keys and values from memory, so what comes next is fetched into the second-level cache meanwhile. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDTH 16
#define LANES(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#elif defined(__AVX__)
#define WIDTH 8
#define LANES(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#else
#define WIDTH 4
#define LANES(a, b, c, d) a, b, c, d
#endif

#if defined(__x86_64__) && !defined(__AVX512F__)
#define ROWS 3 /* computed together, against four weights or keys: as many as 16 registers hold */
#else
#define ROWS 6
#endif

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#define EACH(i, count) _Pragma("clang loop unroll(full)") for (int i = 0; i < (count); i++)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (ints){__VA_ARGS__})
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)
#endif
#define AHEAD 16384 /* bytes from the weights in use to those that are fetched: more than are used until memory answers */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * WIDTH), aligned(2), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t quad_bits __attribute__((vector_size(16)));
typedef uint16_t quad_low __attribute__((vector_size(8), aligned(2), may_alias));

/* A bfloat16 is the upper half of a float: of a vector of pairs, these are the even and the odd ones. */
INLINE vec even(bits pairs) { return (vec)(pairs << 16); }
INLINE vec odd(bits pairs) { return (vec)(pairs & 0xffff0000); }
#define ROUNDED(u) ((u) + 0x7fff + ((u) >> 16 & 1))

INLINE vec choose(ints mask, vec a, vec b) { return (vec)(((ints)a & mask) | ((ints)b & ~mask)); }

INLINE void fetch(const char *p, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* total + a b; of bfloat16, both of each pair. */
INLINE vec add_product(vec total, bits a, bits b, int low) {
    if (!low) return total + (vec)a * (vec)b;
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
    return total + even(a) * even(b) + odd(a) * odd(b);
#endif
}

/* The sums of four vectors, which are transposed while they are added, in every group of four lanes. */
INLINE quad sums(const vec v[4]) {
    vec a = SHUFFLE(v[0], v[1], LANES(0, WIDTH, 1, WIDTH + 1)) + SHUFFLE(v[0], v[1], LANES(2, WIDTH + 2, 3, WIDTH + 3));
    vec b = SHUFFLE(v[2], v[3], LANES(0, WIDTH, 1, WIDTH + 1)) + SHUFFLE(v[2], v[3], LANES(2, WIDTH + 2, 3, WIDTH + 3));
    union { vec all; quad part[WIDTH / 4]; } sum;
    sum.all = SHUFFLE(a, b, LANES(0, 1, WIDTH, WIDTH + 1)) + SHUFFLE(a, b, LANES(2, 3, WIDTH + 2, WIDTH + 3));
    quad total = sum.part[0];
    for (int i = 1; i < WIDTH / 4; i++) total += sum.part[i];
    return total;
}

/* dot[r][n] = x[r] w[n] over `bytes` of each, for rows of x that are `ldx` bytes apart. At every step the next `each` bytes
   from `ahead` on are fetched. */
INLINE void dots(const char *x, long ldx, const char *const w[4], long bytes, quad *dot, const char *ahead, long each, int rows,
                 int low) {
    vec total[ROWS][4];
    EACH(r, rows) EACH(n, 4) total[r][n] = (vec){0};
    for (long k = 0; k < bytes; k += 4 * WIDTH, ahead += each) {
        bits a[ROWS];
        fetch(ahead, each);
        /* Volatile, or else compilers read them again for each product, which costs a third of the speed. */
        EACH(r, rows) a[r] = *(const volatile bits *)(x + r * ldx + k);
        EACH(n, 4) {
            bits b = *(const volatile bits *)(w[n] + k);
            EACH(r, rows) total[r][n] = add_product(total[r][n], a[r], b, low);
        }
    }
    EACH(r, rows) dot[r] = sums(total[r]);
}

/* CALL(rows), with the number of rows a constant. */
#if ROWS == 3
#define WITH_ROWS(rows) switch (rows) { case 1: CALL(1); break; case 2: CALL(2); break; default: CALL(3); }
#else
#define WITH_ROWS(rows)                                                                                                 \
    switch (rows) {                                                                                                     \
    case 1: CALL(1); break; case 2: CALL(2); break; case 3: CALL(3); break; case 4: CALL(4); break;                     \
    case 5: CALL(5); break; default: CALL(6);                                                                           \
    }
#endif

/* Columns n to n + 3 of the product below. */
INLINE void product_columns(const char *x, long ldx, const char *w, char *out, long ldo, long M, long N, long K, long n,
                            int low, int low_out) {
    long size = low ? 2 : 4, bytes = K * size, blocks = (M + ROWS - 1) / ROWS, at_once = (M + blocks - 1) / blocks;
    long count = N - n < 4 ? N - n : 4, each = (16 * WIDTH / blocks + 63) / 64 * 64;
    const char *row[4], *ahead = w + n * bytes + AHEAD;
    EACH(i, 4) row[i] = w + (n + (i < count ? i : count - 1)) * bytes;
    for (long m = 0; m < M; m += at_once, ahead += each * (bytes / (4 * WIDTH))) {
        quad dot[ROWS];
        long rows = M - m < at_once ? M - m : at_once;
#define CALL(rows) dots(x + m * ldx * size, ldx * size, row, bytes, dot, ahead, each, rows, low)
        WITH_ROWS(rows)
#undef CALL
        for (int r = 0; r < rows; r++) {
            char *to = out + ((m + r) * ldo + n) * (low_out ? 2 : 4);
            quad_low half = __builtin_convertvector(ROUNDED((quad_bits)dot[r]) >> 16, quad_low);
            if (count < 4) memcpy(to, low_out ? (void *)&half : (void *)&dot[r], count * (low_out ? 2 : 4));
            else if (low_out) *(quad_low *)to = half;
            else *(quad *)to = dot[r];
        }
    }
}

/* out[M, N] = x[M, K] w[N, K]^T. x and w are bfloat16 if `low`, out if `low_out`, else float32. Rows of x and of out are `ldx`
   and `ldo` elements apart, those of w lie without gaps, and K is a multiple of multiple(). */
void product(const char *x, long ldx, const char *w, char *out, long ldo, long M, long N, long K, int threads, int low,
             int low_out) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && N * K > 65536)
    for (long n = 0; n < N; n += 4) {
        /* Constants again, which a parallel region turns into variables. */
        if (low) product_columns(x, ldx, w, out, ldo, M, N, K, n, 1, low_out);
        else product_columns(x, ldx, w, out, ldo, M, N, K, n, 0, low_out);
    }
}

/* exp(x) for x <= 0, but not below 1e-38: 2^i (1 + r + r^2/2 + ...) with |r| <= ln(2)/2; relative error below 2e-7. NaN stays
   NaN. */
INLINE vec exponential(vec x) {
    x = choose(x < -87.0f, (vec){0} - 87.0f, x);
    /* Adding 1.5 2^23 rounds to an integer and leaves it in the lowest bits. */
    vec shifted = x * 1.44269504f + 12582912.0f, i = shifted - 12582912.0f;
    vec r = x - i * 0.693359375f + i * 2.12194440e-4f;
    vec y = ((((r * (1.0f / 720) + 1.0f / 120) * r + 1.0f / 24) * r + 1.0f / 6) * r + 0.5f) * r;
    return ((y + 1.0f) * r + 1.0f) * (vec)(((ints)shifted + 127) << 23);
}

/* score[t] = exp(scale (score[t] - the largest)) for t < length; returns their sum. Writes to the next multiple of WIDTH. */
INLINE float softmax(float *score, long length, float scale) {
    long padded = (length + WIDTH - 1) / WIDTH * WIDTH;
    float top = score[0], sum = 0;
    for (long t = length; t < padded; t++) score[t] = -INFINITY;
    vec most = (vec){0} + top, total = {0};
    for (long t = 0; t < padded; t += WIDTH) most = choose(*(vec *)(score + t) > most, *(vec *)(score + t), most);
    for (int i = 0; i < WIDTH; i++) top = most[i] > top ? most[i] : top;
    for (long t = 0; t < padded; t += WIDTH) total += *(vec *)(score + t) = exponential((*(vec *)(score + t) - top) * scale);
    for (int i = 0; i < WIDTH; i++) sum += total[i];
    return sum;
}

/* Up to ROWS queries of one slot, in the order of their positions: row r sees keys first[r] to last[r]. */
struct queries {
    const char *q[ROWS];
    char *out[ROWS];
    long first[ROWS], last[ROWS];
    float factor[ROWS], *score; /* scratch [ROWS, room], and behind it what the rows of q hold */
    long room;
};

/* out[r] = factor[r] sum_t score[r][t] v[t], in `cols` vectors of columns from byte d on. Fetches `ahead`, if given. */
INLINE void mix(struct queries *s, const char *v, long length, long bytes, long d, const char *ahead, int rows, int cols,
                int low) {
    vec total[ROWS][4];
    EACH(r, rows) EACH(n, cols) total[r][n] = (vec){0};
    for (long t = 0; t < length; t++) {
        vec value[4];
        if (ahead) fetch(ahead + t * bytes + d, cols * WIDTH * (low ? 2 : 4));
        EACH(n, cols / 2) {
            const bits *p = (const bits *)(v + t * bytes + d) + (low ? n : 2 * n);
            value[2 * n] = low ? even(*p) : (vec)*p, value[2 * n + 1] = low ? odd(*p) : (vec)p[1];
        }
        EACH(r, rows) EACH(n, cols) total[r][n] += s->score[r * s->room + t] * value[n];
    }
    EACH(r, rows) EACH(n, cols / 2) {
        bits a = (bits)(total[r][2 * n] * s->factor[r]), b = (bits)(total[r][2 * n + 1] * s->factor[r]);
        bits *p = (bits *)(s->out[r] + d) + (low ? n : 2 * n);
        if (low) *p = ROUNDED(a) >> 16 | (ROUNDED(b) & 0xffff0000);
        else p[0] = a, p[1] = b;
    }
}

/* Attention of `rows` queries over keys k and values v of one head, rows of `bytes`. The next head's keys are at `next`; it is
   null if k and v are in cache because others have just read them. */
INLINE void attend_rows(struct queries *s, const char *k, const char *v, long bytes, float scale, const char *next, int rows,
                        int low) {
    long first = s->first[0], length = s->last[rows - 1] - first + 1, d = 0;
    char *q = (char *)(s->score + ROWS * s->room);
    k += first * bytes, v += first * bytes, next += next ? first * bytes : 0;
    for (int r = 0; r < rows; r++) memcpy(q + r * bytes, s->q[r], bytes);
    for (long t = 0; t < length; t += 4) {
        quad dot[ROWS];
        const char *row[4];
        EACH(n, 4) row[n] = k + (t + n < length ? t + n : length - 1) * bytes;
        dots(q, bytes, row, bytes, dot, v + t * bytes, next ? 16 * WIDTH : 0, rows, low);
        EACH(r, rows) *(quad *)(s->score + r * s->room + t) = dot[r];
    }
    for (int r = 0; r < rows; r++) {
        float *score = s->score + r * s->room;
        long from = s->first[r] - first, count = s->last[r] - s->first[r] + 1;
        s->factor[r] = 1 / softmax(score + from, count, scale);
        for (long t = 0; t < from; t++) score[t] = 0;
        for (long t = from + count; t < length; t++) score[t] = 0;
    }
    for (long four = 4 * WIDTH * (low ? 2 : 4); d + four <= bytes; d += four) mix(s, v, length, bytes, d, next, rows, 4, low);
    for (; d < bytes; d += 2 * WIDTH * (low ? 2 : 4)) mix(s, v, length, bytes, d, next, rows, 2, low);
}

/* Whether token i follows token i - 1 in one response and is computed together with it. */
INLINE int joins(const int64_t *slot, const int64_t *at, long i) {
    return i > 0 && slot[i] == slot[i - 1] && at[i] == at[i - 1] + 1 && at[i] % ROWS;
}

/* Tokens i to i + tokens - 1, which join, over head h of their slot; `cold` if nobody before them was in it. */
INLINE void attend_tokens(const char *q, const long *stride, const char *k, const char *v, const int64_t *at, char *out,
                          long i, long tokens, long h, long heads, long group, long D, long capacity, float scale,
                          long window, int cold, int low) {
    long size = low ? 2 : 4, bytes = D * size;
    const char *next = cold ? k + capacity * bytes : 0;
    struct queries s = {.room = (at[i] + tokens) / 16 * 16 + 32};
    s.score = malloc(ROWS * (sizeof(float) * s.room + bytes));
    for (long row = 0; row < tokens * group; row += ROWS, next = 0) {
        int rows = 0;
        for (; rows < ROWS && row + rows < tokens * group; rows++) {
            long j = i + (row + rows) / group, g = h * group + (row + rows) % group;
            s.q[rows] = q + (j * stride[0] + g * stride[1]) * size;
            s.out[rows] = out + (j * heads * group + g) * bytes;
            s.first[rows] = window > 0 && at[j] >= window ? at[j] - window + 1 : 0;
            s.last[rows] = at[j];
        }
#define CALL(rows) attend_rows(&s, k, v, bytes, scale, next, rows, low)
        WITH_ROWS(rows)
#undef CALL
    }
    free(s.score);
}

/* Store the keys and values of N tokens at position at[i] of slot slot[i], then attend with all query heads, of which `group`
   share a key head: out[i] = softmax(scale q[i] k^T) v over the last `window` positions up to at[i], or over all if that is 0.
   `stride` holds the elements between tokens and between heads of q, of key and of value; keys and values are
   [slots, heads, capacity, D], out is [N, heads * group, D]. D is a multiple of multiple(). */
void attend(const char *q, const char *key, const char *value, const long *stride, char *keys, char *values,
            const int64_t *slot, const int64_t *at, char *out, long N, long heads, long group, long D, long capacity,
            float scale, long window, int threads, int low) {
    long size = low ? 2 : 4, bytes = D * size, head = capacity * bytes;
    for (long i = 0; i < N; i++)
        for (long h = 0; h < heads; h++) {
            long to = (slot[i] * heads + h) * head + at[i] * bytes;
            memcpy(keys + to, key + (i * stride[2] + h * stride[3]) * size, bytes);
            memcpy(values + to, value + (i * stride[4] + h * stride[5]) * size, bytes);
        }
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long i = 0; i < N; i++)
        for (long h = 0; h < heads; h++) {
            if (joins(slot, at, i)) continue;
            long tokens = 1, place = (slot[i] * heads + h) * head;
            const char *k = keys + place, *v = values + place;
            int cold = i == 0 || slot[i] != slot[i - 1];
            while (i + tokens < N && joins(slot, at, i + tokens)) tokens++;
            if (low) attend_tokens(q, stride, k, v, at, out, i, tokens, h, heads, group, D, capacity, scale, window, cold, 1);
            else attend_tokens(q, stride, k, v, at, out, i, tokens, h, heads, group, D, capacity, scale, window, cold, 0);
        }
}

int multiple(void) { return 2 * WIDTH; }
