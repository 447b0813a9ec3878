// One new frame through a decoder and its head, for CPU. fused_build.py compiles it at first use.
//
// At batch 1 a frame takes as long as reading the weights once. So all of it is one parallel
// region, weights are read in order from where they lie, and each phase ends in a barrier.
//
// A row's result depends neither on its neighbours nor on the number of threads: every
// (row, output) pair has an accumulator of its own that runs over the inputs in the same order,
// and work is divided over outputs and heads, never over a sum. It must be compiled without
// -ffast-math and with -ffp-contract=off: a compiler that may choose where to fuse a product with
// a sum chooses differently for different tiles. Where it pays, `fma` is called by name.
//
// B rows, D model width, H heads, K = D / H, F width inside the feed-forward, V outputs.
#include <omp.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "fused_vectors.h"

// ---- What Python passes: the same fields in the same order stand in fused_build.py ----

enum Format : int64_t { FLOAT32, BFLOAT16, INT8, INT4 };

struct Linear {
    const uint8_t* weight;  // (outputs, inputs), rows of `row_bytes`
    const void* scales;     // INT8: float32 (outputs); INT4: bfloat16 (outputs, inputs / 32)
    const float* bias;      // (outputs) or null
    int64_t inputs, outputs, row_bytes, format;
};

struct Norm {
    const float *gain, *shift;  // (D); no gain: not even normalised
    double eps;
};

struct Layer {
    Norm before_attention;
    Linear qkv, out;
    Norm before_feed_forward;
    Linear up, down;
};

struct Frame {
    int64_t B, D, H, F, V, num_layers, max_len, num_threads;
    int64_t residual_is_normed;  // layers that normalise last add to what was normalised
    int64_t cache_is_bfloat16;
    const Layer* layers;
    Norm before_head;
    Linear head;
    const float* x;            // (B, D)
    const int64_t* positions;  // (B)
    const float *cosines, *sines;  // (B, K / 2) by which queries and keys are turned, or null
    void* cache;               // (num_layers, 2, B, H, max_len, K)
    float* logits;             // (B, V)
};

namespace {

// ---- Threads ----

// Waits for all threads: busily for some microseconds, then asleep. OpenMP's own stays busy for
// milliseconds, and on a machine with other work to do it keeps the processor from the very thread
// it waits for: with one foreign process on two cores a frame took 370 ms instead of 32.
class Barrier {
   public:
    void wait() {
        int phase = phase_.load();
        if (arrived_.fetch_add(1) + 1 == omp_get_num_threads()) {
            arrived_.store(0);
            phase_.store(phase + 1);
            wake();
        } else {
            for (int i = 0; i < 1000 && phase_.load() == phase; i++) breathe();
            while (phase_.load() == phase) sleep(phase);
        }
    }

   private:
    std::atomic<int> arrived_{0}, phase_{0};

