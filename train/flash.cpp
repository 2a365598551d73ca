// Causal attention of fp32 heads with AVX-512, forward and backward, within lower bounds; see flash.py.
//
// Scores are made for BLOCK queries x BLOCK keys at a time, keys in rows: then the largest score, the sum and the
// bounds of a query are a column's, sixteen queries a register, and no row is ever summed up within a register.

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 64
#define LANES 16
#define VECTORS (BLOCK / LANES)

typedef int64_t i64;

// Where heads lie: a tensor (B, H, T, D) whose last dimension is contiguous.
typedef struct { float *start; i64 b, h, t; } Heads;

static inline float *at(const Heads *x, i64 b, i64 h, i64 t) { return x->start + b * x->b + h * x->h + t * x->t; }

static inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order a NaN stays one
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 720));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

// c[rows x 16 columns] (+)= a[rows x depth] * b[depth x 16 columns]; `rows` and `columns` are constants.
static inline __attribute__((always_inline)) void tile(
    const int rows, const int columns, i64 depth, const float *a, i64 a_row, i64 a_deep, const float *b, i64 b_deep,
    float *c, i64 c_row, int adds) {
    __m512 sums[8][4];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++)
            sums[i][j] = adds ? _mm512_loadu_ps(c + i * c_row + j * LANES) : _mm512_setzero_ps();
    for (i64 k = 0; k < depth; k++) {
        __m512 row[4];
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) row[j] = _mm512_loadu_ps(b + k * b_deep + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            __m512 one = _mm512_set1_ps(a[i * a_row + k * a_deep]);
#pragma GCC unroll 4
            for (int j = 0; j < columns; j++) sums[i][j] = _mm512_fmadd_ps(one, row[j], sums[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < columns; j++) _mm512_storeu_ps(c + i * c_row + j * LANES, sums[i][j]);
}

static inline __attribute__((always_inline)) void strip(
    const int columns, i64 rows, i64 depth, const float *a, i64 a_row, i64 a_deep, const float *b, i64 b_deep,
    float *c, i64 c_row, int adds) {
    i64 i = 0;
    for (; i + 6 <= rows; i += 6)
        tile(6, columns, depth, a + i * a_row, a_row, a_deep, b, b_deep, c + i * c_row, c_row, adds);
    for (; i + 4 <= rows; i += 4)
        tile(4, columns, depth, a + i * a_row, a_row, a_deep, b, b_deep, c + i * c_row, c_row, adds);
    for (; i < rows; i++)
        tile(1, columns, depth, a + i * a_row, a_row, a_deep, b, b_deep, c + i * c_row, c_row, adds);
}

// c[rows x width] (+)= a[rows x depth] * b[depth x width]; `width` is a multiple of 16, `a` may lie in any way.
static void multiply(i64 rows, i64 width, i64 depth, const float *a, i64 a_row, i64 a_deep, const float *b,
                     i64 b_deep, float *c, i64 c_row, int adds) {
    i64 j = 0;
    for (; j + 4 * LANES <= width; j += 4 * LANES)
        strip(4, rows, depth, a, a_row, a_deep, b + j, b_deep, c + j, c_row, adds);
    for (; j < width; j += LANES) strip(1, rows, depth, a, a_row, a_deep, b + j, b_deep, c + j, c_row, adds);
}

// The transpose of `rows` <= BLOCK rows, times `scale`: (depth, BLOCK), zero behind `rows`.
static void transpose(i64 rows, i64 depth, const float *x, i64 x_row, float scale, float *out) {
    if (rows < BLOCK) memset(out, 0, sizeof(float) * depth * BLOCK);
    for (i64 r = 0; r < rows; r++)
        for (i64 d = 0; d < depth; d++) out[d * BLOCK + r] = x[r * x_row + d] * scale;
}

// The first key that each of `rows` queries from `query` on may look at, and the lowest of them.
static i64 bounds(const int32_t *lows, i64 query, i64 rows, int32_t *firsts) {
    i64 lowest = query;
    for (i64 r = 0; r < BLOCK; r++) {
        firsts[r] = lows && r < rows ? lows[query + r] : (lows ? (int32_t)query : 0);
        if (r < rows && firsts[r] < lowest) lowest = firsts[r];
    }
    return lowest;
}

// Which of the queries from `query` + 16 * v on may look at `key`.
static inline __mmask16 seen(i64 key, i64 query, int v, const int32_t *firsts) {
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i queries = _mm512_add_epi32(lane, _mm512_set1_epi32((int32_t)(query + v * LANES)));
    __m512i keys = _mm512_set1_epi32((int32_t)key);
    return _mm512_cmple_epi32_mask(keys, queries) &
           _mm512_cmple_epi32_mask(_mm512_loadu_si512(firsts + v * LANES), keys);
}

// Whether every query from `query` on may look at every key of a block.
static int all_seen(i64 first, i64 keys, i64 query, i64 rows, const int32_t *firsts) {
    if (first + keys - 1 > query) return 0;
    for (i64 r = 0; r < rows; r++)
        if (firsts[r] > first) return 0;
    return 1;
}

// Scores of a block of keys become exp(score - highest). `sums` are kept relative to `highest`; what is not kept here
// has to be multiplied by `scales` for it.
static void weigh(float *scores, i64 keys, i64 first, i64 query, int masked, const int32_t *firsts, float *highest,
                  float *sums, float *scales) {
    const __m512 lowest = _mm512_set1_ps(-1e30f);
    for (int v = 0; v < VECTORS; v++) {
        float *column = scores + v * LANES;
        __m512 before = _mm512_loadu_ps(highest + v * LANES), top = before;
        for (i64 k = 0; k < keys; k++) {
            __m512 s = _mm512_loadu_ps(column + k * BLOCK);
            if (masked) {
                s = _mm512_mask_blend_ps(seen(first + k, query, v, firsts), lowest, s);
                _mm512_storeu_ps(column + k * BLOCK, s);
            }
            top = _mm512_max_ps(top, s);
        }
        __m512 scale = exponential(_mm512_sub_ps(before, top));
        __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(sums + v * LANES), scale);
        for (i64 k = 0; k < keys; k++) {
            __m512 s = _mm512_loadu_ps(column + k * BLOCK);
            __m512 p = exponential(_mm512_sub_ps(s, top));
            if (masked) p = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(s, lowest, _CMP_NLE_UQ), p);
            sum = _mm512_add_ps(sum, p);
            _mm512_storeu_ps(column + k * BLOCK, p);
        }
        _mm512_storeu_ps(highest + v * LANES, top);
        _mm512_storeu_ps(sums + v * LANES, sum);
        _mm512_storeu_ps(scales + v * LANES, scale);
    }
}

