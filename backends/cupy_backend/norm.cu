// Batch normalisation in as few passes over memory as there can be.
// Ioffe & Szegedy, arXiv 1502.03167, algorithm 1 and section 3.
//
//                       reads            writes
//     statistics        x                                  forward in training: 3 passes over memory,
//     normalise         x (residual)     y                 4 with a residual
//
//     gradient_sums     g x (y)          (masked g)        backward: 5 passes,
//     input_gradient    g x (plus)       dx                7 with a residual and a ReLU, 1 more with plus
//
// After a ReLU, g counts only where the ReLU let x pass. This mask is computed anew from x, which has
// to be read anyway, rather than read from y; only where a residual was added, y has to be read. The
// masked g is then the residual's gradient and is written, which input_gradient reads in g's place.
//
// Which thread does what. Channels are the fastest axis. A block takes `lines` pixels at a time, so that
// its threads read one piece of memory, and each thread has one channel for good (C = 3, 8 threads):
//
//     thread      0   1   2   3   4   5   6   7
//     channel     0   1   2   0   1   2   -   -       lines = 8 / 3 = 2, two threads idle
//     step 0      pixel 0     pixel 1
//     step 1      pixel 2     pixel 3                 ... `each` steps
//
// With more channels than threads, blockIdx.y counts the pieces of 256 channels.
//
// Sums are made in three stages, each in an order that depends on the shape alone: a thread's values in
// T; a block's threads in float64, in a tree; the blocks in float64, by a second launch with a block
// for each channel. Few values are left after the first stage, so float64 costs nothing even where the
// GPU has little of it.
#include "device.cuh"

constexpr int THREADS = 256;

// A thread's channel, and where its values lie: first, first + step, ... before end.
struct Share {
    int channel, line, lines, width;  // width: the block's channels
    int first, step, end, count;

    __device__ Share(int pixels, int C, int each) {
        width = min(C, THREADS), lines = THREADS / width;
        channel = blockIdx.y * THREADS + threadIdx.x % width, line = threadIdx.x / width;
        int pixel = blockIdx.x * each * lines + line;
        bool idle = line >= lines || channel >= C || pixel >= pixels;
        count = idle ? 0 : min(each, (pixels - pixel - 1) / lines + 1);
        first = pixel * C + channel, step = lines * C, end = first + (count - 1) * step + 1;
    }
};

// ---- sums over threads ----

// Join what the threads of each channel have, pair by pair: true for the thread that got it all.
//     lines = 5:  0 <- 4;  0 <- 2, 1 <- 3;  0 <- 1
template <typename Sum>
__device__ bool join_lines(Sum& own, int line, int lines, int width) {
    SHARED(Sum, all, [THREADS]);
    all[threadIdx.x] = own;
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (line < half && line + half < lines) {
            own = join(own, all[threadIdx.x + half * width]);
            all[threadIdx.x] = own;
        }
    }
    return line == 0;
}

// Join the partial sums of the blocks, for the channel blockIdx.x: true for the thread that got it all.
template <typename Sum>
__device__ bool join_blocks(Sum& own, const double* partial, int blocks) {
    const Sum* of_channel = reinterpret_cast<const Sum*>(partial) + blockIdx.x * blocks;
    own = {};
    for (int i = threadIdx.x; i < blocks; i += THREADS) own = join(own, of_channel[i]);
    return join_lines(own, threadIdx.x, THREADS, 1);
}

// ---- the statistics ----

// How many values, their mean, and the sum of the squares of their distances from it.
struct Moments {
    double count, mean, squares;
};

// Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
// 1979: nothing cancels, wherever the mean is.
__device__ Moments join(Moments a, Moments b) {
    double count = a.count + b.count, distance = b.mean - a.mean;
    if (b.count == 0) return a;
    double part = b.count / count;
    return {count, a.mean + distance * part, a.squares + b.squares + distance * distance * a.count * part};
}

// Compute the moments of this block's pixels: partial (C, blocks, 3).
// A thread sums distances from its first value. Sums of x and x^2 would cancel: at mean 30, a variance
// of 1e-4 would be all rounding. A value of its own is no further from the mean than the sum of squares
// can bear: of n values, the error is at most about n roundings, even if the first is the outlier.
template <typename T>
__global__ void statistics(const T* x, int pixels, int C, int each, double* partial) {
    Share own(pixels, C, each);
    Moments moments = {};
    if (own.count) {
        T origin = x[own.first], sum = 0, squares = 0;
        auto distance = [=](int i) { return x[i] - origin; };
        for_each(own.first, own.step, own.end, distance, [&](int, T d) {
            sum += d;
            squares += d * d;
        });
        double off = double(sum) / own.count;
        moments = {double(own.count), origin + off, squares - sum * off};
    }
    bool first = join_lines(moments, own.line, own.lines, own.width);
    if (first && own.channel < C)
        reinterpret_cast<Moments*>(partial)[own.channel * gridDim.x + blockIdx.x] = moments;
}

__global__ void join_statistics(const double* partial, int blocks, double* mean, double* var) {
    Moments moments;
    if (!join_blocks(moments, partial, blocks)) return;
    mean[blockIdx.x] = moments.mean;
    double variance = moments.squares / moments.count;
    var[blockIdx.x] = variance < 0 ? 0 : variance;  // a rounding below; a NaN stays one
}