    static void breathe() {
#ifdef __x86_64__
        __builtin_ia32_pause();
#endif
    }
#ifdef __linux__
    void wake() { syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
    void sleep(int phase) {
        syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
    }
#else
    void wake() {}
    void sleep(int) { std::this_thread::yield(); }
#endif
};

// ---- Weights: how each format becomes floats ----

struct Float32 {  // PARTS vectors, read from BYTES bytes of a row
    static constexpr int PARTS = 1;
    static constexpr int BYTES = 4 * LANES;
    static void read(const Linear& w, int64_t o, int64_t i, int64_t count, Floats* parts) {
        parts[0] = floats((const float*)(w.weight + o * w.row_bytes) + i, count);
    }
    static float scale(const Linear&, int64_t) { return 1; }
};

struct BFloat16 {
    static constexpr int PARTS = 1;
    static constexpr int BYTES = 2 * LANES;
    static void read(const Linear& w, int64_t o, int64_t i, int64_t count, Floats* parts) {
        parts[0] = floats((const uint16_t*)(w.weight + o * w.row_bytes) + i, count);
    }
    static float scale(const Linear&, int64_t) { return 1; }
};

struct Int8 {
    static constexpr int PARTS = 1;
    static constexpr int BYTES = LANES;
    static void read(const Linear& w, int64_t o, int64_t i, int64_t count, Floats* parts) {
        auto row = (const int8_t*)(w.weight + o * w.row_bytes);
        parts[0] = __builtin_convertvector(widen(load<Bytes>(row + i, count)), Floats);
    }
    static float scale(const Linear& w, int64_t o) { return ((const float*)w.scales)[o]; }
};

struct Int4 {  // 16 bytes hold 32 inputs: the first 16 in the low halves, the others in the high
    static constexpr int PARTS = 32 / LANES;
    static constexpr int BYTES = 16;
    static void read(const Linear& w, int64_t o, int64_t i, int64_t, Floats* parts) {
        float scale = from_bfloat16(((const uint16_t*)w.scales)[o * (w.inputs / 32) + i / 32]);
        for (int part = 0; part < PARTS / 2; part++) {
            auto group = w.weight + o * w.row_bytes + i / 2 + part * LANES;
            Ints pair = widen(load<UBytes>(group));
            parts[part] = stretched(pair & 15, scale);
            parts[part + PARTS / 2] = stretched(pair >> 4, scale);
        }
    }
    static Floats stretched(Ints steps, float scale) {
        return fma(__builtin_convertvector(steps, Floats), all(scale), all(-8 * scale));
    }
    static float scale(const Linear&, int64_t) { return 1; }
};

// ---- Linear layers ----

// How far ahead weights are asked for. A thread's weights lie in one piece, but the processor's own
// prefetching starts anew at every page. Measured: without it int8 takes 1.7 times as long.
constexpr int64_t PREFETCH_BYTES = 16384;

// A tile's outputs and rows: without AVX-512, 16 registers must hold its sums.
constexpr int OUTPUTS = LANES == 16 ? 4 : 2, ROWS = 4;

// Rows of activations, `stride` floats apart; inputs are padded with zeros to whole vectors.
struct Rows {
    float* data;
    int64_t stride;
    float* operator[](int64_t row) const { return data + row * stride; }
};

enum class Then { STORE, RELU, ADD };  // what becomes of a product

struct Target {
    Rows y, base;  // `base`: what is added to, for ADD
    Then then;
    void put(int64_t row, int64_t o, float value) const {
        if (then == Then::RELU) value = std::max(value, 0.0f);
        if (then == Then::ADD) value += base[row][o];
        y[row][o] = value;
    }
};

// `NO` outputs of `NR` rows at once: a weight is read once for all rows, an activation for all
// outputs. Whatever NO and NR, each sum runs over the inputs in the same order.
template <class Format, int NO, int NR>
struct Tile {
    Floats sums[NO][NR] = {};

