// Vectors of LANES floats and what flash.cpp does with them: 16 by AVX-512, 8 by AVX2. COLUMNS vectors beside each
// other, six rows of them, fill the registers; BLOCK is a multiple of their width.

#include <immintrin.h>
#include <stdint.h>

#define OP static inline __attribute__((always_inline))

#if LANES == 16

#define COLUMNS 4
#define BLOCK 64
typedef __m512 Vector;
typedef __m512i Integers;
typedef __mmask16 Mask;

OP Vector load(const float *x) { return _mm512_loadu_ps(x); }
OP void store(float *to, Vector x) { _mm512_storeu_ps(to, x); }
OP Vector all(float x) { return _mm512_set1_ps(x); }
OP Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
OP Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
OP Vector times(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
OP Vector times_plus(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
OP Vector minus_times(Vector c, Vector a, Vector b) { return _mm512_fnmadd_ps(a, b, c); }
OP Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }  // b, if either is a NaN
OP Vector rounded(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
OP Vector times_power_of_two(Vector x, Vector n) { return _mm512_scalef_ps(x, n); }
OP float sum_of(Vector x) { return _mm512_reduce_add_ps(x); }

OP Integers load_integers(const int32_t *x) { return _mm512_loadu_si512(x); }
OP Integers all_integers(int32_t x) { return _mm512_set1_epi32(x); }
OP Integers counted_from(int32_t x) {
    return _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), all_integers(x));
}
OP Mask are_ordered(Integers a, Integers b, Integers c) {  // a <= b <= c
    return _mm512_cmple_epi32_mask(b, c) & _mm512_cmple_epi32_mask(a, b);
}
OP Mask is_above(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }  // or is a NaN
OP Vector choose(Mask m, Vector a, Vector b) { return _mm512_mask_blend_ps(m, b, a); }
OP Vector or_zero(Mask m, Vector a) { return _mm512_maskz_mov_ps(m, a); }

#else

#define COLUMNS 2
#define BLOCK 48
typedef __m256 Vector;
typedef __m256i Integers;
typedef __m256 Mask;

OP Vector load(const float *x) { return _mm256_loadu_ps(x); }
OP void store(float *to, Vector x) { _mm256_storeu_ps(to, x); }
OP Vector all(float x) { return _mm256_set1_ps(x); }
OP Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
OP Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
OP Vector times(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
OP Vector times_plus(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
OP Vector minus_times(Vector c, Vector a, Vector b) { return _mm256_fnmadd_ps(a, b, c); }
OP Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
OP Vector rounded(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
OP Vector times_power_of_two(Vector x, Vector n) {  // n from -126 on
    __m256i exponents = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(exponents));
}
OP float sum_of(Vector x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

OP Integers load_integers(const int32_t *x) { return _mm256_loadu_si256((const __m256i *)x); }
OP Integers all_integers(int32_t x) { return _mm256_set1_epi32(x); }
OP Integers counted_from(int32_t x) {
    return _mm256_add_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), all_integers(x));
}
OP Mask are_ordered(Integers a, Integers b, Integers c) {
    __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(b, c), _mm256_cmpgt_epi32(a, b));
    return _mm256_castsi256_ps(_mm256_xor_si256(out, all_integers(-1)));
}
OP Mask is_above(Vector a, Vector b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
OP Vector choose(Mask m, Vector a, Vector b) { return _mm256_blendv_ps(b, a, m); }
OP Vector or_zero(Mask m, Vector a) { return _mm256_and_ps(m, a); }

#endif
