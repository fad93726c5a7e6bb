/* One step of preconditioned SGHMC over float32 tensors, fused and without full-size temporaries.
 *
 * It mirrors `single_tensor_step` in step.py line by line; read that first.  Built on first use by native.py with the system's C
 * compiler; where there is none, the plain torch path does the same work.
 *
 * A tensor is walked in blocks of BLOCK weights; numbers 2j and 2j+1 of a noise stream are pair j of noise.py.  Every loop runs over a
 * multiple of LANES weights (a short block works on padded copies), so that a weight meets the same instructions wherever it lies:
 * results do not depend on how a tensor is cut into shards or blocks into threads.
 */
#include <stdint.h>
#include <string.h>
#include <math.h>

#define BLOCK 1024
#define LANES 32

enum { NONE, PAPER, RMS };

typedef struct {
    float *w;
    const float *g;
    float *v;
    float *scale;            /* rho or nu */
    const float *decay;      /* per-group weight decay, or NULL for the scalar below */
    float *kinetic;
    int64_t numel;
    int64_t offset;          /* number of the first weight within its noise stream */
    int64_t inner;           /* group of weight i is (i / inner) % period */
    int64_t period;
    uint32_t key_prev[4];
    uint32_t key[4];
    float lr_beta2;          /* beta2 * lr */
    float beta1;
    float dual_rate;         /* dual_lr / num_data */
    float dual_prior;        /* dual_lr * alpha^2 */
    float dual_noise;        /* dual_lr * alpha; 0: the previous noise is not drawn */
    float scale_decay;
    float damping;
    float decay_scalar;
    float noise;             /* standard deviation of the injected noise at tau = 1; 0: none */
    float factor;            /* kinetic_factor / numel */
    float blend;             /* 0: the kinetic temperature is left alone */
    int32_t preconditioner;
    int32_t adapt;
    int32_t exact;           /* 1: noise is divided by sqrt(tau) */
    int32_t guard;           /* 1: a block with a gradient that is not finite stays as it is, its sum is REFUSED */
} Job;

#define REFUSED (-1.0)       /* no sum of tau v^2 is negative */