    // Inputs from i on: whole vectors, or the last `count`.
    inline void add(const Linear& w, int64_t o, Rows x, int64_t row, int64_t i, int64_t count) {
        Floats weights[NO][Format::PARTS];
        for (int k = 0; k < NO; k++) Format::read(w, o + k, i, count, weights[k]);
        for (int part = 0; part < Format::PARTS; part++)
            for (int r = 0; r < NR; r++) {
                Floats activations = floats(x[row + r] + i + part * LANES);
                for (int k = 0; k < NO; k++)
                    sums[k][r] = fma(weights[k][part], activations, sums[k][r]);
            }
    }
};

template <class Format, int NO, int NR>
void tile(const Linear& w, int64_t o, Rows x, int64_t row, const Target& target) {
    constexpr int STEP = Format::PARTS * LANES;
    Tile<Format, NO, NR> tile;
    const uint8_t* ahead = w.weight + o * w.row_bytes + PREFETCH_BYTES;
    int64_t i = 0;
    for (; i + STEP <= w.inputs; i += STEP) {
        if (row == 0)  // later rows find the weights in the processor's cache
            for (int line = 0; line < NO * Format::BYTES; line += 64)
                __builtin_prefetch(ahead + line);
        ahead += NO * Format::BYTES;
        tile.add(w, o, x, row, i, STEP);
    }
    if (i < w.inputs) tile.add(w, o, x, row, i, w.inputs - i);
    for (int k = 0; k < NO; k++)
        for (int r = 0; r < NR; r++) {
            float value = sum(tile.sums[k][r]) * Format::scale(w, o + k);
            target.put(row + r, o + k, w.bias ? value + w.bias[o + k] : value);
        }
}

template <class Format, int NO, int NR = ROWS>
void all_rows(const Linear& w, int64_t o, Rows x, int64_t row, int64_t B, const Target& target) {
    for (; row + NR <= B; row += NR) tile<Format, NO, NR>(w, o, x, row, target);
    if constexpr (NR > 1)
        if (row < B) all_rows<Format, NO, NR / 2>(w, o, x, row, B, target);
}

template <class Format>
void outputs(const Linear& w, Rows x, int64_t B, const Target& target) {
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t blocks = (w.outputs + OUTPUTS - 1) / OUTPUTS;
    int64_t o = blocks * thread / threads * OUTPUTS;
    int64_t end = std::min(blocks * (thread + 1) / threads * OUTPUTS, w.outputs);
    for (; o + OUTPUTS <= end; o += OUTPUTS) all_rows<Format, OUTPUTS>(w, o, x, 0, B, target);
    for (; o < end; o++) all_rows<Format, 1>(w, o, x, 0, B, target);
}

// This thread's share of the outputs of all rows.
void linear(const Linear& w, Rows x, int64_t B, const Target& target) {
    switch (w.format) {
        case FLOAT32: return outputs<Float32>(w, x, B, target);
        case BFLOAT16: return outputs<BFloat16>(w, x, B, target);
        case INT8: return outputs<Int8>(w, x, B, target);
        case INT4: return outputs<Int4>(w, x, B, target);
    }
}

// ---- Layer norm ----

void layer_norm(const Norm& norm, const float* x, float* y, int64_t D) {
    Floats total = {}, squares = {};
    for (int64_t i = 0; i < D; i += LANES) total += floats(x + i);
    float mean = sum(total) / D;
    for (int64_t i = 0; i < D; i += LANES) {
        Floats centred = floats(x + i) - mean;
        for (int64_t lane = D - i; lane < LANES; lane++) centred[lane] = 0;  // the padding
        squares += centred * centred;
    }
    float factor = 1 / std::sqrt(sum(squares) / D + float(norm.eps));
    for (int64_t i = 0; i < D; i++) y[i] = (x[i] - mean) * factor * norm.gain[i] + norm.shift[i];
}

void layer_norms(const Norm& norm, Rows x, Rows y, const Frame& frame) {
    for (int64_t b = 0; b < frame.B; b++)
        if (norm.gain)
            layer_norm(norm, x[b], y[b], frame.D);
        else
            memcpy(y[b], x[b], frame.D * sizeof(float));
}

// ---- Memory ----

struct alignas(64) Line {
    float values[16];
};

// Activations, zero at first and so in their padding.
struct Buffer {
    std::vector<Line> lines;
    Rows rows;
    Buffer(int64_t num_rows, int64_t width)
        : lines((num_rows * padded(width) + 15) / 16), rows{lines[0].values, padded(width)} {}
};

struct Activations {  // of one frame, shared by the threads
    Barrier barrier;
    Buffer residual, qkv, heads, hidden;
    explicit Activations(const Frame& f)
        : residual(f.B, f.D), qkv(f.B, 3 * f.D), heads(f.B, f.D), hidden(f.B, f.F) {}
};

// ---- Attention ----

// Component i of a head turned together with the one half a head away; see Rotation in attention.py.
struct Rotation {
    const float *cosines, *sines;
    int64_t half;
    float turned(const float* head, int64_t i) const {
        if (!cosines) return head[i];
        if (i < half) return head[i] * cosines[i] - head[i + half] * sines[i];
        return head[i - half] * sines[i - half] + head[i] * cosines[i - half];
    }
};

struct Attention {  // a thread's own: one head of one row at a time
    Buffer query, scores, mix;
    Attention(int64_t K, int64_t longest) : query(1, K), scores(1, longest), mix(1, K) {}

    // `keys` and `values` (n, K) of one head; the newest frame's are at n - 1 by now.
    template <class T>
    void attend(const T* keys, const T* values, int64_t n, int64_t K, float* out) {
        float total = weigh(keys, n, K);
        mix_values(values, n, K);
        for (int64_t i = 0; i < K; i++) out[i] = mix.rows[0][i] / total;
    }

    // Leaves exp(score - largest) in `scores`, and returns their sum.
    template <class T>
    float weigh(const T* keys, int64_t n, int64_t K) {
        float *q = query.rows[0], *weights = scores.rows[0];
        float largest = -INFINITY;
        for (int64_t j = 0; j < n; j++) {
            Floats product = {};
            for (int64_t i = 0; i < K; i += LANES)
                product = fma(floats(q + i), floats(keys + j * K + i, K - i), product);
            weights[j] = sum(product);
            largest = std::max(largest, weights[j]);
        }
        std::fill(weights + n, weights + padded(n), -INFINITY);
        Floats total = {};
        for (int64_t j = 0; j < n; j += LANES) {
            Floats powers = exponential(floats(weights + j) - largest);
            memcpy(weights + j, &powers, sizeof(powers));
            total += powers;
        }
        return sum(total);
    }

