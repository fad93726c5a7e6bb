/* One step of preconditioned SGHMC (Algorithm 2) over float32 tensors, fused and without full-size temporaries.
 *
 * It mirrors `single_tensor_cv_adam` in functional.py line by line; read that first.  Built on first use by
 * kernels/native.py with the system's C compiler; where there is none, the blocked torch path does the same work.
 *
 * A tensor is walked in blocks of BLOCK weights.  Block b of m weights holds h = (m + 1) / 2 Box-Muller pairs; pair j comes from
 * counter b*BLOCK + j and writes its cosine to weight j and its sine to weight h + j.  noise.py has the same layout.
 */
#include <stdint.h>
#include <string.h>
#include <math.h>

#define BLOCK 2048

typedef struct {
    float *w;
    const float *g;
    float *v;
    float *rho;
    const float *decay;      /* per-group weight decay, or NULL for the scalar below */
    int64_t numel;
    int64_t inner;           /* group of weight i is (i / inner) % period */
    int64_t period;
    uint32_t key_prev[4];
    uint32_t key[4];
    float lr_beta2;          /* beta2 * lr */
    float beta1;
    float dual_lr;           /* 0 freezes rho */
    float inv_num_data;
    float decay_scalar;
    float alpha;
    float noise;             /* standard deviation of the injected noise, before the 1/sqrt(tau) of the exact law; 0: none */
    int32_t exact;           /* 1: noise is divided by sqrt(tau) */
    int32_t has_previous;    /* 0: no noise was injected before, key_prev is not used */
    int32_t unused;
} Job;

