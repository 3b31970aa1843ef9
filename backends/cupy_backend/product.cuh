// A tile of a matrix product, for matrices that exist only as functions of row, column and k.
//
// A block computes ROWS x COLUMNS sums; for that it walks along k, DEPTH steps at a time:
//
//                                COLUMNS
//                           +---------------+
//                           |     B tile    | DEPTH         both tiles in shared memory,
//                           +---------------+               k outside, rows or columns inside
//              DEPTH        |    |    |     |
//           +---------+     +----+====+-----+
//           |         |     |    | t  |     | HEIGHT        sums in the registers of thread t:
//     ROWS  | A tile  | ----|    +====+     |               HEIGHT x WIDTH, as fours that lie apart,
//           |         |     |    WIDTH      |               so that neighbouring threads read
//           +---------+     +---------------+               neighbouring fours
//
// Each value that a thread reads from shared memory serves HEIGHT or WIDTH products, each that the
// block reads from the arrays ROWS or COLUMNS. While one pair of tiles is multiplied, the next is on
// its way into registers, four values an instruction where four neighbours lie in one piece.
//
// An operand is a struct with
//     bool ALONG_K              whether neighbours in memory have neighbouring k, or else rows
//                               (B's columns are called rows too)
//     Place place(row)          what it wants to know of a row, computed once; of any row, also of
//                               those up to a tile beyond the last
//     const T* find(place, k)   where the value lies; null if it is zero, as all beyond the end are
//     bool fours                whether four neighbours from a multiple of four on lie in one piece
#include "device.cuh"

constexpr int DEPTH = 16;

// An operand's part of a tile, on its way from the arrays to shared memory through registers.
template <typename T, int SIZE, int THREADS, typename Operand>
struct Stage {
    static constexpr int LANES = (Operand::ALONG_K ? DEPTH : SIZE) / 4;  // threads side by side
    static constexpr int COUNT = SIZE * DEPTH / 4 / THREADS;             // fours of a thread
    static constexpr int STEP = THREADS / LANES;                         // from one to the next
    static constexpr int PLACES = Operand::ALONG_K ? COUNT : 1;
    static_assert(THREADS % LANES == 0 && COUNT * THREADS * 4 == SIZE * DEPTH, "no whole fours");

    const Operand& operand;
    int first;  // row of the tile's first value
    typename Operand::Place places[PLACES];
    Four<T> held[COUNT];

    __device__ static int along() { return threadIdx.x % LANES * 4; }
    __device__ static int across(int i) { return threadIdx.x / LANES + i * STEP; }

    __device__ Stage(const Operand& operand, int first) : operand(operand), first(first) {
#pragma unroll
        for (int i = 0; i < PLACES; i++)
            places[i] = operand.place(first + (Operand::ALONG_K ? across(i) : along()));
    }

    // Read the part of the tile that begins at k0.
    __device__ void fetch(int k0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            held[i] = Operand::ALONG_K ? read(places[i % PLACES], k0 + along())
                                       : read(places[0], k0 + across(i));
    }

    __device__ Four<T> read(const typename Operand::Place& place, int k) const {
        Four<T> values = {};
        if (operand.fours) {
            if (const T* p = operand.find(place, k)) values = *reinterpret_cast<const Four<T>*>(p);
            return values;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const T* p = Operand::ALONG_K ? operand.find(place, k + j)
                                          : operand.find(operand.place(first + along() + j), k);
            if (p) values.at[j] = *p;
        }
        return values;
    }

    // Write what was read into the tile.
    __device__ void put(T (&tile)[DEPTH][SIZE + 4]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (Operand::ALONG_K)
                    tile[along() + j][across(i)] = held[i].at[j];
                else
                    tile[across(i)][along() + j] = held[i].at[j];
            }
    }
};

#define LAUNCHED_AS(...) __launch_bounds__(__VA_ARGS__::THREADS, __VA_ARGS__::BLOCKS)

template <typename T, int ROWS, int COLUMNS, int HEIGHT, int WIDTH>
struct Product {
    static constexpr int ACROSS = COLUMNS / WIDTH;  // threads side by side
    static constexpr int DOWN = ROWS / HEIGHT;
    static constexpr int THREADS = ACROSS * DOWN;
    // Blocks that a multiprocessor shall hold at once: 12 warps, so 170 registers a thread.
    static constexpr int BLOCKS = sizeof(T) == 4 ? 384 / THREADS : 1;

    T sums[HEIGHT][WIDTH] = {};

    // The row, and the column, within the tile to which sums[i][j] belongs.
    __device__ static int row(int i) { return (i / 4 * DOWN + threadIdx.x / ACROSS) * 4 + i % 4; }
    __device__ static int column(int j) {
        return (j / 4 * ACROSS + threadIdx.x % ACROSS) * 4 + j % 4;
    }

    // Add the products of the k from `begin` on; the operands are zero from the last one on.
    template <typename A, typename B>
    __device__ void add(const A& a, const B& b, int first_row, int first_column, int begin,
                        int end) {
        SHARED(T, a_tile, [DEPTH][ROWS + 4]);  // 4: not all of a warp's writes go to the same banks
        SHARED(T, b_tile, [DEPTH][COLUMNS + 4]);
        Stage<T, ROWS, THREADS, A> next_a(a, first_row);
        Stage<T, COLUMNS, THREADS, B> next_b(b, first_column);
        next_a.fetch(begin);
        next_b.fetch(begin);
        for (int k = begin; k < end; k += DEPTH) {
            next_a.put(a_tile);
            next_b.put(b_tile);
            __syncthreads();
            next_a.fetch(k + DEPTH);
            next_b.fetch(k + DEPTH);
#pragma unroll
            for (int depth = 0; depth < DEPTH; depth++) add_outer(a_tile[depth], b_tile[depth]);
            __syncthreads();  // before the tiles are overwritten
        }
    }

    __device__ void add_outer(const T (&a)[ROWS + 4], const T (&b)[COLUMNS + 4]) {
        T left[HEIGHT], right[WIDTH];
#pragma unroll
        for (int i = 0; i < HEIGHT; i++) left[i] = a[row(i)];
#pragma unroll
        for (int j = 0; j < WIDTH; j++) right[j] = b[column(j)];
#pragma unroll
        for (int i = 0; i < HEIGHT; i++)
#pragma unroll
            for (int j = 0; j < WIDTH; j++) sums[i][j] += left[i] * right[j];
    }
};

// Add to four sums what lies at p, or to as many as there are left columns.
template <typename T>
__device__ void add(T* sums, const T* p, int left) {
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < left) sums[j] += p[j];
}

// Write four sums to p, or as many as there are left columns.
template <typename T>
__device__ void store(T* p, const T* sums, int left, bool fours) {
    if (fours && left >= 4) {
        *reinterpret_cast<Four<T>*>(p) = {sums[0], sums[1], sums[2], sums[3]};
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < left) p[j] = sums[j];
}