    // The sum of `values`, each times its weight; some frames at a time, to stay in registers.
    template <class T>
    void mix_values(const T* values, int64_t n, int64_t K) {
        const float* weights = scores.rows[0];
        float* sums = mix.rows[0];
        std::fill(sums, sums + padded(K), 0.0f);
        for (int64_t j = 0; j < n; j += 8)
            for (int64_t i = 0; i < K; i += LANES) {
                Floats part = floats(sums + i);
                for (int64_t k = j; k < std::min(j + 8, n); k++)
                    part = fma(all(weights[k]), floats(values + k * K + i, K - i), part);
                memcpy(sums + i, &part, sizeof(part));
            }
    }
};

// All heads of all rows, shared out among the threads; writes the new keys and values first.
template <class T>
void attention(const Frame& f, int64_t layer, Activations& shared, Attention& own) {
    int64_t H = f.H, K = f.D / H, plane = f.B * H * f.max_len * K;
    T* cache = (T*)f.cache + layer * 2 * plane;
#pragma omp for schedule(dynamic) nowait
    for (int64_t task = 0; task < f.B * H; task++) {
        int64_t b = task / H, head = task % H, position = f.positions[b];
        T* keys = cache + task * f.max_len * K;
        T* values = keys + plane;
        const float* q = shared.qkv.rows[b] + head * K;
        Rotation rotation{f.cosines, f.sines, K / 2};
        if (f.cosines) rotation = {f.cosines + b * (K / 2), f.sines + b * (K / 2), K / 2};
        for (int64_t i = 0; i < K; i++) {
            own.query.rows[0][i] = rotation.turned(q, i) / std::sqrt(float(K));
            store(keys + position * K + i, rotation.turned(q + f.D, i));
            store(values + position * K + i, q[2 * f.D + i]);
        }
        own.attend(keys, values, position + 1, K, shared.heads.rows[b] + head * K);
    }
}

// ---- The frame ----

struct Scratch {  // a thread's own
    Attention attention;
    Buffer normed;  // each thread normalises for itself: cheaper than a barrier
    Scratch(const Frame& f, int64_t longest) : attention(f.D / f.H, longest), normed(f.B, f.D) {}
};

void decode(const Frame& f, Activations& shared, Scratch& own) {
    Rows x = shared.residual.rows, normed = own.normed.rows, qkv = shared.qkv.rows;
    Rows heads = shared.heads.rows, hidden = shared.hidden.rows;
    Rows base = f.residual_is_normed ? normed : x;
    for (int64_t i = 0; i < f.num_layers; i++) {
        const Layer& layer = f.layers[i];
        layer_norms(layer.before_attention, x, normed, f);
        linear(layer.qkv, normed, f.B, {qkv, qkv, Then::STORE});
        shared.barrier.wait();
        if (f.cache_is_bfloat16)
            attention<uint16_t>(f, i, shared, own.attention);
        else
            attention<float>(f, i, shared, own.attention);
        shared.barrier.wait();
        linear(layer.out, heads, f.B, {x, base, Then::ADD});
        shared.barrier.wait();
        layer_norms(layer.before_feed_forward, x, normed, f);
        linear(layer.up, normed, f.B, {hidden, hidden, Then::RELU});
        shared.barrier.wait();
        linear(layer.down, hidden, f.B, {x, base, Then::ADD});
        shared.barrier.wait();
    }
    layer_norms(f.before_head, x, normed, f);
    Rows logits{f.logits, f.V};
    linear(f.head, normed, f.B, {logits, logits, Then::STORE});
}
}  // namespace

// 0, or 1 where there was not enough memory; all of it is taken before the threads start.
extern "C" int valle_decode_frame(const Frame* frame) try {
    const Frame& f = *frame;
    int64_t longest = 1 + *std::max_element(f.positions, f.positions + f.B);
    Activations shared(f);
    std::vector<Scratch> own;
    own.reserve(f.num_threads);
    for (int64_t thread = 0; thread < f.num_threads; thread++) own.emplace_back(f, longest);
    for (int64_t b = 0; b < f.B; b++)
        memcpy(shared.residual.rows[b], f.x + b * f.D, f.D * sizeof(float));
#pragma omp parallel num_threads(f.num_threads)
    decode(f, shared, own[omp_get_thread_num()]);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