static inline float as_float(uint32_t x) { float f; memcpy(&f, &x, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t x; memcpy(&x, &f, 4); return x; }

/* A keyed permutation of the 32-bit integers: three multiply-xorshift rounds, a key word before each. */
static inline uint32_t hash32(uint32_t x, const uint32_t *k) {
    x ^= k[0]; x ^= x >> 17; x *= 0xed5ad4bbu;
    x += k[1]; x ^= x >> 11; x *= 0xac4c1b51u;
    x += k[2]; x ^= x >> 15; x *= 0x31848babu;
    return x ^ (x >> 14);
}

/* exp(x), relative error about 1e-7; x is clamped to [-87, 87]. A NaN comes out finite: where rho is one, v and w are too. */
static inline float exp32(float x) {
    x = 87.0f < x ? 87.0f : x;
    x = -87.0f > x ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;  /* its last bits are the integer n */
    float r = x - n * 0.693145752f;
    r -= n * 1.42860677e-6f;
    float p = 1.375140790e-3f;
    p = p * r + 8.368916341e-3f;
    p = p * r + 4.166953311e-2f;
    p = p * r + 0.1666651846f;
    p = p * r + 0.4999998860f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * as_float((as_bits(shifted) << 23) + 0x3f800000u);
}

/* log(x) for normal x in (0, 1), by a polynomial for 2 artanh(s)/s on [1/sqrt(2), sqrt(2)). */
static inline float log32(float x) {
    uint32_t bits = as_bits(x) - 0x3f3504f3u;
    int32_t e = (int32_t)bits >> 23;
    float m = as_float((bits & 0x007fffffu) + 0x3f3504f3u);
    float s = (m - 1.0f) / (m + 1.0f), q = s * s;
    float p = 0.2992545249f;
    p = p * q + 0.3997480367f;
    p = p * q + 0.6666681585f;
    p = p * q + 2.0f;
    return (float)e * 0.693147181f + s * p;
}

/* sin(2 pi y) for |y| <= 1/4, by a polynomial of degree 9 whose error is 5e-9 before rounding. */
static inline float sin_turn(float y) {
    float q = y * y;
    float p = 39.6708567f;
    p = p * q - 76.5702884f;
    p = p * q + 81.6020862f;
    p = p * q - 41.3416776f;
    p = p * q + 6.28318531f;
    return y * p;
}

/* The arrays of the block after the one at work, to be fetched while there is arithmetic to do. */
typedef struct {
    const char *array[4];
    int64_t line, lines;     /* of 64 bytes: the next one to fetch, and how many there are */
} Ahead;

#define CHUNK 128            /* pairs; their radii and angles stay in the first-level cache */
#define BURST 8              /* lines of each array that are fetched a chunk: 16 chunks cover a block */

static inline void fetch(Ahead *ahead) {
    int64_t end = ahead->line + BURST < ahead->lines ? ahead->line + BURST : ahead->lines;
    for (; ahead->line < end; ahead->line++)
        for (int a = 0; a < 4; a++) __builtin_prefetch(ahead->array[a] + 64 * ahead->line, 1);
}

/* Stages in loops of their own: short dependency chains keep the processor's window full. */
static void normal_block(float *restrict out, int64_t m, uint32_t base, const uint32_t *key, Ahead *ahead) {
    int64_t h = (m + 1) / 2;
    float radius[CHUNK], turn[CHUNK];
    uint32_t k[4] = {key[0], key[1], key[2], key[3]};
    for (int64_t first = 0; first < h; first += CHUNK) {
        int64_t n = h - first < CHUNK ? h - first : CHUNK, sines = m - h - first < n ? m - h - first : n;
        float *restrict cosine = out + first, *restrict sine = out + h + first;
        uint32_t origin = base + (uint32_t)first;
        fetch(ahead);
        for (uint32_t j = 0; j < (uint32_t)n; j++) {
            uint32_t a = hash32(origin + j, k);
            uint32_t b = a + k[3];
            b ^= b >> 16; b *= 0x7feb352du; b ^= b >> 15;
            radius[j] = ((float)(int32_t)(a >> 8) + 0.5f) * 5.9604644775390625e-08f;
            turn[j] = (float)((int32_t)b >> 8) * 5.9604644775390625e-08f;
        }
        for (int64_t j = 0; j < n; j++) radius[j] = sqrtf(-2.0f * log32(radius[j]));
        for (int64_t j = 0; j < n; j++) cosine[j] = radius[j] * sin_turn(0.25f - fabsf(turn[j]));
        for (int64_t j = 0; j < sines; j++) {
            float t = turn[j], abs_t = fabsf(t);
            sine[j] = radius[j] * copysignf(sin_turn(abs_t > 0.25f ? 0.5f - abs_t : abs_t), t);
        }
    }
}

/* Writes the decay of weights [start, start + m) into out, walking the groups without a division per weight. */
static void decay_block(float *restrict out, const Job *job, int64_t start, int64_t m) {
    int64_t group = (start / job->inner) % job->period, left = job->inner - start % job->inner;
    for (int64_t i = 0; i < m;) {
        int64_t run = left < m - i ? left : m - i;
        float value = job->decay[group];
        for (int64_t j = 0; j < run; j++) out[i + j] = value;
        i += run;
        left = job->inner;
        if (++group == job->period) group = 0;
    }
}

static void step_block(const Job *job, int64_t block) {
    int64_t start = block * BLOCK, m = job->numel - start;
    if (m > BLOCK) m = BLOCK;
    float previous[BLOCK], noise[BLOCK], decay[BLOCK];
    float *restrict w = job->w + start, *restrict v = job->v + start, *restrict rho = job->rho + start;
    const float *restrict g = job->g + start;
    const float lr_beta2 = job->lr_beta2, beta1 = job->beta1, eta = job->dual_lr, inv_n = job->inv_num_data;
    const float alpha = job->alpha, alpha2 = job->alpha * job->alpha, scale = job->noise;
    const int use_previous = job->has_previous && alpha != 0.0f && eta != 0.0f;

    if (job->decay) decay_block(decay, job, start, m);
    else for (int64_t i = 0; i < m; i++) decay[i] = job->decay_scalar;
    int64_t after = job->numel - start - m;
    Ahead ahead = {{(const char *)(w + m), (const char *)(g + m), (const char *)(v + m), (const char *)(rho + m)},
                   0, (after < BLOCK ? after : BLOCK) / 16};
    if (use_previous) normal_block(previous, m, (uint32_t)start, job->key_prev, &ahead);
    else memset(previous, 0, (size_t)m * sizeof(float));
    if (scale != 0.0f) normal_block(noise, m, (uint32_t)start, job->key, &ahead);
    else memset(noise, 0, (size_t)m * sizeof(float));

    float tau[BLOCK];
    if (eta != 0.0f) {
        for (int64_t i = 0; i < m; i++) tau[i] = 1.0f + exp32(-rho[i]);
        if (use_previous)
            for (int64_t i = 0; i < m; i++)
                rho[i] += eta * (tau[i] * inv_n - alpha2 * decay[i] / tau[i] - alpha * previous[i] * g[i]);
        else
            for (int64_t i = 0; i < m; i++) rho[i] += eta * (tau[i] * inv_n - alpha2 * decay[i] / tau[i]);
    }
    for (int64_t i = 0; i < m; i++) tau[i] = 1.0f + exp32(-rho[i]);
    if (scale != 0.0f) {
        if (job->exact) for (int64_t i = 0; i < m; i++) noise[i] *= scale * sqrtf(tau[i]);
        else for (int64_t i = 0; i < m; i++) noise[i] *= scale;
    }
    for (int64_t i = 0; i < m; i++) {
        v[i] = beta1 * v[i] - lr_beta2 * (g[i] + decay[i] * w[i]) + noise[i];
        w[i] += v[i] / tau[i];
    }
}

/* Runs blocks [begin, end) of the jobs, counted through all of them in order. */
void bayesprune_cv_adam(const Job *jobs, int64_t count, int64_t begin, int64_t end) {
    int64_t first = 0;
    for (int64_t j = 0; j < count && first < end; j++) {
        int64_t blocks = (jobs[j].numel + BLOCK - 1) / BLOCK;
        int64_t lo = begin > first ? begin - first : 0, hi = end - first < blocks ? end - first : blocks;
        for (int64_t b = lo; b < hi; b++) step_block(&jobs[j], b);
        first += blocks;
    }
}

/* Fills out[0..numel) with the standard normal numbers of one stream; for tests and for the noise's own users. */
void bayesprune_normal(float *out, int64_t numel, const uint32_t *key) {
    for (int64_t start = 0; start < numel; start += BLOCK) {
        int64_t m = numel - start < BLOCK ? numel - start : BLOCK;
        normal_block(out + start, m, (uint32_t)start, key, &(Ahead){0});
    }
}

int64_t bayesprune_job_size(void) { return (int64_t)sizeof(Job); }