// (1 - momentum) * old + momentum * scale * what the batch has, for each of C channels.
template <typename T>
__global__ void running_average(const T* old, const double* batch, double momentum, double scale, int C,
                                T* next) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c < C) next[c] = T(1 - momentum) * old[c] + momentum * (scale * batch[c]);
}

// ---- forward ----

// What rounding the mean to T takes off the distances from it: at mean 30 and deviation 0.01, 1e-4 of
// a deviation. It is the same for all values, so it is put right once a channel.
template <typename T>
__device__ double lost(double mean) { return T(mean) - mean; }

// What a channel's values go through. The statistics are as a kernel gets them, of all channels.
template <typename T>
struct Normalisation {
    T mean, scale, bias;

    __device__ Normalisation(const double* means, const double* vars, const T* weights, const T* biases,
                             double eps, int channel) {
        mean = means[channel], scale = weights[channel] / sqrt(T(vars[channel] + eps));
        bias = biases[channel] + T(lost<T>(means[channel])) * scale;
    }
    __device__ T operator()(T x) const { return (x - mean) * scale + bias; }
};

// y = normalised x + residual (may be null), and relu of it if wanted.
template <typename T>
__global__ void normalise(const T* x, const T* residual, const double* mean,
                          const double* var, const T* weight, const T* bias, double eps, int relu,
                          int pixels, int C, int each, T* y) {
    Share own(pixels, C, each);
    if (!own.count) return;
    Normalisation<T> normalised(mean, var, weight, bias, eps, own.channel);
    struct Value {
        T x, residual;
    };
    auto read = [=](int i) { return Value{x[i], residual ? residual[i] : T(0)}; };
    for_each(own.first, own.step, own.end, read, [=](int i, Value value) {
        T v = normalised(value.x) + value.residual;
        y[i] = relu && v <= 0 ? T(0) : v;  // a NaN stays one
    });
}

// ---- backward ----

// The sums of g, and of g times x's distance from the mean.
struct Sums {
    double g, gx;
};

__device__ Sums join(Sums a, Sums b) { return {a.g + b.g, a.gx + b.gx}; }

// Sum over this block's pixels: partial (C, blocks, 2). With relu, g counts where y > 0, or where y is
// null where the normalised x is; `masked`, if not null, gets what counted.
template <typename T>
__global__ void gradient_sums(const T* g, const T* x, const T* y,
                              const double* mean, const double* var, const T* weight, const T* bias,
                              double eps, int relu, int pixels, int C, int each,
                              T* masked, double* partial) {
    Share own(pixels, C, each);
    Sums sums = {};
    if (own.count) {
        Normalisation<T> normalised(mean, var, weight, bias, eps, own.channel);
        T sum = 0, products = 0;
        struct Value {
            T g, x, y;
        };
        auto read = [=](int i) { return Value{g[i], x[i], y ? y[i] : T(0)}; };
        for_each(own.first, own.step, own.end, read, [&](int i, Value value) {
            bool counts = !relu || (y ? value.y : normalised(value.x)) > 0;
            T passed = counts ? value.g : T(0);
            if (masked) masked[i] = passed;
            sum += passed;
            products += passed * (value.x - normalised.mean);
        });
        sums = {double(sum), double(products)};
    }
    bool first = join_lines(sums, own.line, own.lines, own.width);
    if (first && own.channel < C)
        reinterpret_cast<Sums*>(partial)[own.channel * gridDim.x + blockIdx.x] = sums;
}

// Give the parameters' gradients, and what input_gradient subtracts: means (2, C), the mean of g and
// that of g * x_hat / sqrt(var + eps); zeros in evaluation, where mean and var depend on nothing.
template <typename T>
__global__ void join_gradient_sums(const double* partial, int blocks, const double* mean,
                                   const double* var, double eps, int pixels, int training, T* dweight,
                                   T* dbias, double* means) {
    Sums sums;
    if (!join_blocks(sums, partial, blocks)) return;
    int channel = blockIdx.x, C = gridDim.x;
    double off = lost<T>(mean[channel]), variance = var[channel] + eps;
    sums.gx += off * sums.g;
    dweight[channel] = sums.gx / sqrt(variance);
    dbias[channel] = sums.g;
    double slope = training ? sums.gx / variance / pixels : 0;
    means[channel] = training ? sums.g / pixels + off * slope : 0;
    means[C + channel] = slope;
}

// dx = (g - mean(g) - x_hat * mean(g * x_hat)) * weight / sqrt(var + eps), g masked by relu as above.
// `plus`, if any, is added.
template <typename T>
__global__ void input_gradient(const T* g, const T* x, const T* plus, const double* mean,
                               const double* var, const T* weight, const T* bias, double eps, int relu,
                               const double* means, int pixels, int C, int each, T* dx) {
    Share own(pixels, C, each);
    if (!own.count) return;
    Normalisation<T> normalised(mean, var, weight, bias, eps, own.channel);
    T mean_g = means[own.channel], slope = means[C + own.channel];
    struct Value {
        T g, x, plus;
    };
    auto read = [=](int i) { return Value{g[i], x[i], plus ? plus[i] : T(0)}; };
    for_each(own.first, own.step, own.end, read, [=](int i, Value value) {
        T passed = !relu || normalised(value.x) > 0 ? value.g : T(0);
        T change = (passed - mean_g - (value.x - normalised.mean) * slope) * normalised.scale;
        dx[i] = change + value.plus;
    });
}