static inline float as_float(uint32_t x) { float f; memcpy(&f, &x, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t x; memcpy(&x, &f, 4); return x; }

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

/* The arrays of the block after the one at work, to be fetched while there is arithmetic to do. */
typedef struct {
    const char *array[4];
    int64_t line, lines;     /* of 64 bytes: the next one to fetch, and how many there are */
    int64_t burst;           /* how many of each array at once */
} Ahead;

#define CHUNK 128            /* pairs that are drawn at once */

static inline void fetch(Ahead *ahead) {
    int64_t end = ahead->line + ahead->burst < ahead->lines ? ahead->line + ahead->burst : ahead->lines;
    for (; ahead->line < end; ahead->line++)
        for (int a = 0; a < 4; a++) __builtin_prefetch(ahead->array[a] + 64 * ahead->line, 1);
}

/* Numbers 2*first .. 2*(first+pairs)-1 of a stream, and what fills up the last chunk. See noise.py.
 * Stages in loops of their own, of a constant length: short dependency chains keep the processor's window full. */
static void normal_pairs(float *restrict out, int64_t pairs, uint32_t first, const uint32_t *key, Ahead *ahead) {
    const uint32_t k0 = key[0], k1 = key[1], k2 = key[2], k3 = key[3];
    float radius[CHUNK], turn[CHUNK];
    for (int64_t begin = 0; begin < pairs; begin += CHUNK) {
        float *restrict chunk = out + 2 * begin;
        uint32_t origin = (first + (uint32_t)begin) * 0xed5ad4bbu + k0;
        fetch(ahead);
        for (uint32_t j = 0; j < CHUNK; j++) {
            uint32_t x = origin + j * 0xed5ad4bbu;
            x ^= x >> 17; x = x * 0xac4c1b51u + k1;
            x ^= x >> 11; x = x * 0x31848babu + k2;
            int32_t z = (int32_t)x ^ ((int32_t)x >> 14);
            uint32_t y = (uint32_t)z * 0xadb4a92du + k3;
            radius[j] = (float)((z >> 7) + 1);
            turn[j] = (float)(int32_t)y * 2.3283064365386963e-10f;
        }
        fetch(ahead);
        for (int j = 0; j < CHUNK; j++) {  /* sqrt(-2 log(u / 2^24)), u in [1, 2^24]: exponent, and mantissa in [sqrt(1/2), sqrt(2)) */
            uint32_t bits = as_bits(radius[j]) - 0x3f3504f3u;
            float e = (float)(((int32_t)bits >> 23) - 24), m = as_float((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
            float p = 0.2020447360f;
            p = p * m - 0.3283997945f;
            p = p * m + 0.3466693030f;
            p = p * m - 0.3974609288f;
            p = p * m + 0.4991868769f;
            p = p * m - 0.6667236404f;
            p = p * m + 1.0000133479f;
            p = p * m - 1.9999996278f;
            radius[j] = sqrtf(e * -1.38629436f + m * p);
        }
        fetch(ahead);
        for (int j = 0; j < CHUNK; j++) {  /* sine and cosine of half the angle, then of the angle */
            float t = turn[j], q = t * t;
            float s = 0.0772201290f, c = 0.2196967986f;
            s = s * q - 0.5980451742f; c = c * q - 1.3318801612f;
            s = s * q + 2.5500313773f; c = c * q + 4.0584119142f;
            s = s * q - 5.1677068789f; c = c * q - 4.9347928587f;
            s = s * q + 3.1415925800f; c = c * q + 0.9999999535f;
            s *= t;
            float twice = 2.0f * radius[j] * s;
            chunk[2 * j] = radius[j] - twice * s;
            chunk[2 * j + 1] = twice * c;
        }
    }
}

/* Writes the decay of weights [start, start + m) into out, walking the groups without a division per weight. A group is filled
 * sixteen at a time: what runs over belongs to the next one, or to the sixteen spare places behind the block. */
static void decay_block(float *restrict out, const Job *job, int64_t start, int64_t m) {
    const int64_t inner = job->inner, period = job->period;
    int64_t group = (start / inner) % period, left = inner - start % inner;
    for (int64_t i = 0; i < m;) {
        int64_t run = left < m - i ? left : m - i;
        float value = job->decay[group];
        for (int64_t j = 0; j < run; j += 16)
            for (int r = 0; r < 16; r++) out[i + j + r] = value;
        i += run;
        left = inner;
        if (++group == period) group = 0;
    }
}

/* The step itself on n weights, a multiple of LANES; leaves tau v^2 in `energy`. Constant arguments make one loop a case.
 * The preconditioner has a loop of its own: short dependency chains keep the processor's window full. */
static inline __attribute__((always_inline)) void update(
    const Job *job, float *restrict w, const float *restrict g, float *restrict v, float *restrict scale,
    const float *restrict decay, float *restrict noise, const float *restrict previous, float *restrict energy,
    int64_t n, int kind, int adapt, int per_weight, int exact) {
    const float lr_beta2 = job->lr_beta2, beta1 = job->beta1, std = job->noise, shared = job->decay_scalar;
    const float rate = job->dual_rate, prior = job->dual_prior, correlation = job->dual_noise;
    const float keep = job->scale_decay, take = 1.0f - job->scale_decay, damping = job->damping;
    n &= ~(int64_t)(LANES - 1);
    float *restrict inverse = energy;  /* 1 / tau */
    if (kind == PAPER) {
        if (adapt) {
            for (int64_t i = 0; i < n; i++) inverse[i] = 1.0f + exp32(-scale[i]);
            if (correlation != 0.0f)
                for (int64_t i = 0; i < n; i++)
                    scale[i] += rate * inverse[i] - prior * (per_weight ? decay[i] : shared) / inverse[i]
                                - correlation * previous[i] * g[i];
            else
                for (int64_t i = 0; i < n; i++)
                    scale[i] += rate * inverse[i] - prior * (per_weight ? decay[i] : shared) / inverse[i];
        }
        for (int64_t i = 0; i < n; i++) inverse[i] = 1.0f + exp32(-scale[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        float wd = per_weight ? decay[i] : shared, weight = w[i];
        float d = g[i] + wd * weight, q = kind == NONE ? 1.0f : inverse[i];
        if (kind == RMS) {
            float nu = scale[i];
            if (adapt) { nu = keep * nu + take * (d * d); scale[i] = nu; }
            q = sqrtf(nu) + damping;
        }
        float injected = std * noise[i];
        if (exact && kind != NONE) injected *= sqrtf(q);
        float velocity = beta1 * v[i] - lr_beta2 * d + injected;
        float moved = kind == NONE ? velocity : velocity / q;
        v[i] = velocity;
        w[i] = weight + moved;
        energy[i] = weight != 0.0f ? moved * velocity : 0.0f;  /* pruned weights do not count */
    }
}

static void update_block(const Job *job, float *w, const float *g, float *v, float *scale, const float *decay,
                         float *noise, const float *previous, float *energy, int64_t n) {
#define CALL(kind, adapt) do { \
    if (decay) { if (job->exact) update(job, w, g, v, scale, decay, noise, previous, energy, n, kind, adapt, 1, 1); \
                 else update(job, w, g, v, scale, decay, noise, previous, energy, n, kind, adapt, 1, 0); } \
    else { if (job->exact) update(job, w, g, v, scale, decay, noise, previous, energy, n, kind, adapt, 0, 1); \
           else update(job, w, g, v, scale, decay, noise, previous, energy, n, kind, adapt, 0, 0); } } while (0)
    if (job->preconditioner == RMS) { if (job->adapt) CALL(RMS, 1); else CALL(RMS, 0); }
    else if (job->preconditioner == PAPER) { if (job->adapt) CALL(PAPER, 1); else CALL(PAPER, 0); }
    else CALL(NONE, 0);
#undef CALL
}

static double sum(const float *x, int64_t m) {
    double lane[8] = {0};
    for (int64_t i = 0; i < m; i += 8)
        for (int r = 0; r < 8; r++) lane[r] += (double)x[i + r];
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* Whether m gradients are finite; in bits, as the compiler may assume that numbers are. */
static int finite_block(const float *g, int64_t m) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < m; i++) bad |= (as_bits(g[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

/* One block; returns its sum of tau v^2, or REFUSED. */
static double step_block(const Job *job, int64_t block) {
    int64_t start = block * BLOCK, m = job->numel - start;
    if (m > BLOCK) m = BLOCK;
    int64_t n = (m + LANES - 1) & ~(int64_t)(LANES - 1), position = job->offset + start, shift = position & 1;
    int64_t after = job->numel - start - m, next = after < BLOCK ? after : BLOCK;
    float *w = job->w + start, *v = job->v + start, *scale = job->scale ? job->scale + start : v;
    const float *g = job->g + start;
    if (job->guard && !finite_block(g, m)) return REFUSED;
    float noise[BLOCK + 2 * CHUNK], previous[BLOCK + 2 * CHUNK], decay[BLOCK + 16], energy[BLOCK];
    float spare[4][BLOCK];
    Ahead ahead = {{(const char *)(w + m), (const char *)(g + m), (const char *)(v + m), (const char *)(scale + m)},
                   0, next / 16, 1 + BLOCK / 16 / (3 * BLOCK / 2 / CHUNK * (1 + (job->dual_noise != 0.0f)))};

    if (job->decay) { decay_block(decay, job, start, m); for (int64_t i = m; i < n; i++) decay[i] = 0.0f; }
    int64_t pairs = (n + shift + 1) / 2;
    if (job->dual_noise != 0.0f) normal_pairs(previous, pairs, (uint32_t)(position >> 1), job->key_prev, &ahead);
    if (job->noise != 0.0f) normal_pairs(noise, pairs, (uint32_t)(position >> 1), job->key, &ahead);
    else memset(noise, 0, sizeof noise);

    if (m < n) {  /* a short block: padded copies, so that no loop has a tail of its own */
        float *from[4] = {w, (float *)g, v, scale};
        for (int a = 0; a < 4; a++) {
            memcpy(spare[a], from[a], (size_t)m * sizeof(float));
            for (int64_t i = m; i < n; i++) spare[a][i] = a == 3 ? 1.0f : 0.0f;
        }
        update_block(job, spare[0], spare[1], spare[2], spare[3], job->decay ? decay : 0, noise + shift, previous + shift,
                     energy, n);
        memcpy(w, spare[0], (size_t)m * sizeof(float));
        if (job->scale && job->adapt) memcpy(scale, spare[3], (size_t)m * sizeof(float));
        memcpy(v, spare[2], (size_t)m * sizeof(float));
        for (int64_t i = m; i < n; i++) energy[i] = 0.0f;
    } else {
        update_block(job, w, g, v, scale, job->decay ? decay : 0, noise + shift, previous + shift, energy, n);
    }
    return job->blend != 0.0f ? sum(energy, n) : 0.0;
}

/* Runs blocks [begin, end) of the jobs, counted through all of them in order; sums[b] is block b's sum of tau v^2. */
void bayesprune_step(const Job *jobs, int64_t count, int64_t begin, int64_t end, double *sums) {
    int64_t first = 0;
    for (int64_t j = 0; j < count && first < end; j++) {
        int64_t blocks = (jobs[j].numel + BLOCK - 1) / BLOCK;
        int64_t lo = begin > first ? begin - first : 0, hi = end - first < blocks ? end - first : blocks;
        for (int64_t b = lo; b < hi; b++) sums[first + b] = step_block(&jobs[j], b);
        first += blocks;
    }
}

/* Blends each job's kinetic temperature with its blocks' sums, added in order: the number of threads changes no bit. */
void bayesprune_kinetic(const Job *jobs, int64_t count, const double *sums) {
    for (int64_t j = 0; j < count; j++) {
        int64_t blocks = (jobs[j].numel + BLOCK - 1) / BLOCK;
        double total = 0.0;
        for (int64_t b = 0; b < blocks; b++, sums++) total += *sums == REFUSED ? 0.0 : *sums;
        if (jobs[j].blend != 0.0f) *jobs[j].kinetic += jobs[j].blend * (float)(jobs[j].factor * total - *jobs[j].kinetic);
    }
}

/* Fills out[0..numel) with numbers start.. of one stream; for tests and for the noise's own users. */
void bayesprune_normal(float *out, int64_t numel, int64_t start, const uint32_t *key) {
    float block[BLOCK + 2 * CHUNK];
    for (int64_t i = 0; i < numel; i += BLOCK) {
        int64_t m = numel - i < BLOCK ? numel - i : BLOCK, shift = (start + i) & 1;
        normal_pairs(block, (m + shift + 1) / 2, (uint32_t)((start + i) >> 1), key, &(Ahead){0});
        memcpy(out + i, block + shift, (size_t)m * sizeof(float));
    }
}

int64_t bayesprune_job_size(void) { return (int64_t)sizeof(Job); }
int64_t bayesprune_block(void) { return BLOCK; }