static float *scratch(i64 floats) {
    void *memory = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!memory) abort();  // 100 KB
    return (float *)memory;
}

// out and log_sums (B, H, T) of attention. `sizes`: B, H, heads of keys, T, D. `strides`: b, h, t of q, k, v, out.
extern "C" void attend(float *q_, float *k_, float *v_, const int32_t *lows, float *out_, float *log_sums, const i64 *sizes,
            const i64 *strides, float scale, int threads) {
    const i64 B = sizes[0], H = sizes[1], G = H / sizes[2], T = sizes[3], D = sizes[4], blocks = (T + BLOCK - 1) / BLOCK;
    const Heads q = {q_, strides[0], strides[1], strides[2]}, k = {k_, strides[3], strides[4], strides[5]},
                v = {v_, strides[6], strides[7], strides[8]}, out = {out_, strides[9], strides[10], strides[11]};
#pragma omp parallel num_threads(threads)
    {
        float *queries = scratch(D * BLOCK), *scores = scratch(BLOCK * BLOCK), *sum_out = scratch(BLOCK * D);
        float highest[BLOCK], sums[BLOCK], scales[BLOCK];
        int32_t firsts[BLOCK];
#pragma omp for schedule(dynamic)
        for (i64 task = 0; task < B * H * blocks; task++) {
            const i64 query = (blocks - 1 - task % blocks) * BLOCK, h = task / blocks % H, b = task / blocks / H;
            const i64 rows = T - query < BLOCK ? T - query : BLOCK;
            const i64 lowest = bounds(lows ? lows + b * T : NULL, query, rows, firsts);
            transpose(rows, D, at(&q, b, h, query), q.t, scale, queries);
            memset(sum_out, 0, sizeof(float) * BLOCK * D);
            for (int r = 0; r < BLOCK; r++) highest[r] = -1e30f, sums[r] = 0.0f;
            for (i64 first = lows ? lowest : 0; first < query + rows; first += BLOCK) {
                const i64 keys = query + rows - first < BLOCK ? query + rows - first : BLOCK;
                const int masked = !all_seen(first, keys, query, rows, firsts);
                multiply(keys, BLOCK, D, at(&k, b, h / G, first), k.t, 1, queries, BLOCK, scores, BLOCK, 0);
                weigh(scores, keys, first, query, masked, firsts, highest, sums, scales);
                for (i64 r = 0; r < rows; r++)
                    for (i64 d = 0; d < D; d += LANES)
                        _mm512_storeu_ps(sum_out + r * D + d, _mm512_mul_ps(_mm512_set1_ps(scales[r]),
                                                                            _mm512_loadu_ps(sum_out + r * D + d)));
                multiply(rows, D, keys, scores, 1, BLOCK, at(&v, b, h / G, first), v.t, sum_out, D, 1);
            }
            for (i64 r = 0; r < rows; r++) {
                for (i64 d = 0; d < D; d++) at(&out, b, h, query + r)[d] = sum_out[r * D + d] / sums[r];
                log_sums[(b * H + h) * T + query + r] = highest[r] + logf(sums[r]);
            }
        }
        free(queries), free(scores), free(sum_out);
    }
}

