"""CUDA C source of the CuPy driver's kernels: one block of threads looks after one image.

The source is compiled after ``typedef <type> Entry;``. Blocks have a power of two of threads, at
most 256. State lives in global memory; a barrier follows whatever another thread will read. Only
barriers, shared memory and shared atomics are used, so the source also compiles for a host that
supplies these few words.

Every loop is a `for` over a range with a step of its own, or says what bounds it, and no thread
leaves one with a barrier inside before the others. NaN is not looked for: comparisons with it
are false, so that an entry that is NaN serves nobody, and a level that is NaN keeps nobody out.
"""

from __future__ import annotations

THREADS = 256
"""Threads of a block."""

SOURCE = r"""
#define EPSILON 2.220446049250313e-16
#define MOST 256
#ifndef INFINITY
#define INFINITY __longlong_as_double(0x7ff0000000000000LL)
#endif
typedef long long Index;

// The largest (sign = 1) or smallest (sign = -1) of one number a thread, known to all.
__device__ double extreme(double x, double sign) {
    __shared__ double held[MOST];
    int t = threadIdx.x;
    held[t] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half && sign * held[t + half] > sign * held[t]) held[t] = held[t + half];
        __syncthreads();
    }
    double answer = held[0];
    __syncthreads();
    return answer;
}

__device__ double total(double x) {
    __shared__ double held[MOST];
    int t = threadIdx.x;
    held[t] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) held[t] += held[t + half];
        __syncthreads();
    }
    double answer = held[0];
    __syncthreads();
    return answer;
}

// The largest of the open numbers.
__device__ double best_open(const double* x, const unsigned char* opened, int n) {
    double best = -INFINITY;
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        if (opened[j] && x[j] > best) best = x[j];
    return extreme(best, 1.0);
}

// The lowest open place from `begin` on whose number is not below `least`; n where there is none.
// With begin = 0 there is one while a token is open: the best reaches a level below it, and where
// numbers or level are NaN everybody does.
__device__ int first_open(
    const double* x, const unsigned char* opened, double least, int begin, int n) {
    int first = n;
    for (int j = threadIdx.x; j < n; j += blockDim.x)
        if (j >= begin && j < first && opened[j] && !(x[j] < least)) first = j;
    return (int)extreme((double)first, -1.0);
}

__device__ double rise(double entry, double served) {
    return entry > served ? entry - served : 0.0;
}

// g_j = sum_i w_i max(0, s_ij). Grid: images, tiles of columns.
extern "C" __global__ void first_gains(
    const Entry* s, const double* w, double* g, int n) {
    Index image = blockIdx.x;
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= n) return;
    s += image * n * n;
    w += image * n;
    double sum = 0.0;
    for (Index i = 0; i < n; i++) sum += w[i] * rise((double)s[i * n + j], 0.0);
    g[image * n + j] = sum;
}

// Picks begin .. end - 1 of facility location. A pick changes the gains only through the rows it
// serves better. Running gains are within the slack of exact ones, and whoever could be the best
// is asked exactly. `history` keeps the gains before each of these picks and after the last.
extern "C" __global__ void facility_steps(
    const Entry* s, const double* w, const Index* budgets, double* g, double* m, double* fresh,
    double* exact, int* listed, unsigned char* opened, Index* terms, double* largest,
    double* history, Index* indices, double* gains, double rounding, int n, int longest, int begin,
    int end) {
    __shared__ int counts[MOST + 1];
    Index image = blockIdx.x;
    int t = threadIdx.x, rows = end - begin + 1;
    s += image * n * n;
    w += image * n;
    g += image * n;
    m += image * n;
    fresh += image * n;
    exact += image * n;
    listed += image * n;
    opened += image * n;
    history += image * n * rows;
    indices += image * longest;
    gains += image * longest;
    int budget = (int)budgets[image];
    int share = (n + blockDim.x - 1) / blockDim.x;
    double weight = 0.0;
    for (int i = t; i < n; i += blockDim.x) weight += w[i];
    // A sum of weights that overflows is no rounding where entries are exact.
    weight = total(weight);
    double extra = rounding > 0.0 ? rounding * weight : 0.0;
    if (begin == 0) {
        double most = best_open(g, opened, n);
        if (t == 0) {
            terms[image] = n;
            largest[image] = most;
        }
    }
    __syncthreads();
    for (int step = begin; step < end; step++) {
        for (int j = t; j < n; j += blockDim.x) {
            history[(Index)(step - begin) * n + j] = g[j];
            exact[j] = -INFINITY;
        }
        __syncthreads();
        if (step >= budget) continue;
        double slack = 4.0 * EPSILON * (double)terms[image] * largest[image];
        double best = best_open(g, opened, n);
        double least = best - 2.0 * slack - (4.0 * n * EPSILON * fabs(best) + extra);
        // At most n rounds: each place lies past the one before.
        for (int j = first_open(g, opened, least, 0, n); j < n;
             j = first_open(g, opened, least, j + 1, n)) {
            double sum = 0.0;
            for (Index i = t; i < n; i += blockDim.x)
                sum += w[i] * rise((double)s[i * n + j], m[i]);
            sum = total(sum);
            if (t == 0) exact[j] = sum;
        }
        __syncthreads();
        best = best_open(exact, opened, n);
        least = best - (4.0 * n * EPSILON * fabs(best) + extra);
        int pick = first_open(exact, opened, least, 0, n);
        // The rows that the pick serves better, in order, so that sums are the same every time.
        int count = 0;
        for (int i = t * share; i < n && i < (t + 1) * share; i++) {
            fresh[i] = (double)s[(Index)i * n + pick];
            count += fresh[i] > m[i];
        }
        counts[t + 1] = count;
        __syncthreads();
        if (t == 0) {
            indices[step] = pick;
            gains[step] = exact[pick];
            opened[pick] = 0;
            counts[0] = 0;
            for (int i = 0; i < (int)blockDim.x; i++) counts[i + 1] += counts[i];
            terms[image] += 2 * counts[blockDim.x];
        }
        __syncthreads();
        int place = counts[t];
        for (int i = t * share; i < n && i < (t + 1) * share; i++)
            if (fresh[i] > m[i]) listed[place++] = i;
        __syncthreads();
        int improved = counts[blockDim.x];
        for (int j = t; j < n; j += blockDim.x) {
            double sum = 0.0;
            for (int r = 0; r < improved; r++) {
                Index i = listed[r];
                double entry = (double)s[i * n + j];
                sum += w[i] * (rise(entry, m[i]) - rise(entry, fresh[i]));
            }
            g[j] -= sum;
        }
        __syncthreads();
        for (int i = t; i < n; i += blockDim.x)
            if (fresh[i] > m[i]) m[i] = fresh[i];
        __syncthreads();
    }
    for (int j = t; j < n; j += blockDim.x) history[(Index)(rows - 1) * n + j] = g[j];
}

// The distance of each token to its nearest other. Grid: images, tiles of columns.
extern "C" __global__ void nearest_other(const Entry* d, double* nearest, int n) {
    Index image = blockIdx.x;
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= n) return;
    d += image * n * n;
    double least = INFINITY;
    for (Index i = 0; i < n; i++)
        if (i != j && (double)d[i * n + j] < least) least = (double)d[i * n + j];
    nearest[image * n + j] = least;
}

// Farthest-first; `value` is the smallest distance between two picks.
extern "C" __global__ void farthest_steps(
    const Entry* d, const Index* budgets, double* nearest, unsigned char* opened, Index* indices,
    double* gains, double* value, double margin, int n, int longest, int start) {
    Index image = blockIdx.x;
    int t = threadIdx.x;
    d += image * n * n;
    nearest += image * n;
    opened += image * n;
    indices += image * longest;
    gains += image * longest;
    int budget = (int)budgets[image];
    for (int step = 0; step < budget; step++) {
        int pick = start;
        if (step > 0 || start < 0) {
            double best = best_open(nearest, opened, n);
            // Among infinities the margin would be lost in infinity - margin, as it should.
            pick = first_open(nearest, opened, best - margin, 0, n);
        }
        if (t == 0) {
            indices[step] = pick;
            gains[step] = nearest[pick];
            opened[pick] = 0;
        }
        __syncthreads();
        for (Index j = t; j < n; j += blockDim.x) {
            double away = (double)d[j * n + pick];
            if (step == 0 || away < nearest[j]) nearest[j] = away;
        }
        __syncthreads();
    }
    double least = INFINITY;
    for (Index pair = t; pair < (Index)budget * budget; pair += blockDim.x) {
        Index i = pair / budget, j = pair % budget;
        if (i != j) least = fmin(least, (double)d[indices[i] * n + indices[j]]);
    }
    least = extreme(least, -1.0);
    if (t == 0) value[image] = least;
}

// Greedy log-determinant: one more row of the Cholesky factor a pick.
extern "C" __global__ void cholesky_steps(
    const Entry* kernel, const Index* budgets, double* left, const double* noise, double* logs,
    double* factor, unsigned char* opened, Index* indices, double* gains, int n, int longest) {
    Index image = blockIdx.x;
    int t = threadIdx.x;
    kernel += image * n * n;
    left += image * n;
    noise += image * n;
    logs += image * n;
    factor += image * n * longest;
    opened += image * n;
    indices += image * longest;
    gains += image * longest;
    int budget = (int)budgets[image];
    for (int step = 0; step < budget; step++) {
        for (int j = t; j < n; j += blockDim.x)
            logs[j] = left[j] > noise[j] ? log(left[j]) : -INFINITY;
        __syncthreads();
        double best = best_open(logs, opened, n);
        int pick = first_open(logs, opened, best - 4.0 * n * EPSILON, 0, n);
        double rest = left[pick];
        bool alive = rest > noise[pick];
        if (t == 0) {
            indices[step] = pick;
            gains[step] = logs[pick];
            opened[pick] = 0;
        }
        __syncthreads();
        for (int j = t; j < n; j += blockDim.x) {
            double row = (double)kernel[(Index)pick * n + j];
            for (Index r = 0; r < step; r++) row -= factor[r * n + pick] * factor[r * n + j];
            row = alive ? row / sqrt(rest) : 0.0;
            factor[(Index)step * n + j] = row;
            left[j] -= row * row;
        }
        __syncthreads();
    }
}

// AgilePruner's scan over cosines; `order` sorts the tokens by attention.
extern "C" __global__ void scan_steps(
    const Entry* cosine, const Index* order, const Index* budgets, const double* slope,
    unsigned char* remains, unsigned char* kept, Index* indices, Index* filled, double tau_max,
    double rounding, int n, int longest) {
    Index image = blockIdx.x;
    int t = threadIdx.x;
    cosine += image * n * n;
    order += image * n;
    remains += image * n;
    kept += image * n;
    indices += image * longest;
    int budget = (int)budgets[image], count = 0;
    for (int place = 0; place < n && count < budget; place++) {
        Index pick = order[place];
        if (!remains[pick]) continue;
        __syncthreads();
        if (t == 0) {
            indices[count] = pick;
            kept[pick] = 1;
        }
        count++;
        Entry least = (Entry)(fmin(tau_max, count * slope[image]) - rounding);
        for (int j = t; j < n; j += blockDim.x)
            if (!((Entry)1 - cosine[pick * n + j] >= least)) remains[j] = 0;
        __syncthreads();
    }
    if (t == 0) {
        filled[image] = budget - count;
        for (int place = 0; place < n && count < budget; place++)
            if (!kept[order[place]]) indices[count++] = order[place];
    }
}

// Entropy of the grey values of each patch. Grid: patches of all images.
extern "C" __global__ void entropy(
    const Entry* image, double* h, int height, int width, int patch, int rows, int columns) {
    __shared__ int counts[256];
    Index which = blockIdx.x;
    int column = which % columns, row = which / columns % rows;
    image += which / columns / rows * height * width * 3;
    for (int level = threadIdx.x; level < 256; level += blockDim.x) counts[level] = 0;
    __syncthreads();
    for (int p = threadIdx.x; p < patch * patch; p += blockDim.x) {
        Index y = row * patch + p / patch, x = column * patch + p % patch;
        const Entry* pixel = image + (y * width + x) * 3;
        float red = (float)pixel[0], green = (float)pixel[1], blue = (float)pixel[2];
        // In this order and without fused steps: one bit decides on a grey value.
        float grey = __fadd_rn(
            __fadd_rn(__fmul_rn(0.299f, red), __fmul_rn(0.587f, green)), __fmul_rn(0.114f, blue));
        atomicAdd(&counts[(int)fminf(fmaxf(floorf(grey), 0.0f), 255.0f)], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0, area = (double)patch * patch;
        for (int level = 0; level < 256; level++) {
            double share = counts[level] / area;
            if (counts[level]) sum -= share * log(share);
        }
        h[which] = sum;
    }
}
"""
