// Vectors of floats for fused_step.cpp: loads, conversions, sums and exp, in GCC's and Clang's own
// vector types, so that one source serves AVX-512, AVX2, NEON and what has none of them.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Floats4 __attribute__((vector_size(16)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef float Floats16 __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint16_t Shorts __attribute__((vector_size(LANES * 2)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint8_t UBytes __attribute__((vector_size(LANES)));

// Left alone, GCC widens integers in several steps: at int8 it takes four times as long.
#ifdef __AVX512F__
inline Ints widen(Bytes v) { return (Ints)_mm512_cvtepi8_epi32((__m128i)v); }
inline Ints widen(UBytes v) { return (Ints)_mm512_cvtepu8_epi32((__m128i)v); }
inline Ints widen(Shorts v) { return (Ints)_mm512_cvtepu16_epi32((__m256i)v); }
#elif defined(__AVX2__)
inline __m128i low(uint64_t eight_bytes) { return _mm_cvtsi64_si128(eight_bytes); }
inline Ints widen(Bytes v) { return (Ints)_mm256_cvtepi8_epi32(low((uint64_t)v)); }
inline Ints widen(UBytes v) { return (Ints)_mm256_cvtepu8_epi32(low((uint64_t)v)); }
inline Ints widen(Shorts v) { return (Ints)_mm256_cvtepu16_epi32((__m128i)v); }
#else
template <class Vector>
inline Ints widen(Vector v) {
    return __builtin_convertvector(v, Ints);
}
#endif

inline Floats all(float value) { return value - Floats{}; }

inline Floats fma(Floats a, Floats b, Floats c) {
#ifdef __AVX512F__
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// The first `count` elements at `source`, zeros behind; the whole vector where `count` says so.
template <class Vector, class T>
inline Vector load(const T* source, int64_t count = LANES) {
    Vector vector = {};
    if (count >= LANES)
        memcpy(&vector, source, sizeof(vector));
    else
        memcpy(&vector, source, count * sizeof(vector[0]));
    return vector;
}

inline Floats floats(const float* p, int64_t count = LANES) { return load<Floats>(p, count); }

inline Floats floats(const uint16_t* p, int64_t count = LANES) {  // bfloat16
    return (Floats)(widen(load<Shorts>(p, count)) << 16);
}

inline float from_bfloat16(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void store(float* p, float value) { *p = value; }

inline void store(uint16_t* p, float value) {  // to the nearest bfloat16, ties to even
    uint32_t bits;
    memcpy(&bits, &value, 4);
    *p = value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Halves onto halves: always the same order.
template <class Half, class Whole>
inline Half folded(Whole whole) {
    Half halves[2];
    memcpy(halves, &whole, sizeof(whole));
    return halves[0] + halves[1];
}

inline float sum(Floats4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float sum(Floats8 v) { return sum(folded<Floats4>(v)); }
inline float sum(Floats16 v) { return sum(folded<Floats8>(v)); }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// exp for x <= 0, to about 2e-7: 2^n times a polynomial in the rest. Below -87 it stays at e^-87.
inline Floats exponential(Floats x) {
    x = larger(x, all(-87));
    Ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints);  // cut towards 0: nearest
    Floats whole = __builtin_convertvector(n, Floats);
    Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
    Floats series = all(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        series = fma(series, rest, all(factor));
    return series * (Floats)((n + 127) << 23);
}

}  // namespace