// The gradients of q, k and v; those of k and v must be zero before. `strides` of q, k, v, out, its gradient, and the
// three gradients.
extern "C" void attend_backward(float *q_, float *k_, float *v_, const int32_t *lows, float *out_, const float *log_sums,
                     float *gradient_, float *dq_, float *dk_, float *dv_, const i64 *sizes, const i64 *strides,
                     float scale, int threads) {
    const i64 B = sizes[0], H = sizes[1], K = sizes[2], G = H / K, T = sizes[3], D = sizes[4];
    const i64 *s = strides;
    const Heads q = {q_, s[0], s[1], s[2]}, k = {k_, s[3], s[4], s[5]}, v = {v_, s[6], s[7], s[8]},
                out = {out_, s[9], s[10], s[11]}, gradient = {gradient_, s[12], s[13], s[14]},
                dq = {dq_, s[15], s[16], s[17]}, dk = {dk_, s[18], s[19], s[20]}, dv = {dv_, s[21], s[22], s[23]};
#pragma omp parallel num_threads(threads)
    {
        float *queries = scratch(D * BLOCK), *gradients = scratch(D * BLOCK), *weights = scratch(BLOCK * BLOCK),
              *changes = scratch(BLOCK * BLOCK), *sum_q = scratch(BLOCK * D);
        float means[BLOCK], logs[BLOCK];
        int32_t firsts[BLOCK];
#pragma omp for schedule(dynamic)
        for (i64 task = 0; task < B * K; task++)
            for (i64 h = task % K * G; h < (task % K + 1) * G; h++)
                for (i64 query = 0; query < T; query += BLOCK) {
                    const i64 b = task / K, rows = T - query < BLOCK ? T - query : BLOCK;
                    const i64 lowest = bounds(lows ? lows + b * T : NULL, query, rows, firsts);
                    const float *q_rows = at(&q, b, h, query), *g_rows = at(&gradient, b, h, query),
                                *out_rows = at(&out, b, h, query);
                    transpose(rows, D, q_rows, q.t, scale, queries);
                    transpose(rows, D, g_rows, gradient.t, 1.0f, gradients);
                    memset(sum_q, 0, sizeof(float) * BLOCK * D);
                    for (i64 r = 0; r < BLOCK; r++) {
                        means[r] = 0.0f, logs[r] = r < rows ? log_sums[(b * H + h) * T + query + r] : 0.0f;
                        if (r >= rows) continue;
                        __m512 mean = _mm512_setzero_ps();
                        for (i64 d = 0; d < D; d += LANES)
                            mean = _mm512_fmadd_ps(_mm512_loadu_ps(g_rows + r * gradient.t + d),
                                                   _mm512_loadu_ps(out_rows + r * out.t + d), mean);
                        means[r] = _mm512_reduce_add_ps(mean);
                    }
                    for (i64 first = lows ? lowest : 0; first < query + rows; first += BLOCK) {
                        const i64 keys = query + rows - first < BLOCK ? query + rows - first : BLOCK;
                        const int masked = !all_seen(first, keys, query, rows, firsts);
                        const float *k_rows = at(&k, b, h / G, first), *v_rows = at(&v, b, h / G, first);
                        multiply(keys, BLOCK, D, k_rows, k.t, 1, queries, BLOCK, weights, BLOCK, 0);
                        multiply(keys, BLOCK, D, v_rows, v.t, 1, gradients, BLOCK, changes, BLOCK, 0);
                        for (i64 j = 0; j < keys; j++)
                            for (int u = 0; u < VECTORS; u++) {
                                float *w = weights + j * BLOCK + u * LANES, *c = changes + j * BLOCK + u * LANES;
                                __m512 p = exponential(_mm512_sub_ps(_mm512_loadu_ps(w), _mm512_loadu_ps(logs + u * LANES)));
                                if (masked) p = _mm512_maskz_mov_ps(seen(first + j, query, u, firsts), p);
                                _mm512_storeu_ps(w, p);
                                __m512 change = _mm512_sub_ps(_mm512_loadu_ps(c), _mm512_loadu_ps(means + u * LANES));
                                _mm512_storeu_ps(c, _mm512_mul_ps(_mm512_mul_ps(p, change), _mm512_set1_ps(scale)));
                            }
                        multiply(keys, D, rows, weights, BLOCK, 1, g_rows, gradient.t, at(&dv, b, h / G, first), dv.t, 1);
                        multiply(keys, D, rows, changes, BLOCK, 1, q_rows, q.t, at(&dk, b, h / G, first), dk.t, 1);
                        multiply(rows, D, keys, changes, 1, BLOCK, k_rows, k.t, sum_q, D, 1);
                    }
                    for (i64 r = 0; r < rows; r++) memcpy(at(&dq, b, h, query + r), sum_q + r * D, sizeof(float) * D);
                }
        free(queries), free(gradients), free(weights), free(changes), free(sum_q);
    }
}
